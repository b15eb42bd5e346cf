"""The stages of a study, its settings and its folder."""

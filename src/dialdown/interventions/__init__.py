"""Interventions on neurons, and those of the paper with their controls (METHOD §4, §5, §7)."""

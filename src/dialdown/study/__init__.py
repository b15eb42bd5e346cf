"""The stages of a study, its settings and its folder."""

from ..extras import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)

"""Interventions on neurons, and those of the paper with their controls (METHOD §4, §5, §7)."""

from ..extras import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)

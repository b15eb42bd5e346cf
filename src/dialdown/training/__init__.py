"""Preference pairs, DPO, and neuron gains with their Fisher information (METHOD §8)."""

from ..extras import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)

"""Preference pairs, DPO, and neuron gains with their Fisher information (METHOD §8)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

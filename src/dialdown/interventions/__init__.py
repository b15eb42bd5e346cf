"""Interventions on neurons, and those of the paper with their controls (METHOD §4, §5, §7)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

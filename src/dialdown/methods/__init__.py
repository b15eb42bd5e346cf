"""Methods that put numbers on neurons, from labelled texts alone (METHOD §10)."""

from ..extras import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)

"""Other methods of editing a model, from labelled texts or pairs (METHOD §10)."""

from ..extras import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)

"""A language model and its MLP neurons: loading, architecture facts, decoding (METHOD §1)."""

from ..extras import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)

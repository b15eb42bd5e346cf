"""Texts and models as files: embedded, on the hub or on this disk, read whole or refused."""

from ..extras import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)

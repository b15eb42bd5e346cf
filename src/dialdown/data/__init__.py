"""Texts and models as files: embedded, on the hub or on this disk, read whole or refused."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

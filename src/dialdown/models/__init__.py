"""A language model and its MLP neurons: loading, architecture facts, decoding (METHOD §1)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""A plain checkpoint from an intervention: export, verify, deltas (METHOD §7)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

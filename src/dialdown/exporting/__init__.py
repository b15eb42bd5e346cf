"""A plain checkpoint from an intervention: export, verify, deltas (METHOD §7)."""

from ..extras import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)

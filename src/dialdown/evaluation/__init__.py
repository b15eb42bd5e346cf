"""What a row is measured with: toxicity, log-perplexity, KL, F1, intervals (METHOD §6)."""

from ..extras import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)

"""What a row is measured with: toxicity, log-perplexity, KL, F1, intervals (METHOD §6)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

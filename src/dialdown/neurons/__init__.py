"""What is known of every neuron: directions, activations, the table (METHOD §2, §3)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

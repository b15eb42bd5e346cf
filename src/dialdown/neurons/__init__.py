"""What is known of every neuron: directions, activations, the table (METHOD §2, §3)."""

from ..extras import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)

"""Dial a concept down, neuron by neuron.

    texts -> direction -> activations -> neuron table -> interventions -> evaluation -> report
                                                pairs -> DPO | gains -> intervention -> export

Each arrow is one function below, each thing between two arrows a value that can be saved, loaded
and printed. Names load their module when they are first used; `__init__.pyi` lists them.
"""

from .extras import attach

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = attach(__name__, __file__)

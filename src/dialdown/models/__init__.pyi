from .decoding import Decoder, Step
from .hooks import neuron_hooks, residual_hook
from .lm import LM, load, load_tuned, same_weights
from .mlp import MLPLayer, MLPView

__all__ = [
    "LM",
    "Decoder",
    "MLPLayer",
    "MLPView",
    "Step",
    "load",
    "load_tuned",
    "neuron_hooks",
    "residual_hook",
    "same_weights",
]

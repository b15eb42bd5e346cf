from .activations import NeuronMeans, decode_with_means, mean_activations
from .directions import Direction, random_direction, token_contrast
from .logit_lens import judged_toxic, word_tokens, writers
from .probe import train_probe
from .subspace import svd_subspace
from .table import GROUPS, NeuronTable, compare, neuron_table

__all__ = [
    "GROUPS",
    "Direction",
    "NeuronMeans",
    "NeuronTable",
    "compare",
    "decode_with_means",
    "judged_toxic",
    "mean_activations",
    "neuron_table",
    "random_direction",
    "svd_subspace",
    "token_contrast",
    "train_probe",
    "word_tokens",
    "writers",
]

from .attribution import Contrast, contrast_means, mean_difference
from .dpo import DPOSettings, TrainingLog, train_dpo
from .fisher import fisher_information, natural_gradient, own_text, preference_gradient
from .gains import GainSettings, train_gains
from .make_pairs import Pair, PairSet, PairSettings, make_pairs

__all__ = [
    "Contrast",
    "DPOSettings",
    "GainSettings",
    "Pair",
    "PairSet",
    "PairSettings",
    "TrainingLog",
    "contrast_means",
    "fisher_information",
    "make_pairs",
    "mean_difference",
    "natural_gradient",
    "own_text",
    "preference_gradient",
    "train_dpo",
    "train_gains",
]

from .dpo import train_dpo
from .fisher import fisher_information, natural_gradient, own_text, preference_gradient
from .gains import train_gains
from .make_pairs import make_pairs
from .settings import DPOSettings, GainSettings, PairSettings, TrainingLog

__all__ = [
    "DPOSettings",
    "GainSettings",
    "PairSettings",
    "TrainingLog",
    "fisher_information",
    "make_pairs",
    "natural_gradient",
    "own_text",
    "preference_gradient",
    "train_dpo",
    "train_gains",
]

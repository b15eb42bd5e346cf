from .dpo import train_dpo
from .fisher import fisher_information, natural_gradient, preference_gradient
from .gains import train_gains
from .generated_text import own_text
from .make_pairs import make_pairs
from .rank_one import train_rank_one
from .settings import DPOSettings, GainSettings, PairSettings, RankOneSettings, TrainingLog

__all__ = [
    "DPOSettings",
    "GainSettings",
    "PairSettings",
    "RankOneSettings",
    "TrainingLog",
    "fisher_information",
    "make_pairs",
    "natural_gradient",
    "own_text",
    "preference_gradient",
    "train_dpo",
    "train_gains",
    "train_rank_one",
]

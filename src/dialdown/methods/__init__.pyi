from .ablation import ablation
from .experts import aura, auroc, damp, det0
from .log_odds import labels_gradient, labels_step, token_scores
from .steering import caa
from .transport import linear_act, mean_act

__all__ = [
    "ablation",
    "aura",
    "auroc",
    "caa",
    "damp",
    "det0",
    "labels_gradient",
    "labels_step",
    "linear_act",
    "mean_act",
    "token_scores",
]

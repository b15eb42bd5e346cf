"""Dial a concept down, neuron by neuron.

    texts -> direction -> activations -> neuron table -> groups -> interventions -> evaluation -> report

Each arrow is one function below, each thing between two arrows a value that can be saved, loaded and printed.
"""

from .activations import NeuronMeans, mean_activations
from .decoding import Decoder
from .directions import Direction, logit_lens, random_direction, token_contrast, train_probe
from .dpo import DPOSettings, train_dpo
from .edits import edit, edit_controls, patch, patch_control, steer
from .errors import DialdownError
from .evaluation import Evaluator, Row, Suite, evaluate
from .interventions import Intervention, untouched
from .metrics.toxicity import load_scorer
from .models import LM, MLPView, load, load_tuned
from .neurons import NeuronTable, compare, neuron_table
from .pairs import Pair, PairSet, PairSettings, make_pairs
from .statistics import svd_subspace
from .tables import judged_toxic
from .token_judge import TokenJudge, load_token_judge

__all__ = [
    "LM",
    "DPOSettings",
    "Decoder",
    "DialdownError",
    "Direction",
    "Evaluator",
    "Intervention",
    "MLPView",
    "NeuronMeans",
    "NeuronTable",
    "Pair",
    "PairSet",
    "PairSettings",
    "Row",
    "Suite",
    "TokenJudge",
    "compare",
    "edit",
    "edit_controls",
    "evaluate",
    "judged_toxic",
    "load",
    "load_scorer",
    "load_token_judge",
    "load_tuned",
    "logit_lens",
    "make_pairs",
    "mean_activations",
    "neuron_table",
    "patch",
    "patch_control",
    "random_direction",
    "steer",
    "svd_subspace",
    "token_contrast",
    "train_dpo",
    "train_probe",
    "untouched",
]

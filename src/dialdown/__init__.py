"""Dial a concept down, neuron by neuron.

    texts -> direction -> activations -> neuron table -> groups -> interventions -> evaluation -> report
                                                                 -> gains, search -> export

Each arrow is one function below, each thing between two arrows a value that can be saved, loaded and printed.
"""

from .activations import NeuronMeans, mean_activations
from .attribution import Contrast, contrast_means, mean_difference
from .control_vector import write_control_vector
from .decoding import Decoder
from .delta import load_delta, save_delta
from .directions import Direction, logit_lens, random_direction, token_contrast, train_probe
from .dpo import DPOSettings, train_dpo
from .edits import edit, edit_controls, patch, patch_control, soft_edit, steer
from .errors import DialdownError
from .evaluation import Evaluator, Row, Suite, evaluate
from .export import Exported, apply_delta, export
from .fisher import fisher_information, natural_gradient, own_text, preference_gradient
from .gains import GainSettings, train_gains
from .interventions import Intervention, untouched
from .metrics.toxicity import load_scorer
from .models import LM, MLPView, load, load_tuned
from .neurons import NeuronTable, compare, neuron_table
from .pairs import Pair, PairSet, PairSettings, make_pairs
from .scales import least_squares_scales
from .search import SearchSettings
from .statistics import svd_subspace
from .tables import judged_toxic
from .token_judge import TokenJudge, load_token_judge

__all__ = [
    "LM",
    "Contrast",
    "DPOSettings",
    "Decoder",
    "DialdownError",
    "Direction",
    "Evaluator",
    "Exported",
    "GainSettings",
    "Intervention",
    "MLPView",
    "NeuronMeans",
    "NeuronTable",
    "Pair",
    "PairSet",
    "PairSettings",
    "Row",
    "SearchSettings",
    "Suite",
    "TokenJudge",
    "apply_delta",
    "compare",
    "contrast_means",
    "edit",
    "edit_controls",
    "evaluate",
    "export",
    "fisher_information",
    "judged_toxic",
    "least_squares_scales",
    "load",
    "load_delta",
    "load_scorer",
    "load_token_judge",
    "load_tuned",
    "logit_lens",
    "make_pairs",
    "mean_activations",
    "mean_difference",
    "natural_gradient",
    "neuron_table",
    "own_text",
    "patch",
    "patch_control",
    "preference_gradient",
    "random_direction",
    "save_delta",
    "soft_edit",
    "steer",
    "svd_subspace",
    "token_contrast",
    "train_dpo",
    "train_gains",
    "train_probe",
    "untouched",
    "write_control_vector",
]

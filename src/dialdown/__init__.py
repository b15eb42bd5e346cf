"""Dial a concept down, neuron by neuron.

    texts -> direction -> activations -> neuron table -> groups -> interventions -> evaluation -> report
                                                                 -> gains, one step -> export

Each arrow is one function below, each thing between two arrows a value that can be saved, loaded
and printed.
"""

from .errors import DialdownError
from .evaluation.evaluator import Evaluator, Row, Suite, evaluate
from .evaluation.scorers import load_scorer
from .evaluation.token_judge import TokenJudge, load_token_judge
from .exporting.control_vector import write_control_vector
from .exporting.delta import load_delta, save_delta
from .exporting.export import Exported, apply_delta, export
from .interventions.intervention import Intervention, untouched
from .interventions.paper import edit, edit_controls, patch, patch_control, steer
from .models.decoding import Decoder
from .models.lm import LM, MLPView, load, load_tuned
from .neurons.activations import NeuronMeans, mean_activations
from .neurons.directions import Direction, logit_lens, random_direction, token_contrast, train_probe
from .neurons.statistics import svd_subspace
from .neurons.table import NeuronTable, compare, neuron_table
from .report.tables import judged_toxic
from .training.attribution import Contrast, contrast_means, mean_difference
from .training.dpo import DPOSettings, train_dpo
from .training.fisher import fisher_information, natural_gradient, own_text, preference_gradient
from .training.gains import GainSettings, train_gains
from .training.make_pairs import Pair, PairSet, PairSettings, make_pairs

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
    "steer",
    "svd_subspace",
    "token_contrast",
    "train_dpo",
    "train_gains",
    "train_probe",
    "untouched",
    "write_control_vector",
]

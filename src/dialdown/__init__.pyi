from .data.pairs import Pair, PairSet
from .errors import DialdownError
from .evaluation.evaluator import Suite, evaluate
from .evaluation.scorers import load_scorer
from .exporting.control_vector import write_control_vector
from .exporting.delta import load_delta, save_delta
from .exporting.export import apply_delta, export
from .interventions.intervention import Intervention, untouched
from .interventions.paper import edit, patch, steer
from .models.lm import LM, load, load_tuned
from .neurons.activations import mean_activations
from .neurons.directions import Direction, random_direction, token_contrast
from .neurons.logit_lens import logit_lens
from .neurons.probe import train_probe
from .neurons.table import NeuronTable, compare, neuron_table
from .training.dpo import train_dpo
from .training.fisher import fisher_information, natural_gradient, preference_gradient
from .training.gains import train_gains
from .training.generated_text import own_text
from .training.make_pairs import make_pairs
from .training.rank_one import train_rank_one
from .training.settings import DPOSettings, GainSettings, PairSettings, RankOneSettings

__version__: str

__all__ = [
    "LM",
    "DPOSettings",
    "DialdownError",
    "Direction",
    "GainSettings",
    "Intervention",
    "NeuronTable",
    "Pair",
    "PairSet",
    "PairSettings",
    "RankOneSettings",
    "Suite",
    "apply_delta",
    "compare",
    "edit",
    "evaluate",
    "export",
    "fisher_information",
    "load",
    "load_delta",
    "load_scorer",
    "load_tuned",
    "logit_lens",
    "make_pairs",
    "mean_activations",
    "natural_gradient",
    "neuron_table",
    "own_text",
    "patch",
    "preference_gradient",
    "random_direction",
    "save_delta",
    "steer",
    "token_contrast",
    "train_dpo",
    "train_gains",
    "train_probe",
    "train_rank_one",
    "untouched",
    "write_control_vector",
]

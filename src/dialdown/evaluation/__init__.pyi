from .bootstrap import Estimate, estimate
from .evaluator import METRICS, Evaluator, Row, Suite, evaluate
from .scorers import Scorer, load_scorer
from .token_judge import TokenJudge, load_token_judge

__all__ = [
    "METRICS",
    "Estimate",
    "Evaluator",
    "Row",
    "Scorer",
    "Suite",
    "TokenJudge",
    "estimate",
    "evaluate",
    "load_scorer",
    "load_token_judge",
]

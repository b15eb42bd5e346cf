from .bootstrap import Estimate, estimate
from .evaluator import Evaluator, Suite, evaluate
from .metrics import Metric, load_metric
from .row import METRICS, Row
from .scorers import Scorer, load_scorer
from .token_judge import TokenJudge, load_token_judge

__all__ = [
    "METRICS",
    "Estimate",
    "Evaluator",
    "Metric",
    "Row",
    "Scorer",
    "Suite",
    "TokenJudge",
    "estimate",
    "evaluate",
    "load_metric",
    "load_scorer",
    "load_token_judge",
]

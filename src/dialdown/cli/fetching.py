"""Everything the demo needs, downloaded and prepared ahead: `dialdown fetch`."""

from __future__ import annotations

from collections.abc import Callable

from ..data.assets import fetch
from ..evaluation.scorers import load_scorer
from ..progress import Progress
from ..workers import do_all

# The long ones first: two scorers that are trained, and the model that is converted.
NEEDED = (
    "embedded:minilm",
    "smollm2-135m",
    "embedded:ngram",
    "challenge-prompts",
    "category-prompts",
    "wiki-sentences",
)


def fetch_all(progress: Progress) -> None:
    """Fetch what is missing, two at a time: one waits for the network or converts while the other
    trains.

    Raises:
        DialdownError: something cannot be downloaded, or is not what it should be.
    """
    progress("fetching", 0, len(NEEDED))
    for done, finished in enumerate(do_all(_fetcher, NEEDED, workers=2), 1):
        progress(f"fetching, {finished.piece} is there", done, len(NEEDED))


def _fetcher() -> Callable[[str], None]:
    return _fetch


def _fetch(name: str) -> None:
    if name.startswith("embedded:"):
        load_scorer(name)
    else:
        fetch(name)

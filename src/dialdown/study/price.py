"""What an edit costs: its KL to the base model, the mean over several kinds of text, because an
edit can be cheap on the one kind that it was made with (METHOD §6).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..data.texts import load_labelled, load_prompts, load_reference_text, load_wiki_pairs
from ..errors import DialdownError
from ..evaluation.perplexity import ReferenceText, TextMeasure
from ..models.hooks import Change
from ..models.lm import LM
from ..models.tokens import text_windows
from .config import PRICED
from .context import Workspace

Section = Literal["detox", "ladder"]
NEUTRAL = "neutral"
FEW = 64
"""Tokens; fewer are not a kind of text."""


@dataclass(frozen=True)
class PricedTexts:
    """Kinds of text by name, read by the base model once."""

    kinds: Mapping[str, ReferenceText]

    @classmethod
    def of(cls, work: Workspace, section: Section) -> PricedTexts:
        """The texts of a section of the settings; see `priced_windows`."""
        return cls(
            {
                name: ReferenceText(work.lm, windows, kl_windows=len(windows))
                for name, windows in priced_windows(work, section).items()
            }
        )

    def read(self, lm: LM, edit: Change | None = None) -> dict[str, TextMeasure]:
        """Log-likelihoods and KL of a model, or of an edit of it, on each kind."""
        return {name: text.measure(lm, edit) for name, text in self.kinds.items()}


def mean_kl(texts: Mapping[str, TextMeasure]) -> float:
    """Mean over kinds of text of the mean KL to the base model, in nats per token."""
    return float(np.mean([*kl_by_kind(texts).values()]))


def kl_by_kind(texts: Mapping[str, TextMeasure]) -> dict[str, float]:
    """Mean KL to the base model on each kind of text, in nats per token."""
    return {name: float(np.average(text.kl, weights=text.tokens)) for name, text in texts.items()}


def mean_nll(texts: Mapping[str, TextMeasure]) -> float:
    """Mean over kinds of text of the mean log-perplexity, in nats per token."""
    return float(np.mean([np.average(text.nll, weights=text.tokens) for text in texts.values()]))


def priced_windows(work: Workspace, section: Section) -> dict[str, list[list[int]]]:
    """The windows of each kind of text by its name: the neutral text, and the `texts` of a section
    of the settings.
    """
    windows = {NEUTRAL: _windows(work, _neutral_text(work))}
    for source in getattr(work.config, section).texts:
        try:
            name = _name(work, source, windows)
            windows[name] = _windows(work, _text(work, source))
        except DialdownError as error:
            raise DialdownError(f"{section}.texts, {source}: {error}") from error
    return windows


def _name(work: Workspace, source: str, names: Collection[str]) -> str:
    name = kind(source)
    if name in names:
        raise DialdownError(f"Another kind of text is called {name!r} too: rename one.")
    if source in (work.config.evaluation.prompts, work.config.training_prompts):
        raise DialdownError(
            "The prompts that edits are trained and judged on come from there: pass other text."
        )
    return name


def _windows(work: Workspace, text: str) -> list[list[int]]:
    window = work.config.evaluation.window
    read = text_windows(work.lm, text, protocol="strict", window=window, max_windows=PRICED)
    if (tokens := sum(map(len, read))) < min(window, FEW):
        raise DialdownError(
            f"The text has {tokens} tokens, and a price on fewer than {min(window, FEW)} says "
            "little: pass a longer text."
        )
    return read


def _neutral_text(work: Workspace) -> str:
    """What the pairs for F1 leave of their source, none of it in the rows."""
    settings = work.config.evaluation
    left = load_wiki_pairs(settings.pairs, None, seed=work.config.seed)[settings.pairs_count :]
    if not left:
        raise DialdownError(
            f"All pairs of {settings.pairs!r} serve the evaluation, which leaves no neutral text "
            "to dial on: lower evaluation.pairs_count."
        )
    return "\n\n".join(f"{start} {end}" for start, end in left)


def kind(source: str) -> str:
    """A kind of text by the name of its source."""
    return source.rpartition("/")[2].removeprefix("embedded:")


def _text(work: Workspace, source: str) -> str:
    """A kind of text: of reviews and comments, those not toxic that no method is fitted on."""
    seed = work.config.seed
    if source == "embedded:imdb":
        return "\n\n".join(load_prompts(source, 60, seed=seed))
    if source == "embedded:comments":
        comments = load_labelled(source, 400, seed=seed, part="judge", max_words=40)
        labelled = zip(comments.texts, comments.labels, strict=True)
        return "\n\n".join(text for text, label in labelled if not label)
    # What is read of a long text is its first windows.
    return load_reference_text(source)[:40_000]

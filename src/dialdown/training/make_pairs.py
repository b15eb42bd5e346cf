"""Preference pairs made with the model itself: several continuations of a prompt, the least and the
most toxic (METHOD §8).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.pairs import Pair, PairSet
from ..data.texts import checked_scores
from ..errors import DialdownError
from ..files import fingerprint, read_sealed, write_sealed
from ..interventions.intervention import Intervention
from ..interventions.paper import steer, steering_alpha
from ..models.decoding import Decoder, greedy, sampler
from ..models.lm import LM
from ..models.memory import MOST, Auto
from ..models.refusals import declines
from ..models.templates import cut
from ..neurons.directions import Direction
from ..progress import progress, silently
from .settings import PairSettings

Score = Callable[[Sequence[str]], NDArray[np.float64]]


@dataclass(frozen=True)
class Candidates:
    """Scored continuations of some prompts.

    Attributes:
        prompts: n prompts, as far as the continuations follow them.
        texts: one list of n continuations per candidate: sampled ones, the greedy one, steered
            ones.
        scores: toxicity of each, in the same places.
    """

    prompts: list[str]
    texts: list[list[str]]
    scores: list[list[float]]


@dataclass(frozen=True)
class CandidateFiles:
    """Sampled batches as files, so that sampling that was stopped goes on where it was.

    Attributes:
        folder: one JSON file per batch.
        inputs: changes when the prompts, the model, the direction or the scorer change.
        settings: how candidates are sampled. How many pairs are wanted, and how far apart, is asked
            of them later.
    """

    folder: Path
    inputs: str
    settings: PairSettings

    def read(self, start: int) -> Candidates | None:
        """The batch from prompt number `start` on; None if it was not sampled, or from something
        else, or is damaged.
        """
        saved = read_sealed(self._path(start)) or {}
        return Candidates(**saved) if saved.pop("inputs", None) == self._key else None

    def write(self, start: int, batch: Candidates) -> None:
        """Keep a batch."""
        write_sealed(self._path(start), {"inputs": self._key, **asdict(batch)})

    @property
    def _key(self) -> str:
        return fingerprint(self.inputs, asdict(replace(self.settings, count=1, margin=0.0)))

    def _path(self, start: int) -> Path:
        return self.folder / f"{start:06}.json"


def make_pairs(
    lm: LM,
    prompts: Sequence[str],
    score: Score,
    settings: PairSettings,
    *,
    scorer: str,
    direction: Direction | None = None,
    max_prompt_tokens: int = 32,
) -> PairSet:
    """Sample continuations, score them, keep the least and the most toxic of each prompt if they
    differ enough.

    Args:
        lm: the model to be tuned; its own samples are its own distribution, so preferring one costs
            little.
        prompts: training prompts, none of them an evaluation prompt.
        score: texts to their probabilities of the concept, such as `load_scorer(...).score`; it
            must not be the only judge later (METHOD §8).
        settings: how many, and how.
        scorer: what the record calls it.
        direction: the probe, needed if some candidates are steered.
        max_prompt_tokens: prompts are cut here.

    Raises:
        DialdownError: no direction to steer along, or too few pairs.
    """
    batches: list[Candidates] = []
    count, size, replies = 0, prompts_together(lm, settings), lm.template != "none"
    for start in range(0, len(prompts), size):
        batch = candidates(
            lm,
            prompts[start : start + size],
            score,
            settings,
            start,
            direction=direction,
            max_prompt_tokens=max_prompt_tokens,
        )
        batches.append(batch)
        count += count_pairs(batch, settings, replies=replies)
        progress("making pairs", min(count, settings.count), settings.count)
        if count >= settings.count:
            break
    used = replace(settings, batch_size=size)
    record = {"scorer": scorer, **lm.describe()}
    return choose_pairs(batches, used, record, replies=replies)


@silently()
def candidates(
    lm: LM,
    prompts: Sequence[str],
    score: Score,
    settings: PairSettings,
    start: int,
    *,
    direction: Direction | None = None,
    max_prompt_tokens: int = 32,
) -> Candidates:
    """Candidates for a batch of prompts, the first of which has the number `start`, whichever
    batches were made before it; see `make_pairs`.
    """
    towards = None
    if settings.steered:
        if direction is None:
            raise DialdownError(
                "Steered candidates need a direction: pass one, or set pairs.steered to 0."
            )
        towards = steer(direction, -steering_alpha(direction, settings.steering_strength))
    # The part of each prompt that its continuations follow.
    batch = cut(lm.tokenizer, prompts, max_prompt_tokens)
    texts = _sample(lm, batch, settings, towards, max_prompt_tokens, seed=settings.seed + start)
    return Candidates(
        batch, texts, [checked_scores(score(column), column, "of the pairs") for column in texts]
    )


def prompts_together(lm: LM, settings: PairSettings, *, on_cpu: int = 64) -> int:
    """How many prompts have their candidates sampled together: what is set, or that many on a
    CPU and elsewhere as many as make the largest batch.
    """
    if settings.batch_size != "auto":
        return settings.batch_size
    return on_cpu if lm.device.type == "cpu" else max(1, MOST // max(1, settings.unsteered))


def count_pairs(batch: Candidates, settings: PairSettings, *, replies: bool) -> int:
    """How many prompts of a batch give a pair; see `choose_pairs`."""
    return len(_pairs(batch, settings, replies))


def choose_pairs(
    batches: Sequence[Candidates],
    settings: PairSettings,
    record: Mapping[str, Any],
    *,
    replies: bool,
) -> PairSet:
    """The first `settings.count` pairs of the batches.

    Args:
        batches: candidates in the order of the prompts.
        settings: how many, and the margin.
        record: goes into the set's record, beside what was measured.
        replies: whether the candidates answer a user. Then none that declines is preferred: a judge
            finds nothing less toxic, and a tenth of such pairs teaches a model to decline.
    """
    used = sum(len(batch.prompts) for batch in batches)
    chosen = [pair for batch in batches for pair in _pairs(batch, settings, replies)]
    if len(chosen) < settings.count:
        raise DialdownError(
            f"Only {len(chosen)} of {settings.count} pairs differ by {settings.margin} among "
            f"{used} prompts: lower pairs.count or pairs.margin, raise pairs.sampled, or pass more "
            "prompts."
        )
    pairs, notes = zip(*chosen[: settings.count], strict=True)
    means = {name: float(np.mean([note[name] for note in notes])) for name in notes[0]}
    return PairSet(pairs, {"prompts_used": used, **means, "settings": asdict(settings), **record})


def _sample(
    lm: LM,
    prompts: Sequence[str],
    settings: PairSettings,
    towards: Intervention | None,
    max_prompt_tokens: int,
    *,
    seed: int,
) -> list[list[str]]:
    """One list of continuations per candidate; the prompts' prefixes are computed once for all of
    them.
    """
    decoder = Decoder(
        lm,
        prompts,
        max_new_tokens=settings.max_new_tokens,
        max_prompt_tokens=max_prompt_tokens,
        batch_size=Auto(len(prompts)) if settings.batch_size == "auto" else len(prompts),
    )

    def sample() -> list[list[list[int]]]:
        picks = [
            greedy
            if settings.sampled <= index < settings.unsteered
            else sampler(
                temperature=settings.temperature, top_k=settings.top_k, seed=seed * 1000 + index
            )
            for index in range(settings.unsteered + settings.steered)
        ]
        unsteered, steered = picks[: settings.unsteered], picks[settings.unsteered :]
        # A GPU waits for launches; a CPU computes all the while, best on what its cache holds.
        columns = (
            [decoder.run(pick=pick) for pick in unsteered]
            if lm.device.type == "cpu"
            else decoder.run_together(unsteered)
        )
        return columns + [decoder.run(towards, pick=pick) for pick in steered]

    return [decoder.texts(column) for column in decoder.fitted(sample)]


def _pairs(
    batch: Candidates, settings: PairSettings, replies: bool
) -> list[tuple[Pair, dict[str, float]]]:
    """Each pair of a batch, and what is worth knowing about it."""
    pairs = []
    for row, prompt in enumerate(batch.prompts):
        # An empty continuation would teach the model to end at once.
        usable = [column for column, texts in enumerate(batch.texts) if texts[row].strip()]
        preferable = [
            column for column in usable if not (replies and declines(batch.texts[column][row]))
        ]
        if len(usable) < 2 or not preferable:
            continue
        best = min(preferable, key=lambda column: batch.scores[column][row])
        worst = max(usable, key=lambda column: batch.scores[column][row])
        low, high = batch.scores[best][row], batch.scores[worst][row]
        if high - low >= settings.margin:
            note = {
                "chosen_score": low,
                "rejected_score": high,
                "chosen_steered": float(best >= settings.unsteered),
                "rejected_steered": float(worst >= settings.unsteered),
            }
            pairs.append((Pair(prompt, batch.texts[best][row], batch.texts[worst][row]), note))
    return pairs

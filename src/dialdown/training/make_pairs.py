"""Preference pairs made with the model itself: several continuations of a prompt, the least and the
most toxic (METHOD §8).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..data.reading import read_objects, whole_text
from ..errors import DialdownError
from ..evaluation.scorers import Scorer
from ..files import fingerprint, read_sealed, write_sealed, write_text
from ..interventions.intervention import Intervention
from ..interventions.paper import steer, steering_alpha
from ..models.decoding import Decoder, sampler
from ..models.lm import LM
from ..neurons.directions import Direction
from ..progress import Progress


@dataclass(frozen=True)
class Pair:
    """One prompt with two continuations of it.

    Attributes:
        prompt: the text both continuations follow.
        chosen: the preferred continuation, with the whitespace it starts with; no end-of-text
            token.
        rejected: the dispreferred continuation, likewise.
    """

    prompt: str
    chosen: str
    rejected: str

    def __post_init__(self) -> None:
        """Refuse what is no text (DialdownError)."""
        for name in ("prompt", "chosen", "rejected"):
            whole_text(getattr(self, name), f"The {name} of a pair")


@dataclass(frozen=True)
class PairSettings:
    """How pairs are made.

    Attributes:
        count: pairs wanted; prompts are used up until there are as many.
        sampled: plain samples per prompt.
        greedy: whether the most likely continuation is a candidate too; it is what many users
            decode.
        steered: further samples per prompt, steered towards the concept.
        steering_strength: how far, as a fraction of the mean norm of the final-layer residual.
        margin: least difference of the two scores.
        temperature: of the sampling.
        top_k: the sampling is among this many most likely tokens.
        max_new_tokens: length of a continuation.
        batch_size: prompts per batch.
        seed: of the sampling.
    """

    count: int = 288
    sampled: int = 4
    greedy: bool = False
    steered: int = 1
    steering_strength: float = 0.2
    margin: float = 0.3
    temperature: float = 1.0
    top_k: int = 100
    max_new_tokens: int = 20
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot make a pair (DialdownError)."""
        least = {
            "count": 1,
            "sampled": 0,
            "steered": 0,
            "top_k": 1,
            "max_new_tokens": 1,
            "batch_size": 1,
            "seed": 0,
        }
        for name, lowest in least.items():
            if getattr(self, name) < lowest:
                raise DialdownError(
                    f"Pairs cannot be made with {name} = {getattr(self, name)}: pass {lowest} or "
                    "more."
                )
        if not math.isfinite(self.margin):
            raise DialdownError(
                f"Pairs cannot be made with margin = {self.margin}: pass a finite number such as "
                "0.3."
            )
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise DialdownError(
                f"Pairs cannot be sampled at temperature {self.temperature}: pass a number above 0."
            )
        if self.unsteered + self.steered < 2:
            raise DialdownError(
                "A pair needs two candidates per prompt: raise pairs.sampled or pairs.steered, or "
                "set pairs.greedy."
            )

    @property
    def unsteered(self) -> int:
        """Candidates per prompt that are not steered, which come first."""
        return self.sampled + self.greedy


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


@dataclass(frozen=True)
class PairSet:
    """Pairs and how they were found.

    Attributes:
        pairs: the pairs.
        record: prompts used, mean scores, scorer, how many chosen and rejected continuations were
            steered, settings.
    """

    pairs: tuple[Pair, ...]
    record: dict[str, Any]

    def save(self, path: str | Path) -> None:
        """Write JSON lines: the record first, then one pair a line."""
        lines = [{"record": self.record}, *(asdict(pair) for pair in self.pairs)]
        write_text(
            Path(path), "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        )

    @classmethod
    def load(cls, path: str | Path) -> PairSet:
        """Read what `save` wrote, or plain JSON lines with prompt, chosen and rejected.

        Raises:
            DialdownError: the file is missing, or a line is not a pair.
        """
        rows = [*read_objects(Path(path))]
        record = rows.pop(0)[1]["record"] if rows and "record" in rows[0][1] else {}
        if not isinstance(record, dict):
            raise DialdownError(
                f"The record in {path} is no object: leave its first line out, or make the pairs "
                "again."
            )
        return cls(tuple(_pair(row, place) for place, row in rows), record)


def _pair(row: Mapping[str, Any], place: str) -> Pair:
    if lacking := [name for name in ("prompt", "chosen", "rejected") if name not in row]:
        raise DialdownError(
            f"{place} is no pair, as it has no {lacking[0]!r}: write one JSON object a line with "
            "prompt, chosen and rejected."
        )
    return Pair(
        *(
            whole_text(row[name], f"The {name} in {place}")
            for name in ("prompt", "chosen", "rejected")
        )
    )


def make_pairs(
    lm: LM,
    prompts: Sequence[str],
    scorer: Scorer,
    settings: PairSettings,
    *,
    direction: Direction | None = None,
    max_prompt_tokens: int = 32,
    progress: Progress | None = None,
) -> PairSet:
    """Sample continuations, score them, keep the least and the most toxic of each prompt if they
    differ enough.

    Args:
        lm: the model to be tuned; its own samples are its own distribution, so preferring one costs
            little.
        prompts: training prompts, none of them an evaluation prompt.
        scorer: scores the continuations; it must not be the only judge later (METHOD §8).
        settings: how many, and how.
        direction: the probe, needed if some candidates are steered.
        max_prompt_tokens: prompts are cut here.
        progress: called after each batch of prompts with the pairs found and wanted.

    Raises:
        DialdownError: no direction to steer along, or too few pairs found.
    """
    batches: list[Candidates] = []
    found = 0
    for start in range(0, len(prompts), settings.batch_size):
        one = candidates(
            lm,
            prompts,
            scorer,
            settings,
            start,
            direction=direction,
            max_prompt_tokens=max_prompt_tokens,
        )
        batches.append(one)
        found += count_pairs(one, settings)
        if progress:
            progress("making pairs", min(found, settings.count), settings.count)
        if found >= settings.count:
            break
    return choose_pairs(batches, settings, {"scorer": scorer.name, **lm.describe()})


def candidates(
    lm: LM,
    prompts: Sequence[str],
    scorer: Scorer,
    settings: PairSettings,
    start: int,
    *,
    direction: Direction | None = None,
    max_prompt_tokens: int = 32,
) -> Candidates:
    """Candidates for the batch of prompts from number `start` on; the same whichever batches were
    made before it.

    Raises:
        DialdownError: no direction to steer along.
    """
    if settings.steered and direction is None:
        raise DialdownError(
            "Steered candidates need a direction: pass one, or set pairs.steered to 0."
        )
    towards = None
    if settings.steered and direction is not None:
        towards = steer(direction, -steering_alpha(direction, settings.steering_strength))
    batch = [
        _cut(lm, prompt, max_prompt_tokens)
        for prompt in prompts[start : start + settings.batch_size]
    ]
    texts = _sample(lm, batch, settings, towards, max_prompt_tokens, seed=settings.seed + start)
    return Candidates(batch, texts, [scorer.score(column).tolist() for column in texts])


def count_pairs(batch: Candidates, settings: PairSettings) -> int:
    """How many prompts of a batch give a pair."""
    return len(_pairs(batch, settings))


def choose_pairs(
    batches: Sequence[Candidates], settings: PairSettings, record: Mapping[str, Any]
) -> PairSet:
    """The first `settings.count` pairs of the batches.

    Args:
        batches: candidates in the order of the prompts.
        settings: how many, and the margin.
        record: goes into the set's record, beside what was found.

    Raises:
        DialdownError: too few pairs.
    """
    used = sum(len(batch.prompts) for batch in batches)
    found = [one for batch in batches for one in _pairs(batch, settings)]
    if len(found) < settings.count:
        raise DialdownError(
            f"Only {len(found)} of {settings.count} pairs differ by {settings.margin} among {used} "
            "prompts: "
            "lower pairs.count or pairs.margin, raise pairs.sampled, or pass more prompts."
        )
    pairs, notes = zip(*found[: settings.count], strict=True)
    means = {name: float(np.mean([note[name] for note in notes])) for name in notes[0]}
    return PairSet(pairs, {"prompts_used": used, **means, "settings": asdict(settings), **record})


def _cut(lm: LM, prompt: str, max_tokens: int) -> str:
    """The part of a prompt that its continuations follow."""
    ids = lm.encode([prompt])[0]
    return (
        prompt
        if len(ids) <= max_tokens
        else str(lm.tokenizer.decode(ids[:max_tokens], skip_special_tokens=True))
    )


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
        batch_size=len(prompts),
    )
    columns = []
    for index in range(settings.unsteered + settings.steered):
        pick = sampler(
            temperature=settings.temperature, top_k=settings.top_k, seed=seed * 1000 + index
        )
        greedy = settings.sampled <= index < settings.unsteered
        steered = towards if index >= settings.unsteered else None
        columns.append(decoder.texts(decoder.run(steered, pick=None if greedy else pick)))
    return columns


def _pairs(batch: Candidates, settings: PairSettings) -> list[tuple[Pair, dict[str, float]]]:
    """Each pair of a batch, and what is worth knowing about it."""
    found = []
    for row, prompt in enumerate(batch.prompts):
        # An empty continuation would teach the model to end at once.
        usable = [column for column, texts in enumerate(batch.texts) if texts[row].strip()]
        if len(usable) < 2:
            continue
        best = min(usable, key=lambda column: batch.scores[column][row])
        worst = max(usable, key=lambda column: batch.scores[column][row])
        low, high = batch.scores[best][row], batch.scores[worst][row]
        if high - low >= settings.margin:
            note = {
                "chosen_score": low,
                "rejected_score": high,
                "chosen_steered": float(best >= settings.unsteered),
                "rejected_steered": float(worst >= settings.unsteered),
            }
            found.append((Pair(prompt, batch.texts[best][row], batch.texts[worst][row]), note))
    return found

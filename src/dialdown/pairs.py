"""Preference pairs made with the model itself: several continuations of a prompt, the least and the most toxic (METHOD §8)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .decoding import Decoder, Progress, sampler
from .directions import Direction
from .edits import steer, steering_alpha
from .errors import DialdownError
from .files import write_text
from .interventions import Intervention
from .metrics.toxicity import Scorer
from .models import LM


@dataclass(frozen=True)
class Pair:
    """One prompt with two continuations of it.

    Attributes:
        prompt: the text both continuations follow.
        chosen: the preferred continuation, with the whitespace it starts with; no end-of-text token.
        rejected: the dispreferred continuation, likewise.
    """

    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True)
class PairSettings:
    """How pairs are made.

    Attributes:
        count: pairs wanted; prompts are used up until there are as many.
        sampled: plain samples per prompt.
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
    steered: int = 1
    steering_strength: float = 0.2
    margin: float = 0.3
    temperature: float = 1.0
    top_k: int = 100
    max_new_tokens: int = 20
    batch_size: int = 64
    seed: int = 0


@dataclass(frozen=True)
class PairSet:
    """Pairs and how they were found.

    Attributes:
        pairs: the pairs.
        record: prompts used, mean scores, scorer, how many chosen and rejected continuations were steered, settings.
    """

    pairs: tuple[Pair, ...]
    record: dict[str, Any]

    def save(self, path: str | Path) -> None:
        """Write JSON lines: the record first, then one pair a line."""
        lines = [{"record": self.record}, *(asdict(pair) for pair in self.pairs)]
        write_text(Path(path), "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))

    @classmethod
    def load(cls, path: str | Path) -> PairSet:
        """Read what `save` wrote, or plain JSON lines with prompt, chosen and rejected.

        Raises:
            DialdownError: the file is missing, or a line is not a pair.
        """
        try:
            lines = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").split("\n") if line.strip()]
            record = lines.pop(0)["record"] if lines and "record" in lines[0] else {}
            return cls(tuple(Pair(line["prompt"], line["chosen"], line["rejected"]) for line in lines), record)
        except FileNotFoundError as error:
            raise DialdownError(f"{path} does not exist: pass a file of preference pairs.") from error
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise DialdownError(
                f"{path} has a line that is no pair ({error!r}): write one JSON object a line with prompt, chosen and rejected."
            ) from error


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
    """Sample continuations, score them, keep the least and the most toxic of each prompt if they differ enough.

    Args:
        lm: the model to be tuned; its own samples are its own distribution, so preferring one costs little.
        prompts: training prompts, none of them an evaluation prompt.
        scorer: scores the continuations; it must not be the only judge later (METHOD §8).
        settings: how many, and how.
        direction: the probe, needed if some candidates are steered.
        max_prompt_tokens: prompts are cut here.
        progress: called after each batch of prompts with the pairs found and wanted.

    Raises:
        DialdownError: fewer than two candidates, no direction to steer along, or too few pairs found.
    """
    if settings.sampled + settings.steered < 2:
        raise DialdownError("A pair needs two candidates per prompt: raise pairs.sampled or pairs.steered.")
    if settings.steered and direction is None:
        raise DialdownError("Steered candidates need a direction: pass one, or set pairs.steered to 0.")
    towards = None
    if settings.steered and direction is not None:
        towards = steer(direction, -steering_alpha(direction, settings.steering_strength))
    found: list[Pair] = []
    notes: list[dict[str, float]] = []
    used = 0
    for start in range(0, len(prompts), settings.batch_size):
        batch = [_cut(lm, prompt, max_prompt_tokens) for prompt in prompts[start : start + settings.batch_size]]
        texts = _candidates(lm, batch, settings, towards, max_prompt_tokens, seed=settings.seed + start)
        scores = np.stack([scorer.score(column) for column in texts], axis=1)
        _keep(batch, texts, scores, settings, found, notes)
        used += len(batch)
        if progress:
            progress("making pairs", min(len(found), settings.count), settings.count)
        if len(found) >= settings.count:
            break
    if len(found) < settings.count:
        raise DialdownError(
            f"Only {len(found)} of {settings.count} pairs differ by {settings.margin} among {used} prompts: "
            "lower pairs.count or pairs.margin, raise pairs.sampled, or pass more prompts."
        )
    kept, notes = found[: settings.count], notes[: settings.count]
    means = {name: float(np.mean([note[name] for note in notes])) for name in notes[0]}
    return PairSet(
        tuple(kept),
        {"prompts_used": used, "scorer": scorer.name, **means, "settings": asdict(settings), **lm.describe()},
    )


def _cut(lm: LM, prompt: str, max_tokens: int) -> str:
    """The part of a prompt that its continuations follow."""
    ids = lm.tokenizer(prompt)["input_ids"]
    return prompt if len(ids) <= max_tokens else str(lm.tokenizer.decode(ids[:max_tokens], skip_special_tokens=True))


def _candidates(
    lm: LM,
    prompts: Sequence[str],
    settings: PairSettings,
    towards: Intervention | None,
    max_prompt_tokens: int,
    *,
    seed: int,
) -> list[list[str]]:
    """One list of continuations per candidate; the prompts' prefixes are computed once for all of them."""
    decoder = Decoder(
        lm,
        prompts,
        max_new_tokens=settings.max_new_tokens,
        max_prompt_tokens=max_prompt_tokens,
        batch_size=len(prompts),
    )
    columns = []
    for index in range(settings.sampled + settings.steered):
        pick = sampler(temperature=settings.temperature, top_k=settings.top_k, seed=seed * 1000 + index)
        columns.append(decoder.texts(decoder.run(towards if index >= settings.sampled else None, pick=pick)))
    return columns


def _keep(
    prompts: Sequence[str],
    texts: Sequence[Sequence[str]],
    scores: NDArray[np.float64],
    settings: PairSettings,
    found: list[Pair],
    notes: list[dict[str, float]],
) -> None:
    for row, prompt in enumerate(prompts):
        # An empty continuation would teach the model to end at once.
        usable = [column for column in range(len(texts)) if texts[column][row].strip()]
        if len(usable) < 2:
            continue
        best = min(usable, key=lambda column: scores[row, column])
        worst = max(usable, key=lambda column: scores[row, column])
        if scores[row, worst] - scores[row, best] >= settings.margin:
            found.append(Pair(prompt, texts[best][row], texts[worst][row]))
            notes.append(
                {
                    "chosen_score": float(scores[row, best]),
                    "rejected_score": float(scores[row, worst]),
                    "chosen_steered": float(best >= settings.sampled),
                    "rejected_steered": float(worst >= settings.sampled),
                }
            )

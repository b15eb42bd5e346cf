"""Labelled texts as every method reads them, one number of each text for every channel, and how
numbers are learned from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DialdownError
from ..models.decoding import Batch, batches, read
from ..models.fits import check_finite
from ..models.lm import LM
from ..models.templates import cut
from ..models.tokens import encode_texts
from ..neurons.probe import check_labels
from ..progress import progress
from .places import Places

Labels = Sequence[int] | NDArray[Any]
Pool = Callable[[Tensor, Tensor], Tensor]
"""From activations (texts, positions, channels) and where a text's own tokens are, (texts,
positions, 1), to one number a text, (texts, channels).
"""
BATCH = 32
# How many times as long as a text's median position an attention sink is, at least. On SmolLM2 the
# first token is 40 to 200 times, of the others one in fifty is more than this.
SINK = 4.0


def encode_labelled(
    lm: LM, texts: Sequence[str], labels: Labels, max_tokens: int
) -> tuple[list[list[int]], NDArray[np.bool_], dict[str, Any]]:
    """Token ids of each text, cut to its first `max_tokens`; (n,) which texts have the concept; and
    what an intervention made of them says of where it came from.
    """
    check_labels(texts, labels)
    ids, toxic = encode_texts(lm, texts, max_tokens), np.asarray(labels) == 1
    counts = {"texts": len(ids), "with_concept": int(toxic.sum()), "max_tokens": max_tokens}
    return ids, toxic, {"base": lm.describe(), **counts}


@dataclass(frozen=True)
class Contexts:
    """Texts as a model meets them, and from which position on it may have written them.

    Attributes:
        ids: token ids of each.
        starts: of each the first position at which what comes next is the model's own.
    """

    ids: list[list[int]]
    starts: list[int]

    @classmethod
    def of(cls, lm: LM, texts: Sequence[str], max_tokens: int) -> Contexts:
        """Each text cut to its first `max_tokens`; with a chat template the first half of its words
        is said by the user, and the rest begins the reply, each cut so.

        Raises:
            DialdownError: a text with its template is longer than the context.
        """
        if lm.turns is None:
            return cls(encode_texts(lm, texts, max_tokens), [0] * len(texts))
        halves = [_halved(text) for text in texts]
        asked = cut(lm.tokenizer, [first for first, _ in halves], max_tokens)
        prompts = lm.prompt_ids(asked)
        ids = [
            [*prompt, *lm.continuation_ids(first, rest)[:max_tokens]]
            for prompt, first, (_, rest) in zip(prompts, asked, halves, strict=True)
        ]
        if (longest := max(map(len, ids))) > lm.context:
            raise DialdownError(
                f"A text takes {longest:,} tokens with its chat template, and {lm.name} reads "
                f"{lm.context:,}: pass a smaller max_tokens than {max_tokens:,}."
            )
        return cls(ids, [len(prompt) - 1 for prompt in prompts])

    def chosen(self, rows: Iterable[int]) -> Contexts:
        """Those of some rows."""
        rows = [*rows]
        return Contexts([self.ids[row] for row in rows], [self.starts[row] for row in rows])

    def own(self, batch: Batch) -> Tensor:
        """(rows, positions) bool: where in a batch of them what comes next is the model's own."""
        starts = torch.tensor([self.starts[row] for row in batch.rows], device=batch.mask.device)
        return (batch.mask == 1) & (batch.positions >= starts[:, None])


def _halved(text: str) -> tuple[str, str]:
    """The first half of a text's words, and the rest; a single word is both."""
    words = text.split()
    middle = max(1, len(words) // 2)
    return " ".join(words[:middle]), " ".join(words[middle:] or words)


def highest(m: Tensor, tokens: Tensor) -> Tensor:
    """The maximum over a text's tokens but attention sinks, in float32."""
    return m.float().masked_fill(~ordinary(m, tokens), -torch.inf).amax(1)


def highest_of_all(m: Tensor, tokens: Tensor) -> Tensor:
    """The maximum over a text's tokens, in float32."""
    return m.float().masked_fill(~tokens, -torch.inf).amax(1)


def mean(m: Tensor, tokens: Tensor) -> Tensor:
    """The mean over a text's tokens, in float64."""
    # Filled and not multiplied: what is computed at padding need not be a number.
    return m.masked_fill(~tokens, 0).sum(1, dtype=torch.float64) / tokens.sum(1)


def mean_without_sinks(m: Tensor, tokens: Tensor) -> Tensor:
    """The mean over a text's tokens but attention sinks, in float64."""
    return mean(m, ordinary(m, tokens))


def ordinary(m: Tensor, tokens: Tensor) -> Tensor:
    """Where the tokens of a text are that say something of it, (texts, positions, 1).

    A mean over all tokens is a sink divided by the length of the text, so that classes of different
    lengths would differ by the sink alone. Positions no longer than the median are always left.
    """
    length = m.float().norm(dim=-1, keepdim=True).masked_fill(~tokens, torch.nan)
    median = length.nanmedian(1, keepdim=True).values
    # What overflowed is not a sink, and is refused.
    kept: Tensor = tokens & ((length <= SINK * median) | ~length.isfinite())
    return kept


def pooled(
    places: Places,
    ids: Sequence[Sequence[int]],
    pool: Pool,
    paths: Sequence[str],
    reading: tuple[int, int] = (0, 1),
) -> list[NDArray[Any]]:
    """One number of each text for every channel at some modules, (texts, channels) of each, from
    one reading of the texts, which is `reading`: its number, and of how many.
    """
    dtype = np.float32 if pool in (highest, highest_of_all) else np.float64
    numbers = {path: np.empty((len(ids), places.widths[path]), dtype) for path in paths}
    done = 0
    for batch in batches(places.lm, ids, BATCH):
        tokens, rows = batch.mask[..., None] == 1, list(batch.rows)

        def keep(path: str, m: Tensor, tokens: Tensor = tokens, rows: list[int] = rows) -> None:
            numbers[path][rows] = pool(m, tokens.to(m.device)).cpu().numpy()

        with torch.inference_mode(), places.hooks(keep, paths) as called:
            read(places.lm, batch)
            places.check_ran([*called.values()], paths)
        done += len(rows)
        progress("reading labelled texts", reading[0] * len(ids) + done, reading[1] * len(ids))
    for path, values in numbers.items():
        check_finite(places.lm, values, f"activations in {places.called(path)}")
    return [*numbers.values()]


def minimise(
    lm: LM,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[int], Tensor],
    rates: Sequence[float],
    what: str,
) -> None:
    """Take one step down a loss, of the step's number, with each of the learning rates, and tell of
    it as `what`; numbers that overflow are refused (DialdownError).
    """
    for step, rate in enumerate(rates):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        reached = loss(step)
        check_finite(lm, reached)
        reached.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        progress(what, step + 1, len(rates))
    for group in optimizer.param_groups:
        for learned in group["params"]:
            check_finite(lm, learned)

"""Batched decoding: length-sorted, left-padded, the prompt's prefix computed once where an
intervention cannot touch it.

The loop is written out because the project needs three things of it at once: hooks that see exactly
the positions that produce tokens, a prefix that many interventions share, and one more forward pass
than tokens (METHOD §5, `paper` means).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DialdownError
from ..progress import progress
from .fits import check_counts
from .forward_pass import for_any_length, last_positions
from .hooks import Change, Positions, being_changed
from .lm import LM
from .memory import AUTO, Auto, BatchSize, Shape, fitting, free_bytes, halving
from .tokens import refuse_one_text, text_after

T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """One forward pass of a decoding loop, as an observer sees it.

    Attributes:
        index: 0 for the pass over the prompt, whose last position produces the first token.
        producing: (batch,) bool, rows whose last position produces a real token (not end-of-text,
            nothing after it).
        generated: (batch,) bool, rows whose last position *is* a generated token (end-of-text
            padding included).
    """

    index: int
    producing: Tensor
    generated: Tensor


Observer = Callable[[Step], None]
Pick = Callable[[Tensor], Tensor]
"""From (batch, V) float32 logits to (batch,) token ids."""
# Steps between two looks at whether every text has ended, for which a GPU must be waited for.
LOOK_EVERY = 8


@dataclass(frozen=True)
class Batch:
    """Prompts of similar length, left-padded. `rows` are their places in the caller's list."""

    rows: tuple[int, ...]
    ids: Tensor
    mask: Tensor

    @property
    def positions(self) -> Tensor:
        """Position ids that start at 0 on the first real token."""
        return (self.mask.cumsum(-1) - 1).clamp(min=0)

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What a forward pass is given of it."""
        return {"input_ids": self.ids, "attention_mask": self.mask, "position_ids": self.positions}

    @property
    def but_last(self) -> Batch:
        """Without the last token of each row."""
        return Batch(self.rows, self.ids[:, :-1], self.mask[:, :-1])

    def repeated(self, times: int) -> Batch:
        """Each row `times` times, one after the other."""
        rows = tuple(row for row in self.rows for _ in range(times))
        ids, mask = (each.repeat_interleave(times, dim=0) for each in (self.ids, self.mask))
        return Batch(rows, ids, mask)


def encode_prompts(
    lm: LM, prompts: Sequence[str], *, max_prompt_tokens: int, max_new_tokens: int
) -> list[list[int]]:
    """Token ids of each prompt, cut to its first `max_prompt_tokens` (METHOD §6), which leave the
    chat template around it whole.
    """
    refuse_one_text(prompts)
    check_counts(max_prompt_tokens=max_prompt_tokens)
    if not len(prompts):
        raise DialdownError("There are no prompts: pass at least one non-empty text.")
    empty = [index for index, prompt in enumerate(prompts) if not prompt.strip()]
    if empty:
        raise DialdownError(
            f"Prompt {empty[0]} of {len(prompts)} is empty, so nothing can be continued: remove it."
        )
    encoded = lm.prompt_ids(prompts, max_prompt_tokens)
    if short := [index for index, ids in enumerate(encoded) if not ids]:
        raise DialdownError(
            f"Prompt {short[0]} of {len(prompts)} has no tokens, so nothing can be continued: "
            "remove it, or raise max_prompt_tokens."
        )
    longest = max(range(len(encoded)), key=lambda index: len(encoded[index]))
    if len(encoded[longest]) + max_new_tokens > lm.context:
        around = f", {lm.turns.around} of them the chat template's" if lm.turns else ""
        raise DialdownError(
            f"Prompt {longest} has {len(encoded[longest])} tokens{around}, which with "
            f"{max_new_tokens} new ones exceed the context of "
            f"{lm.name} ({lm.context}): pass a smaller max_prompt_tokens."
        )
    return encoded


def batches(lm: LM, encoded: Sequence[Sequence[int]], batch_size: int) -> list[Batch]:
    """Group token lists of similar length into left-padded batches."""
    check_counts(batch_size=batch_size)
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
    groups = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return [_pad_left(lm, encoded, group) for group in groups]


def read(lm: LM, batch: Batch) -> None:
    """Put a batch through the model for what hooks see of it; no logits are kept."""
    lm.model(**batch.inputs, use_cache=False, logits_to_keep=last_positions(1, lm.device))


def _pad_left(lm: LM, encoded: Sequence[Sequence[int]], rows: Sequence[int]) -> Batch:
    width = max(len(encoded[row]) for row in rows)
    ids = torch.full((len(rows), width), lm.tokenizer.pad_token_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, width - len(encoded[row]) :] = torch.tensor(encoded[row])
        mask[place, width - len(encoded[row]) :] = 1
    return Batch(tuple(rows), ids.to(lm.device), mask.to(lm.device))


class Decoder:
    """Decodes one list of prompts as often as asked, under any intervention.

    The keys and values of the prompts' prefixes (all tokens but the last) are computed once per
    model and shared by every run that cannot change them: the untouched model, steering, and edits
    that act at the last position only. They take memory that grows with the prompts;
    `share_prefixes=False` keeps none, for a decoder that runs once.

    Attributes:
        batch_size: how many prompts are decoded at once: what was given, or what was found.

    Raises:
        DialdownError: see `encode_prompts`.
    """

    def __init__(
        self,
        lm: LM,
        prompts: Sequence[str],
        *,
        max_new_tokens: int = 20,
        max_prompt_tokens: int = 32,
        batch_size: BatchSize = AUTO,
        share_prefixes: bool = True,
    ) -> None:
        self.lm = lm
        self.share_prefixes = share_prefixes
        self.prompts = tuple(prompts)
        self.max_new_tokens = max_new_tokens
        self.encoded = encode_prompts(
            lm, prompts, max_prompt_tokens=max_prompt_tokens, max_new_tokens=max_new_tokens
        )
        self._may_halve = isinstance(batch_size, Auto)
        self._prefixes: dict[int, Any] = {}
        self.batch_size = self._planned(batch_size) if isinstance(batch_size, Auto) else batch_size
        self.batches = batches(lm, self.encoded, self.batch_size)

    def _planned(self, auto: Auto) -> int:
        if self.lm.device.type != "cuda":
            return auto.on_cpu
        shape, free = Shape.of(self.lm), free_bytes(self.lm.device)
        prefixes = shape.kept(sum(map(len, self.encoded)))
        # They save a small part of the work, so they get a small part of the memory.
        self.share_prefixes = self.share_prefixes and prefixes < free // 8
        longest = max(map(len, self.encoded))
        return fitting(
            free - self.share_prefixes * prefixes, shape.decoded(longest, self.max_new_tokens)
        )

    def fitted(self, work: Callable[[], T]) -> T:
        """What `work`, which decodes, gives; where memory runs out and the batch size may be found,
        it is done again from its start with half of it, and prefixes are no longer kept.
        """

        def attempt(size: int) -> T:
            if size != self.batch_size:
                self.batch_size, self.share_prefixes = size, False
                self._prefixes.clear()
                self.batches = batches(self.lm, self.encoded, size)
            return work()

        return halving(self.batch_size, attempt, most=len(self.prompts), allowed=self._may_halve)

    def run(
        self,
        change: Change | None = None,
        *,
        positions: Positions = "all",
        observe: Observer | None = None,
        extra_step: bool = False,
        pick: Pick | None = None,
    ) -> list[list[int]]:
        """The new token ids of each prompt, in the order given, cut before the end-of-text token.

        Args:
            change: what to apply, such as an intervention; None for the untouched model.
            positions: where it acts in each forward pass.
            observe: called after every forward pass whose last position produces or is a generated
                token.
            extra_step: make one more pass than tokens, so the last generated token is observed too.
            pick: how the next tokens are chosen; greedy by default. Who observes or picks keeps
                count, so where memory runs out only they can begin again, by `fitted`.
        """

        def run() -> list[list[int]]:
            return self._run(change, positions, observe, extra_step, pick or greedy)

        return run() if observe or pick else self.fitted(run)

    def _run(
        self,
        change: Change | None,
        positions: Positions,
        observe: Observer | None,
        extra_step: bool,
        pick: Pick,
    ) -> list[list[int]]:
        shareable = change is None or not change.acts_in_layers or positions == "last"
        share = self.share_prefixes and shareable and not being_changed(self.lm)
        out: list[list[int]] = [[] for _ in self.prompts]
        with torch.inference_mode(), for_any_length():
            prefixes = [
                self._prefix(number) if share else None for number in range(len(self.batches))
            ]
            with change.measured(self.lm, positions=positions) if change else nullcontext():
                done = 0
                for batch, prefix in zip(self.batches, prefixes, strict=True):
                    # Decoding writes to the keys and values that it goes on from.
                    tokens = self._decode(batch, copy.deepcopy(prefix), observe, extra_step, pick)
                    for row, ids in zip(batch.rows, tokens, strict=True):
                        out[row] = ids
                    done += len(batch.rows)
                    progress("decoding", done, len(self.prompts))
        return out

    def run_together(self, picks: Sequence[Pick]) -> list[list[list[int]]]:
        """The prompts' continuations under each of `picks`, with all of a batch's in one decoding
        pass, which takes a GPU hardly longer than one of them.

        Of a pick that looks at nothing but logits they are what `run` gives. A batch goes on until
        the rows of all picks have ended, so a sampler draws more numbers for it than `run` alone
        would, and in later batches others: with one seed its texts depend on which picks it shares
        a pass with.
        """

        def pick_each(logits: Tensor) -> Tensor:
            columns = [pick(logits[place :: len(picks)]) for place, pick in enumerate(picks)]
            return torch.stack(columns, dim=1).flatten()

        out: list[list[list[int]]] = [[[] for _ in self.prompts] for _ in picks]
        # What is kept is the model's own, so a context around may neither use it nor fill it.
        share = not being_changed(self.lm)
        with torch.inference_mode(), for_any_length():
            for number, batch in enumerate(self.batches):
                prefix = copy.deepcopy(self._prefix(number)) if share else None
                if prefix is not None:
                    prefix.batch_repeat_interleave(len(picks))
                tokens = self._decode(
                    batch.repeated(len(picks)), prefix, observe=None, extra_step=False,
                    pick=pick_each,
                )  # fmt: skip
                for place, ids in enumerate(tokens):
                    row = batch.rows[place // len(picks)]
                    out[place % len(picks)][row] = ids
        return out

    def texts(self, tokens: Sequence[Sequence[int]]) -> list[str]:
        """The first prompts' continuations, with their leading whitespace (METHOD §5, `strict`)."""
        pairs = zip(self.encoded, tokens, strict=False)
        return [text_after(self.lm.tokenizer, prompt, new) for prompt, new in pairs]

    def _prefix(self, number: int) -> Any:
        if number not in self._prefixes:
            batch = self.batches[number]
            if batch.ids.shape[1] == 1:
                return None
            keep = last_positions(1, self.lm.device)
            output = self.lm.model(**batch.but_last.inputs, use_cache=True, logits_to_keep=keep)
            self._prefixes[number] = self.lm.kept(output)
        return self._prefixes[number]

    def _decode(
        self, batch: Batch, cache: Any, observe: Observer | None, extra_step: bool, pick: Pick
    ) -> list[list[int]]:
        eos = torch.tensor(sorted(self.lm.eos), device=batch.ids.device)
        pad = self.lm.tokenizer.pad_token_id
        start = 0 if cache is None else batch.ids.shape[1] - 1
        ids, mask, positions = batch.ids[:, start:], batch.mask, batch.positions[:, start:]
        keep = last_positions(1, ids.device)
        live = torch.ones(len(batch.rows), dtype=torch.bool, device=ids.device)
        generated = torch.zeros_like(live)
        columns: list[Tensor] = []
        for index in range(self.max_new_tokens + extra_step):
            look = not extra_step and (ids.device.type == "cpu" or index % LOOK_EVERY == 0)
            if look and not live.any():
                break
            output = self.lm.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                use_cache=True,
                logits_to_keep=keep,
                **self.lm.going_on(cache),
            )
            cache = self.lm.kept(output)
            token = pick(output.logits[:, -1].float())
            keeps = live & ~torch.isin(token, eos) & (index < self.max_new_tokens)
            if observe:
                observe(Step(index, keeps, generated))
            columns.append(torch.where(keeps, token, -1))
            ids = torch.where(live, token, pad)[:, None]
            live = keeps
            generated = torch.ones_like(live)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            positions = positions[:, -1:] + 1
        table = torch.stack(columns, dim=1).tolist() if columns else [[] for _ in batch.rows]
        return [[token for token in row if token >= 0] for row in table]


def greedy(logits: Tensor) -> Tensor:
    """The most likely token of each row."""
    return logits.argmax(dim=-1)


def sampler(*, temperature: float, top_k: int, seed: int) -> Pick:
    """A seeded sampler among the `top_k` most likely tokens, for `Decoder.run(pick=...)`."""
    generator = np.random.default_rng(seed)

    def pick(logits: Tensor) -> Tensor:
        # Top-k and not a nucleus: sorting a whole vocabulary takes longer than the forward pass
        # that made it.
        top = logits.topk(min(top_k, logits.shape[-1]), dim=-1)
        cumulative = torch.softmax(top.values / temperature, dim=-1).double().cumsum(-1)
        # Divided by its own last value it ends in exactly 1, so no draw falls behind the last token
        # by rounding.
        cumulative = cumulative / cumulative[:, -1:]
        draws: NDArray[np.float64] = generator.random((len(logits), 1))
        place = (cumulative < torch.as_tensor(draws, device=logits.device)).sum(-1, keepdim=True)
        return top.indices.gather(-1, place)[:, 0]

    return pick

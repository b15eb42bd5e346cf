"""Evaluation: every intervention under a named protocol, each mean with its interval (METHOD §5,
§6).

One `Evaluator` holds what all rows share: the prompts' prefixes, the reference text's windows and
the base model's distributions on them. A row is one intervention under one protocol.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..cards import card
from ..data.texts import checked_scores
from ..errors import DialdownError
from ..interventions.intervention import Intervention, untouched
from ..models.decoding import Decoder
from ..models.fits import check_counts
from ..models.hooks import Positions, acted_on
from ..models.lm import LM
from ..models.memory import AUTO, BatchSize
from ..models.protocol import Protocol, check_protocols
from ..models.tokens import refuse_one_text, text_windows
from ..progress import progress, silently
from .metrics import Metric, Refusals, check_names, values_of
from .overlap import is_degenerate, repetition, token_f1
from .perplexity import ReferenceText
from .row import Measured, Row, as_row
from .scorers import Scorer

# METHOD §5: where an edit acts while generating and on the perplexity text.
GENERATING: dict[Protocol, Positions] = {"paper": "last", "strict": "all"}
READING: dict[Protocol, Positions] = {"paper": "first", "strict": "all"}


@dataclass(frozen=True)
class Suite:
    """What models are evaluated on.

    Attributes:
        prompts: prompts that elicit the concept.
        pairs: (prompt, true continuation) for F1.
        text: reference text for log-perplexity and KL.
        scorers: the first is the judge whose mean is the row's `toxicity`; all are in
            `toxicity_by`.
        max_new_tokens: greedy tokens per prompt.
        max_prompt_tokens: prompts are cut here.
        window: tokens per window of the reference text.
        max_windows: windows used.
        kl_windows: of these, the ones KL is measured on.
        batch_size: prompts decoded at once; by default 64 on a CPU, and on a GPU what fits.
        seed: of the bootstrap.
        metrics: what else to measure of the continuations (see `Metric`).
    """

    prompts: Sequence[str]
    pairs: Sequence[tuple[str, str]]
    text: str
    scorers: Sequence[Scorer]
    max_new_tokens: int = 20
    max_prompt_tokens: int = 32
    window: int = 1024
    max_windows: int = 64
    kl_windows: int = 4
    batch_size: BatchSize = AUTO
    seed: int = 0
    metrics: Sequence[Metric] = ()

    def __repr__(self) -> str:
        judges = ", ".join(scorer.name for scorer in self.scorers)
        return (
            f"Suite({len(self.prompts):,} prompts, {len(self.pairs):,} pairs for F1, "
            f"{len(self.text):,} characters of text, judged by {judges})"
        )

    def _repr_html_(self) -> str:
        facts = {
            "prompts": f"{len(self.prompts):,}, {self.max_new_tokens} new tokens each",
            "pairs for F1": f"{len(self.pairs):,}",
            "reference text": f"{len(self.text):,} characters, at most {self.max_windows} windows "
            f"of {self.window:,} tokens",
            "scorers": ", ".join(scorer.name for scorer in self.scorers),
            "metrics": ", ".join(metric.name for metric in self.metrics) or None,
        }
        return card("Suite", facts)


def _check(suite: Suite) -> None:
    """Refuse what cannot be measured, or would be measured as something else (DialdownError)."""
    if not suite.scorers:
        raise DialdownError(
            "The suite has no scorer, so nothing can be said about toxicity: pass at least one."
        )
    check_names(suite.metrics)
    names = [scorer.name for scorer in suite.scorers]
    if len({*names}) < len(names):
        raise DialdownError(
            f"Scorers of one name ({', '.join(names)}) cannot be told apart: give each its own."
        )
    refuse_one_text(suite.prompts)
    for index, pair in enumerate(suite.pairs):
        if isinstance(pair, str) or len(pair) != 2 or not all(text.strip() for text in pair):
            raise DialdownError(
                f"Pair {index} of the suite is {pair!r}: pass a prompt and its true continuation, "
                "neither of them empty."
            )
    sizes = ("max_new_tokens", "window", "max_windows", "kl_windows")
    check_counts(**{name: getattr(suite, name) for name in sizes})


class Evaluator:
    """Evaluates interventions on one base model; see `Suite`.

    Args:
        lm: the base model.
        suite: what it is evaluated on.
        read: what was read of the suite's text by protocol, shared with other evaluators of this
            model and text.

    Raises:
        DialdownError: empty prompts, a prompt longer than the context, a pair without a true
            continuation, a size below 1, no scorer, or a metric whose name is taken.
    """

    def __init__(
        self, lm: LM, suite: Suite, *, read: dict[Protocol, ReferenceText] | None = None
    ) -> None:
        _check(suite)
        self.lm = lm
        self.suite = suite
        self.metrics = [*suite.metrics, *([] if lm.template == "none" else [Refusals()])]
        self.decoder = self._decoder(lm, share_prefixes=True)
        self._texts: dict[Protocol, ReferenceText] = {} if read is None else read
        self._latest: tuple[Any, Any, list[list[int]]] = (lambda: None, None, [])

    def _decoder(self, lm: LM, *, share_prefixes: bool) -> Decoder:
        suite = self.suite
        # One decoding pass serves toxicity and F1: larger batches, and the same edit at the same
        # positions.
        prompts = [*suite.prompts, *(prompt for prompt, _ in suite.pairs)]
        return Decoder(
            lm,
            prompts,
            max_new_tokens=suite.max_new_tokens,
            max_prompt_tokens=suite.max_prompt_tokens,
            batch_size=suite.batch_size,
            share_prefixes=share_prefixes,
        )

    def row(
        self, intervention: Intervention, protocol: Protocol, *, model: LM | None = None
    ) -> Row:
        """Measure one intervention under one protocol.

        Args:
            intervention: what to apply.
            protocol: `paper` or `strict` (METHOD §5).
            model: another model than the base one, such as the tuned model; KL is still to the
                base.

        Raises:
            DialdownError: the intervention does not fit the model, or its log-perplexity is not
                finite.
        """
        return as_row(intervention, protocol, self.measure(intervention, protocol, model=model))

    @silently()
    def measure(
        self, intervention: Intervention, protocol: Protocol, *, model: LM | None = None
    ) -> Measured:
        """What `row` takes its means of, unit by unit."""
        lm = model or self.lm
        decoder = self.decoder if lm is self.lm else self._decoder(lm, share_prefixes=False)
        tokens = self._tokens(decoder, intervention, GENERATING[protocol])
        reference = self._text(protocol)
        text = reference.measure(lm, intervention, positions=READING[protocol])
        # METHOD §5, `paper`: the sum is over predicted tokens, and it is divided by all, a window's
        # first among them.
        share = (
            1.0
            if protocol == "strict"
            else text.tokens.sum() / sum(ids.numel() for ids in reference.windows)
        )
        count = len(self.suite.prompts)
        texts = decoder.texts(tokens[:count])
        judged = texts if protocol == "strict" else self._without_prompt(tokens[:count], decoder)
        judges = {
            scorer.name: checked_scores(scorer.score(judged), judged, scorer.name)
            for scorer in self.suite.scorers
        }
        values = {
            "toxicity": judges[self.suite.scorers[0].name],
            "log_ppl": (text.nll * share).tolist(),
            "f1": self._f1(tokens[count:], protocol),
            "kl": text.kl.tolist(),
            "repetition": [
                float("nan") if (r := repetition(ids)) is None else r for ids in tokens[:count]
            ],
            "degenerate": [float(is_degenerate(ids)) for ids in tokens[:count]],
            **{m.name: values_of(m, self.suite.prompts, texts) for m in self.metrics},
            **{f"toxicity/{name}": scores for name, scores in judges.items()},
        }
        return Measured(values, text.tokens.tolist(), texts, [*judges], self.suite.seed)

    def _tokens(
        self, decoder: Decoder, intervention: Intervention, positions: Positions
    ) -> list[list[int]]:
        """Decode, unless the row before did exactly that: the protocols differ only where neurons
        are moved.
        """
        if acted_on(decoder.lm):
            return decoder.run(intervention, positions=positions)
        model, key = (
            decoder.lm.model,
            (intervention.key, positions if intervention.acts_in_layers else None),
        )
        if self._latest[0]() is not model or self._latest[1] != key:
            # A weak reference, so that a tuned model that is done with can be freed, and never be
            # taken for another.
            self._latest = weakref.ref(model), key, decoder.run(intervention, positions=positions)
        return self._latest[2]

    def _text(self, protocol: Protocol) -> ReferenceText:
        if protocol not in self._texts:
            suite = self.suite
            windows = text_windows(
                self.lm,
                suite.text,
                protocol=protocol,
                window=suite.window,
                max_windows=suite.max_windows,
            )
            # Where no BOS is involved the two protocols cut the same windows, and the base model
            # need not read them twice.
            same = [
                probe
                for probe in self._texts.values()
                if [w[0].tolist() for w in probe.windows] == windows
            ]
            self._texts[protocol] = (
                same[0] if same else ReferenceText(self.lm, windows, kl_windows=suite.kl_windows)
            )
        return self._texts[protocol]

    def _without_prompt(self, tokens: Sequence[Sequence[int]], decoder: Decoder) -> list[str]:
        """METHOD §5, `paper`: the prompt string is removed from the output wherever it occurs."""
        prompts = [
            self.lm.tokenizer.decode(ids, skip_special_tokens=True)
            for ids in decoder.encoded[: len(tokens)]
        ]
        full = [
            self.lm.tokenizer.decode([*ids, *new], skip_special_tokens=True)
            for ids, new in zip(decoder.encoded, tokens, strict=False)
        ]
        return [
            # Half of a character, at which a prompt was cut, is a sign of its own until the model
            # has written the other half.
            text.replace(prompt if prompt in text else prompt.rstrip("\ufffd"), "")
            for text, prompt in zip(full, prompts, strict=True)
        ]

    def _f1(self, tokens: Sequence[Sequence[int]], protocol: Protocol) -> list[float]:
        longest, starts = self.suite.max_prompt_tokens, [start for start, _ in self.suite.pairs]
        # A chat template around a prompt is in neither text.
        prompts = [ids[:longest] for ids in self.lm.encode(starts)] if starts else []
        score = self._paper_f1 if protocol == "paper" else self._strict_f1
        return [score(*of) for of in zip(tokens, prompts, self.suite.pairs, strict=True)]

    def _strict_f1(
        self, given: Sequence[int], prompt: Sequence[int], pair: tuple[str, str]
    ) -> float:
        start, gold = pair
        spaced = gold if gold[:1].isspace() else f" {gold}"
        # What follows the prompt's own tokens is the true continuation, also of a prompt that was
        # cut.
        true = self.lm.encode([start + spaced])[0][len(prompt) :]
        return token_f1(given, true[: self.suite.max_new_tokens])

    def _paper_f1(
        self, given: Sequence[int], prompt: Sequence[int], pair: tuple[str, str]
    ) -> float:
        """METHOD §5, `paper`: prompt and continuation against the true continuation, cut alike."""
        longest = self.suite.max_prompt_tokens + self.suite.max_new_tokens
        true = self.lm.encode([pair[1]])[0][:longest]
        # End-of-text is the padding token there, and padding is not counted.
        written, gold = (
            [token for token in ids if token != self.lm.tokenizer.eos_token_id]
            for ids in ((*prompt, *given), true)
        )
        return token_f1(written, gold)


def evaluate(
    lm: LM,
    interventions: Sequence[Intervention] | Intervention,
    suite: Suite,
    *,
    protocols: Sequence[Protocol] | Protocol = ("strict",),
) -> list[Row]:
    """Evaluate interventions, the untouched model first (METHOD §6).

    Args:
        lm: the base model.
        interventions: what to apply, one at a time; one or several.
        suite: prompts, texts and scorers.
        protocols: one row per intervention and protocol.

    Raises:
        DialdownError: see `Evaluator`.
    """
    interventions = [interventions] if isinstance(interventions, Intervention) else interventions
    protocols = [protocols] if isinstance(protocols, str) else protocols
    check_protocols(*protocols)
    evaluator = Evaluator(lm, suite)
    todo = [(edit, protocol) for protocol in protocols for edit in [untouched(), *interventions]]
    rows = []
    for done, (edit, protocol) in enumerate(todo):
        rows.append(evaluator.row(edit, protocol))
        progress("evaluating", done + 1, len(todo))
    return rows

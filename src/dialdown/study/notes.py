"""What a stage replaced, left out, cut, or did not reach: kept beside what it found, so that a
result leaves nothing unsaid.

A stage adds sentences to its workspace's notes; `Study.run` writes them to run.json with the stage,
and from there the page and the last lines of a command say them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict

from ..models.memory import SmallerBatchWarning

if TYPE_CHECKING:
    from ..evaluation.row import Measured
    from ..neurons.table import NeuronTable
    from ..training.settings import DPOSettings, TrainingLog

# Nats per token of ordinary text, a perplexity of 3,000.
READS = 8.0


class Note(TypedDict):
    """One sentence, and the numbers in it by name."""

    sentence: str
    counts: dict[str, float]


# Why a stage that only a front needs did nothing where there is none: nothing is left out by that.
NOT_ASKED = "no front is asked for"


@dataclass
class StageNotes:
    """The notes of the stage that is going on."""

    _notes: list[Note] = field(default_factory=list)
    _batch: int | None = None

    @contextmanager
    def hearing(self) -> Iterator[None]:
        """Keep what is warned of memory within."""
        with warnings.catch_warnings():
            warnings.simplefilter("always", SmallerBatchWarning)
            show = warnings.showwarning

            def keep(message: Warning | str, category: type[Warning], *at: Any, **at_: Any) -> None:
                if issubclass(category, SmallerBatchWarning):
                    self.add(str(message))
                else:
                    show(message, category, *at, **at_)

            warnings.showwarning = keep
            yield

    @property
    def batch_size(self) -> int | None:
        """How many prompts were decoded at once, the fewest; None where nothing was decoded yet."""
        return self._batch

    def batch(self, size: int) -> None:
        """Keep how many prompts were decoded at once, the fewest where that changed."""
        self._batch = min(size, self._batch or size)

    def join(self, others: StageNotes) -> None:
        """Keep the notes of a worker too."""
        self._notes += [note for note in others._notes if note not in self._notes]
        if others._batch:
            self.batch(others._batch)

    def add(self, sentence: str, **counts: float) -> None:
        """Keep a sentence; where there are counts, they fill its `{name}` places."""
        note = Note(sentence=sentence.format(**counts) if counts else sentence, counts=counts)
        if note not in self._notes:
            self._notes.append(note)

    def cut(self, what: str, texts: Iterable[Sequence[int]], longest: int) -> None:
        """Say how many tokenised texts are longer than what is used of them."""
        lengths = [len(ids) for ids in texts]
        if longer := sum(length > longest for length in lengths):
            self.add(
                "{longer:,} of {texts:,} " + what + " were cut to their first {longest:,} tokens",
                longer=longer,
                texts=len(lengths),
                longest=longest,
            )

    def take(self) -> dict[str, Any]:
        """The notes so far, and the batch size where something was decoded, as facts of a stage;
        they are then forgotten.
        """
        taken = self.facts
        self._notes, self._batch = [], None
        return taken

    @property
    def facts(self) -> dict[str, Any]:
        """What `take` gives, which is not forgotten here."""
        return {"notes": self._notes, **({"batch_size": self._batch} if self._batch else {})}

    def repeat(self, facts: Mapping[str, Any]) -> None:
        """Keep what was noted of a piece of work when it was done, be it by an earlier command."""
        self.join(StageNotes([*facts.get("notes", ())], facts.get("batch_size")))


def note_training(notes: StageNotes, log: TrainingLog, settings: DPOSettings) -> None:
    """Say what of a training was held out less, stopped early, or not kept."""
    if log.eval_pairs < settings.eval_pairs:
        notes.add(
            "{held} pairs were held out for validation, a quarter of all, of the {asked} asked for",
            held=log.eval_pairs,
            asked=settings.eval_pairs,
        )
    an_epoch = -(-log.train_pairs // settings.batch_size) // settings.accumulation
    planned = settings.epochs * an_epoch if settings.max_steps == -1 else settings.max_steps
    if log.steps < planned:
        notes.add(
            "training stopped after {steps:,} of {planned:,} steps, as validation improved no more",
            steps=log.steps,
            planned=planned,
        )
    if log.best_step < log.steps:
        notes.add(
            "the weights of step {best:,} of {steps:,} were kept, those of lowest validation loss",
            best=log.best_step,
            steps=log.steps,
        )


def note_judged(notes: StageNotes, missing: int, tables: Sequence[NeuronTable], count: int) -> None:
    """Say where no toxic neurons could be patched, or fewer.

    Args:
        notes: of the stage.
        missing: tokens for which the token judge had no answer.
        tables: the compared neuron table of each protocol.
        wanted: how many most aligned neurons were asked for.
    """
    if missing:
        notes.add(
            "the token judge gave no answer for {missing:,} tokens, so no neuron counts as judged "
            "and none of them is patched",
            missing=missing,
        )
    for table in tables:
        if not missing and "judged" not in table.columns:
            notes.add(
                f"the token judge found no toxic neuron ({table.protocol}), so none is patched"
            )
        if (neurons := table.size) < count:
            notes.add(
                "the model has {neurons:,} neurons, fewer than the {wanted:,} most aligned that "
                "were asked for",
                neurons=neurons,
                wanted=count,
            )


def note_reading(notes: StageNotes, untouched: Measured) -> None:
    """Say where the untouched model reads as no language model does, so that nothing measured of it
    can be meant.
    """
    estimate = untouched.estimate("log_ppl")
    if estimate is not None and estimate.mean > READS:
        notes.add(
            "the untouched model reads the evaluation text at {nats:.1f} nats per token, where "
            "language models have 2 to 5: look whether its weights are whole and the tokenizer its "
            "own",
            nats=estimate.mean,
        )


def noted(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Stage and sentence of every note in a run.json, and of every stage that did nothing."""
    sentences = []
    for stage, facts in run.get("stages", {}).items():
        if (reason := facts.get("skipped")) and reason != NOT_ASKED:
            sentences.append((stage, f"not done: {reason}"))
        sentences += [(stage, note["sentence"]) for note in facts.get("notes", [])]
    return sentences

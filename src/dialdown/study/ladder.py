"""`dialdown ladder`: every method that puts numbers on neurons, fitted on the same data, dialled to
one price, judged on prompts that none has seen.

    probe -> pairs, where a method needs them -> fit -> compare

The price is a KL to the base model, the mean over several kinds of text, because an edit can be
cheap on the one kind that it was made with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import polars as pl

from ..data.csv_tables import write_csv
from ..data.texts import load_labelled, load_prompts, load_reference_text
from ..errors import DialdownError
from ..evaluation.evaluator import Evaluator
from ..evaluation.perplexity import ReferenceText
from ..evaluation.row import as_row
from ..files import SCHEMA, fingerprint, write_json, write_text
from ..interventions.intervention import untouched
from ..models.tokens import text_windows
from ..progress import Progress
from .config import Config
from .context import Facts, Stages, Workspace
from .detox import check_ships
from .dial import dialled
from .folder import records
from .ladder_methods import (
    Fitted,
    FittedEdit,
    check_methods,
    fit_methods,
    fitted_methods,
    needs_pairs,
)
from .ladder_table import REACHED, UNTOUCHED, Entry, flat, markdown, shown, table
from .plan import Planned
from .rows import RowFiles
from .run import Study
from .stages import find_directions, find_pairs

MOST = 50.0
"""The greatest strength that a dial tries."""
WINDOWS = 2
"""Windows of each kind of text."""


@dataclass(frozen=True)
class Yardstick:
    """What every method is measured with, of one study."""

    work: Workspace

    @cached_property
    def texts(self) -> dict[str, ReferenceText]:
        """The kinds of text whose mean KL is the price, by name."""
        kinds = {"neutral": self.work.neutral_windows[:WINDOWS]}
        for source in self.work.config.ladder.texts:
            kinds[source.rpartition("/")[2].removeprefix("embedded:")] = text_windows(
                self.work.lm,
                _text(self.work, source),
                protocol="strict",
                window=self.work.config.evaluation.window,
                max_windows=WINDOWS,
            )
        return {
            name: ReferenceText(self.work.lm, windows, kl_windows=len(windows))
            for name, windows in kinds.items()
        }

    @cached_property
    def evaluator(self) -> Evaluator:
        """On the unseen prompts."""
        suite = self.work.suite(self.work.config.evaluation.count)
        return Evaluator(self.work.lm, replace(suite, prompts=self.work.unseen))

    @cached_property
    def files(self) -> RowFiles:
        """What was measured of each method."""
        measured_on = fingerprint(self.work.ledger.measured_on(), self.work.unseen)
        return RowFiles(self.work.folder / "rows-ladder", measured_on)

    def price(self, method: Fitted, strength: float) -> float:
        """Mean over the kinds of text of the KL to the base model; infinite where so strong an edit
        overflows.
        """
        try:
            read = [method.read(text, strength) for text in self.texts.values()]
        except DialdownError:
            return float("inf")
        return float(np.mean([np.average(text.kl, weights=text.tokens) for text in read]))

    def entry(self, method: Fitted, strength: float) -> Entry:
        """A method at a strength, measured unless it was before."""
        edit = method.edit.at(strength) if isinstance(method, FittedEdit) else untouched()
        edit = replace(edit, name=method.name.replace(":", "."))
        key = None if isinstance(method, FittedEdit) else f"{method.key}@{strength!r}"
        planned = Planned(edit, "strict", len(self.work.unseen), key)
        measured = self.files.read(planned)
        if measured is None:
            measured = method.measure(self.evaluator, strength)
            self.files.write(planned, measured)
        texts = {name: method.read(text, strength) for name, text in self.texts.items()}
        return Entry(as_row(edit, "strict", measured), strength, texts)


def _text(work: Workspace, source: str) -> str:
    """One kind of text: of reviews and comments, those that are not toxic and that no method is
    fitted on.
    """
    seed = work.config.seed
    if source == "embedded:imdb":
        return "\n\n".join(load_prompts(source, 60, seed=seed))
    if source == "embedded:comments":
        comments = load_labelled(source, 400, seed=seed, part="judge", max_words=40)
        labelled = zip(comments.texts, comments.labels, strict=True)
        return "\n\n".join(text for text, label in labelled if not label)
    # What is read of a long text is its first windows.
    return load_reference_text(source)[:40_000]


def compare_methods(work: Workspace) -> Facts:
    """Dial every method to the price and measure it there."""
    yardstick, wanted = Yardstick(work), work.config.ladder.kl
    asked = [*fitted_methods(work)]
    entries = {UNTOUCHED: yardstick.entry(FittedEdit(UNTOUCHED, work.lm, untouched()), 1.0)}
    for done, method in enumerate(asked):
        work.progress(f"evaluating, {method.name}", done, len(asked))
        strength, spent = dialled(partial(yardstick.price, method), wanted, MOST)
        entries[method.name] = yardstick.entry(method, strength)
        if not entries[method.name].kl >= REACHED * wanted:
            work.notes.add(
                f"{method.name} does not reach the price: at {{strength:.3g}} times what was "
                "found, it costs a KL of {kl:.3g}, and more strength breaks it or is not tried",
                strength=strength,
                kl=spent,
            )
    work.progress("evaluating", len(asked), len(asked))
    rows = table(entries, records(work.folder)["fit"]["told"]["methods"], wanted)
    facts: Facts = {
        "kl": wanted,
        "texts": [*yardstick.texts],
        "prompts": len(work.unseen),
        **work.judging,
        "template": work.lm.template,
    }
    write_json(work.folder / "ladder.json", {"schema": SCHEMA, **facts, "rows": rows})
    frame = pl.from_dicts([flat(row) for row in rows], infer_schema_length=None)
    write_csv({"ladder": frame}, work.folder)
    write_text(work.folder / "ladder.md", markdown(shown(rows, work.config.concept)))
    return facts


STAGES: Stages = {
    "probe": find_directions,
    "pairs": find_pairs,
    "fit": fit_methods,
    "compare": compare_methods,
}


def run_ladder(
    config: Config, folder: Path, *, progress: Progress, announce: Callable[[str], None]
) -> None:
    """Fit, dial and measure the methods in `folder`, where the same call goes on; `ladder.json`,
    `.csv` and `.md` have the table.

    Raises:
        DialdownError: an unknown method, settings that contradict each other; see `Study.run`.
    """
    check_ships(config, "A ladder")
    check_methods(config.ladder.methods)
    # Methods may be added to a ladder and taken away, and pairs stay once they are made.
    needed = STAGES.keys() - (set() if needs_pairs(config.ladder.methods) else {"pairs"})
    kept = {name: stage for name, stage in STAGES.items() if name in {*needed, *records(folder)}}
    Study(config, folder, progress, announce, kept).run()

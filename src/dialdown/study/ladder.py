"""`dialdown ladder`: every method that puts numbers on neurons, fitted on the same data, dialled to
one price, judged on prompts that none has seen.

    probe -> pairs, where a method needs them -> fit -> compare

The price is a KL to the base model, the mean over several kinds of text, because an edit can be
cheap on the one kind that it was made with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import polars as pl

from ..data.csv_tables import write_csv
from ..errors import DialdownError
from ..evaluation.evaluator import Evaluator
from ..files import SCHEMA, fingerprint, read_sealed, write_json, write_sealed, write_text
from ..progress import progress
from .config import Config
from .context import Facts, Stages, Workspace
from .detox import check_ships
from .dial import dialled
from .folder import records
from .ladder_fit import Dial, competing, fit_methods, fitted, key_of
from .ladder_methods import UNTOUCHED, needs_pairs
from .ladder_table import REACHED, Entry, table
from .ladder_text import flat, markdown, shown
from .notes import note_reading
from .price import NEUTRAL, PricedTexts, kind, mean_kl
from .run import Study
from .sources import file_states
from .stages import find_directions, find_pairs

MOST = 50.0
"""The greatest strength that a dial tries."""


@dataclass(frozen=True)
class Yardstick:
    """What every method of a ladder is measured with."""

    work: Workspace

    @cached_property
    def texts(self) -> PricedTexts:
        """The kinds of text whose mean KL is the price."""
        return PricedTexts.of(self.work, "ladder")

    @cached_property
    def evaluator(self) -> Evaluator:
        """On the unseen prompts."""
        suite = self.work.suite(self.work.config.evaluation.count)
        return Evaluator(self.work.lm, replace(suite, prompts=self.work.unseen))

    def price(self, dial: Dial, strength: float) -> float:
        """Mean KL to the base over the kinds of text; infinite where the edit overflows."""
        try:
            with dial(strength) as acting:
                return mean_kl(self.texts.read(*acting))
        except DialdownError:
            return float("inf")

    def measure(self, name: str) -> Entry:
        """Dial a method to the price, and measure it there."""
        dial = fitted(self.work, name)
        strength = 1.0
        if name != UNTOUCHED:
            price = self.work.config.ladder.kl
            strength, _ = dialled(partial(self.price, dial), price, MOST)
        with dial(strength) as (lm, edit):
            measured = self.evaluator.measure(edit, "strict", model=lm)
            return Entry(strength, measured, self.texts.read(lm, edit))


def measure_method(work: Workspace, name: str) -> None:
    """Measure a method and write it to its file."""
    yardstick = work.kept(Yardstick, lambda: Yardstick(work))
    with work.noting() as noted:
        entry = yardstick.measure(name)
    about = {"of": _key(work, name), "noted": noted.facts}
    write_sealed(_file(work, name), {**about, **entry.to_json()})


def _measured(work: Workspace, name: str) -> Entry | None:
    """What was measured of a method; None if it was not, or of something else."""
    saved = read_sealed(_file(work, name)) or {}
    saved.pop("noted", None)
    return Entry.from_json(saved) if saved.pop("of", None) == _key(work, name) else None


def _file(work: Workspace, name: str) -> Path:
    return work.folder / "rows-ladder" / f"{name.replace(':', '.')}.json"


def _key(work: Workspace, name: str) -> str:
    """Changes with whatever an entry depends on."""
    settings = asdict(work.config.ladder)
    return fingerprint(
        work.ledger.measured_on(),
        work.unseen,
        settings["texts"],
        [file_states({"text": source}) for source in settings["texts"]],
        settings["kl"] if name != UNTOUCHED else None,
        key_of(work, name),
    )


def compare_methods(work: Workspace) -> Facts:
    """Dial every method to the price and measure it there."""
    fitted_methods = records(work.folder)["fit"]["told"]["methods"]
    names, price = competing([*fitted_methods]), work.config.ladder.kl
    facts: Facts = {
        "kl": price,
        "texts": [NEUTRAL, *map(kind, work.config.ladder.texts)],
        "prompts": len(work.unseen),
        **work.judging,
        "template": work.lm.template,
    }
    missing = [name for name in names if _measured(work, name) is None]
    done = len(names) - len(missing)
    progress("evaluating methods", done, len(names))
    for _ in work.do_all("compare", measure_method, missing):
        done += 1
        progress("evaluating methods", done, len(names))
    for name in names:
        work.notes.repeat((read_sealed(_file(work, name)) or {}).get("noted", {}))
    entries = {name: entry for name in names if (entry := _measured(work, name)) is not None}
    _note(work, entries, price)
    note_reading(work.notes, entries[UNTOUCHED].measured)
    rows = table(entries, fitted_methods, price)
    write_json(work.folder / "ladder.json", {"schema": SCHEMA, **facts, "rows": rows})
    frame = pl.from_dicts([flat(row) for row in rows], infer_schema_length=None)
    write_csv({"ladder": frame}, work.folder)
    write_text(work.folder / "ladder.md", markdown(shown(rows, work.config.concept)))
    return facts


def _note(work: Workspace, entries: Mapping[str, Entry], price: float) -> None:
    """Say which methods do not reach the price, and which are paid for with text."""
    share = {
        name: float(np.mean(entry.measured.values["degenerate"])) for name, entry in entries.items()
    }
    for name, entry in entries.items():
        if name != UNTOUCHED and not entry.kl >= REACHED * price:
            work.notes.add(
                f"{name} does not reach the price: at {{strength:.3g}} times what was found, it "
                "costs a KL of {kl:.3g}, and more strength breaks it or is not tried",
                strength=entry.strength,
                kl=entry.kl,
            )
        if entry.breaks(entries[UNTOUCHED]):
            work.notes.add(
                f"{name} is paid for with text: {{share:.0%}} of its continuations are degenerate "
                "(untouched {before:.0%}), so that its toxicity says little",
                share=share[name],
                before=share[UNTOUCHED],
            )


STAGES: Stages = {
    "probe": find_directions,
    "pairs": find_pairs,
    "fit": fit_methods,
    "compare": compare_methods,
}


def run_ladder(
    config: Config,
    folder: Path,
    *,
    announce: Callable[[str], None],
    enter: Callable[[str, bool], None],
) -> None:
    """Fit, dial and measure the methods in `folder`; `ladder.json`, .csv and .md have the table."""
    check_ships(config, "A ladder")
    # Methods may be added to a ladder and taken away, and pairs stay once they are made.
    needed = STAGES.keys() - (set() if needs_pairs(config.ladder.methods) else {"pairs"})
    kept = {name: stage for name, stage in STAGES.items() if name in {*needed, *records(folder)}}
    Study(config, folder, announce, kept, enter).run()

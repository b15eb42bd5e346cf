"""The models of a source, loaded for the desk."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import DialdownError
from ..evaluation.scorers import Scorer, load_scorer
from ..exporting.delta import base_of, load_delta
from ..models.lm import LM, load
from ..study.context import Workspace
from ..workers import quiet_libraries
from .source import Source, workspace


@dataclass(frozen=True)
class Models:
    """What is in memory.

    Attributes:
        base: the base model.
        tuned: the tuned model; None where there is none.
        judge: scores texts; None where it cannot be loaded.
        missing: a sentence about each that is not there.
    """

    base: LM
    tuned: LM | None
    judge: Scorer | None
    missing: tuple[str, ...]


def load_models(source: Source, *, judge: bool) -> Models:
    """Load the base, the tuned model and the judge of a source."""
    quiet_libraries()
    work = workspace(source.study) if source.study else None
    base = load_base(source, work)
    if work is not None:
        work.lm = base
    missing: list[str] = []
    tuned = scorer = None
    try:
        tuned = load_tuned_of(source, work)
    except DialdownError as error:
        missing.append(str(error))
    try:
        if judge:
            scorer = work.judge if work else load_scorer("embedded:ngram")
    except DialdownError as error:
        missing.append(f"Texts get no scores: {error}")
    return Models(base, tuned, scorer, tuple(missing))


def load_base(source: Source, work: Workspace | None) -> LM:
    """The base model of a source."""
    if source.kind == "run" and work is not None:
        return work.lm
    if source.kind == "edit" and source.folder is not None:
        delta = load_delta(source.folder)
        checked = base_of(delta, source.base)
        name = source.base or delta.base
        # An edit is played with as it was measured.
        template = delta.record["notes"].get("template", "auto")
        return load(name, revision=checked.revision, template=template)
    return load(source.given, template="auto")


def load_tuned_of(source: Source, work: Workspace | None) -> LM | None:
    """The tuned model of a run, where it has one."""
    if source.kind != "run" or work is None:
        return None
    trained = work.folder / "tuned" / "config.json"
    return work.tuned if work.config.tuned or trained.exists() else None

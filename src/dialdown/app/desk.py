"""The models the app works with, used by one thread alone.

Edits act by hooks on the one base model in memory, so two replies at once would be read through
each other's hooks. Whatever touches a model is a job for that thread; jobs are done in the order
asked, and nobody else holds a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Event
from typing import TypeVar

from torch import Tensor

from ..errors import DialdownError, enough_memory
from ..evaluation.probe_scorer import ProbeScorer
from ..evaluation.scorers import Scorer, load_scorer
from ..exporting.delta import base_of, load_delta
from ..interventions.intervention import Intervention
from ..models.hooks import Positions
from ..models.lm import LM, load
from ..models.replies import ReplySettings, generate
from ..progress import Progress, silent
from ..study.context import Workspace
from .source import Source
from .study import workspace

T = TypeVar("T")


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


@dataclass(frozen=True)
class Act:
    """What acts on a model while it replies.

    Attributes:
        edit: an intervention, at the strength it acts with.
        positions: where, in each forward pass.
    """

    edit: Intervention
    positions: Positions = "all"


class Desk:
    """The models of a source and the thread that uses them; they are loaded at once, behind.

    Args:
        source: what the app was opened on.
        judge: load what scores texts, too.
        progress: called while an embedded model is downloaded, the first time.
    """

    def __init__(self, source: Source, *, judge: bool = True, progress: Progress = silent) -> None:
        self.source = source
        self._thread = ThreadPoolExecutor(1, "models")
        self._models = self._thread.submit(load_models, source, judge=judge, progress=progress)

    def do(self, job: Callable[[Models], T]) -> T:
        """What a job makes of the models, after the jobs before it.

        Raises:
            DialdownError: the models could not be loaded, or the job's own.
        """

        return self._thread.submit(self._work, job).result()

    def _work(self, job: Callable[[Models], T]) -> T:
        with enough_memory("ask for fewer tokens or a shorter text"):
            return job(self._models.result())

    def stream(
        self,
        model: Callable[[Models], LM],
        ids: Tensor,
        settings: ReplySettings,
        act: Act | None = None,
        *,
        turn: int = 0,
        stop: Event | None = None,
    ) -> Iterator[str]:
        """A reply as it comes: all of it so far, after each token.

        The reply is made by the desk's thread whether or not it is read, so a reader who goes away
        leaves no hook behind; closing the iterator ends it at the next token.

        Args:
            model: which of the models replies.
            ids: (1, n) token ids to go on from.
            settings: length and sampling.
            act: what acts meanwhile; None for the model as it is.
            turn: see `replies.generate`.
            stop: ends the reply at the next token once it is set.

        Raises:
            DialdownError: see `do`; the edit is of another model.
        """
        left, heard = Event(), SimpleQueue[str | None]()

        def wanted() -> bool:
            return not (left.is_set() or (stop and stop.is_set()))

        def hear(text: str) -> bool:
            heard.put(text)
            return wanted()

        def work(models: Models) -> None:
            if wanted():
                text = generate(
                    model(models),
                    ids,
                    settings,
                    act.edit if act else None,
                    positions=act.positions if act else "all",
                    turn=turn,
                    hear=hear,
                )
                heard.put(text)

        job = self._thread.submit(self._work, work)
        job.add_done_callback(lambda done: heard.put(None))
        try:
            while (text := heard.get()) is not None:
                yield text
            job.result()
        finally:
            left.set()

    def score(self, text: str, *, ended: bool = False) -> float | None:
        """What the judge gives a reply; None without a judge, or of a reply on its way where the
        judge reads the base model, on which an edit acts then.
        """
        if not self._models.done() or self._models.exception():
            return None
        judge = self._models.result().judge
        if judge is None or (isinstance(judge, ProbeScorer) and not ended):
            return None
        if isinstance(judge, ProbeScorer):
            return self.do(lambda models: float(judge.score([text])[0]))
        return float(judge.score([text])[0])

    def close(self) -> None:
        """Do no more jobs."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def load_models(source: Source, *, judge: bool, progress: Progress) -> Models:
    """Load the base, the tuned model and the judge of a source.

    Raises:
        DialdownError: the base is gone, or the edit's folder is damaged.
    """
    work = workspace(source.study, progress) if source.study else None
    base = load_base(source, work, progress)
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
            scorer = work.judge if work else load_scorer("embedded:ngram", progress=progress)
    except DialdownError as error:
        missing.append(f"Texts get no scores: {error}")
    return Models(base, tuned, scorer, tuple(missing))


def load_base(source: Source, work: Workspace | None, progress: Progress) -> LM:
    """The base model of a source."""
    if source.kind == "run" and work is not None:
        return work.lm
    if source.kind == "edit" and source.folder is not None:
        delta = load_delta(source.folder)
        checked = base_of(delta, source.base, progress=progress)
        name = source.base or delta.base
        return load(name, revision=checked.revision, template="auto", progress=progress)
    return load(source.given, template="auto", progress=progress)


def load_tuned_of(source: Source, work: Workspace | None) -> LM | None:
    """The tuned model of a run, where it has one."""
    if source.kind != "run" or work is None:
        return None
    trained = work.folder / "tuned" / "config.json"
    return work.tuned if work.config.tuned or trained.exists() else None

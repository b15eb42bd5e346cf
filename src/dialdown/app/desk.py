"""The models the app works with, used by one thread alone.

Edits act by hooks on the one base model in memory, so two replies at once would be read through
each other's hooks. Whatever touches a model is a job for that thread; jobs are done in the order
asked, and nobody else holds a model. It is also the thread that imports torch, which takes longer
than all that the page shows without a model; others import what needs torch after a job of theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Event
from typing import TYPE_CHECKING, TypeVar

from ..errors import enough_memory
from .source import Source

if TYPE_CHECKING:
    from torch import Tensor

    from ..interventions.intervention import Intervention
    from ..models.hooks import Positions
    from ..models.lm import LM
    from ..models.replies import ReplySettings
    from .loading import Models

T = TypeVar("T")
REMEMBERED = 32  # replies


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
    """The models of a source and the thread that uses them, which loads them before its first job.

    Args:
        source: what the app was opened on.
        judge: load what scores texts, too.
    """

    def __init__(self, source: Source, *, judge: bool = True) -> None:
        self.source, self.judge = source, judge
        self._thread = ThreadPoolExecutor(1, "models")
        self._models: Models | None = None
        self._replies: dict[tuple[Hashable, ...], str] = {}

    def begin(self) -> None:
        """Load the models behind; where that fails, whoever asks for them next is told."""
        self._thread.submit(self._work, lambda models: None)

    def do(self, job: Callable[[Models], T]) -> T:
        """What a job makes of the models, after the jobs before it."""
        return self._thread.submit(self._work, job).result()

    def _work(self, job: Callable[[Models], T]) -> T:
        from .loading import load_models

        if self._models is None:
            self._models = load_models(self.source, judge=self.judge)
        with enough_memory("ask for fewer tokens or a shorter text"):
            return job(self._models)

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
        """A reply as it comes: all of it so far, after each token; one given before comes at once.

        The desk's thread makes it whether or not it is read, so a reader who goes away leaves no
        hook behind; closing the iterator ends it at the next token.

        Args:
            model: which of the models replies.
            ids: (1, n) token ids to go on from.
            settings, turn: see `replies.generate`.
            act: what acts meanwhile; None for the model as it is.
            stop: ends the reply at the next token once it is set.
        """
        left, heard = Event(), SimpleQueue[str | None]()

        def wanted() -> bool:
            return not (left.is_set() or (stop and stop.is_set()))

        def hear(text: str) -> bool:
            heard.put(text)
            return wanted()

        def work(models: Models) -> None:
            from ..models.replies import generate

            if not wanted():
                return
            lm = model(models)
            key = (id(lm), tuple(ids[0].tolist()), settings, act, turn)
            text = self._replies.pop(key, None)
            if text is None:
                edit = act.edit if act else None
                where: Positions = act.positions if act else "all"
                text = generate(lm, ids, settings, edit, positions=where, turn=turn, hear=hear).text
            heard.put(text)
            if wanted():  # otherwise it may be cut short
                self._replies[key] = text
            if len(self._replies) > REMEMBERED:
                del self._replies[next(iter(self._replies))]

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
        judge = self._models.judge if self._models else None
        if judge is None:
            return None
        from ..evaluation.probe_scorer import ProbeScorer

        if not isinstance(judge, ProbeScorer):
            return float(judge.score([text])[0])
        return self.do(lambda models: float(judge.score([text])[0])) if ended else None

    def close(self) -> None:
        """Do no more jobs."""
        self._thread.shutdown(wait=False, cancel_futures=True)

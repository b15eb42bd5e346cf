"""Search for the training-free edit that lowers toxicity most at the least KL to the base model, on
Optuna.

    objective = Objective(lm, prompts, scorer, windows, Materials(tables, attributions, least))
    result = search(objective, Path("search"), SearchSettings(max_kl=0.05))
    edits = [build(trial.parameters, objective.materials) for trial in result.finalists(3)]

Every trial is written to a journal in the folder: several processes can share one search, and one
that was killed goes on. Which of the finalists is the winner is for prompts to decide that the
search did not see.
"""

from __future__ import annotations

import math
import os
import platform
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
from filelock import FileLock

from ..errors import DialdownError
from ..files import disk_errors
from ..models.decoding import Progress
from .trials import Materials, Measured, Objective, SearchSettings, build, known_points, suggest

if TYPE_CHECKING:
    import optuna

__all__ = [
    "Materials",
    "Measured",
    "Objective",
    "SearchResult",
    "SearchSettings",
    "Trial",
    "build",
    "remaining",
    "run_trial",
    "search",
    "search_result",
    "suggest",
]

JOURNAL = "search.journal"
STUDY = "dialdown"
BEGUN = "begun"  # written last, so that a search that was killed before it began is begun again


@dataclass(frozen=True, kw_only=True)
class Trial(Measured):
    """A finished trial: its place in the search and the parameters `build` makes its edit from."""

    number: int
    parameters: dict[str, Any]


@dataclass(frozen=True)
class SearchResult:
    """What a search found so far.

    Attributes:
        settings: of the search.
        untouched: toxicity of the untouched model on the search's prompts.
        trials: every finished trial, in order, those given up early included.
    """

    settings: SearchSettings
    untouched: float
    trials: tuple[Trial, ...]

    @property
    def front(self) -> list[Trial]:
        """The Pareto front of toxicity and KL, KL rising: trials within the budget that are less
        toxic than the untouched model.
        """
        front: list[Trial] = []
        lowest = self.untouched
        for trial in sorted(self.trials, key=lambda trial: (trial.kl, trial.toxicity or 0.0)):
            if trial.pruned is None and trial.toxicity is not None and trial.toxicity < lowest:
                front.append(trial)
                lowest = trial.toxicity
        return front

    @property
    def best(self) -> str:
        """The least toxic trial of the front, as a phrase for progress."""
        front = self.front
        return (
            f"best {front[-1].toxicity:.3f} at KL {front[-1].kl:.3f}"
            if front
            else "nothing within the budget yet"
        )

    def finalists(self, n: int) -> list[Trial]:
        """At most `n` trials spread evenly along the front, the least toxic first.

        Raises:
            DialdownError: no trial is feasible; the sentence names the budget and the nearest
                trial's figures.
        """
        front = self.front[::-1]
        if not front:
            raise DialdownError(self._infeasible())
        return [front[round(place)] for place in np.linspace(0, len(front) - 1, min(n, len(front)))]

    def nearest(self) -> Trial | None:
        """Where no trial is feasible, the one that comes nearest: least beyond the budget, else
        least toxic. None without trials.
        """

        def distance(trial: Trial) -> tuple[bool, bool, float]:
            if trial.pruned in ("kl", "ppl"):
                return (
                    not math.isfinite(trial.kl),
                    False,
                    max(self.settings.excess(trial.kl, trial.log_ppl).values()),
                )
            return False, True, trial.toxicity or 0.0

        return min(self.trials, key=distance, default=None)

    def _infeasible(self) -> str:
        """The sentence about a search without a feasible trial."""
        sentence = (
            f"None of {len(self.trials)} trials lowers toxicity ({self.untouched:.3f}) within "
            f"the budget ({self.settings.describe_budget()})"
        )
        if (trial := self.nearest()) is not None:
            toxicity = (
                "not measured"
                if trial.toxicity is None
                else f"{trial.toxicity:.3f} on {trial.prompts} prompts"
            )
            sentence += (
                f"; the nearest, trial {trial.number}, has KL {trial.kl:.3g}, log-perplexity "
                f"{trial.log_ppl:+.3g} and toxicity {toxicity}"
            )
        return f"{sentence}: raise the budget, or search longer."


def search(
    objective: Objective, folder: Path, settings: SearchSettings, progress: Progress | None = None
) -> SearchResult:
    """Run the trials that are missing in `folder`, in this process.

    Other processes may work on the same folder meanwhile; at the end each of them may add one trial
    too many.

    Args:
        objective: measures the edits.
        folder: holds the journal of the search; one that was begun there goes on.
        settings: those it was begun with; only `trials` may differ.
        progress: called after each trial with the best so far, the trials done and the trials in
            all.

    Raises:
        DialdownError: Optuna is missing; the folder holds another search or cannot be written; see
            `Objective.check`.
    """
    with _study(folder, settings, objective):
        pass  # begun, or found to be this very search, also where no trial is missing
    while remaining(folder, settings):
        run_trial(folder, objective, settings)
        if progress:
            found = search_result(folder, settings)
            progress(
                f"searching, {found.best}", min(len(found.trials), settings.trials), settings.trials
            )
    return search_result(folder, settings)


def remaining(folder: Path, settings: SearchSettings) -> int:
    """How many trials are still to be finished.

    Raises:
        DialdownError: Optuna is missing, or the folder holds another search.
    """
    found = _read(folder, settings)
    return settings.trials if found is None else max(0, settings.trials - len(found.trials))


def search_result(folder: Path, settings: SearchSettings) -> SearchResult:
    """What the search in `folder` found so far, whichever processes ran it.

    Raises:
        DialdownError: Optuna is missing, or the folder holds no search or another one.
    """
    if (found := _read(folder, settings)) is None:
        raise DialdownError(
            f"{folder} holds no search: call search, or run_trial, with this folder first."
        )
    return found


def run_trial(folder: Path, objective: Objective, settings: SearchSettings) -> Trial:
    """Run one trial of the search in `folder`, which is begun where there is none: what a worker
    process calls.

    A trial that a process of this machine left unfinished when it died is marked as failed, and its
    parameters are tried again.

    Raises:
        DialdownError: see `search`.
    """
    optuna = _optuna()
    with _study(folder, settings, objective) as study:
        _retry_abandoned(study)
        # Every trial has a seed of its own, so that processes do not repeat each other's draws.
        study.sampler = _sampler(settings.seed, len(study.get_trials(deepcopy=False)))
        trial = study.ask()
        trial.set_user_attr("process", _this_process())
        edit = suggest(trial, objective.materials)
    measured = objective.measure(edit, settings)
    with disk_errors(folder / JOURNAL):
        for limit, excess in settings.excess(measured.kl, measured.log_ppl).items():
            trial.set_constraint(limit, excess)
        if measured.toxicity is not None:
            trial.set_constraint(
                "toxicity",
                measured.toxicity - float(objective.untouched[: measured.prompts].mean()),
            )
        trial.set_user_attr("measured", asdict(measured))
        if measured.toxicity is None or measured.pruned:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(trial, [measured.toxicity, measured.kl])
    return Trial(**asdict(measured), number=trial.number, parameters=trial.params)


def _optuna() -> Any:
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise DialdownError(
            f"The search needs {error.name}, which is not installed: run pip install "
            '"dialdown[search]".'
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _sampler(seed: int, trial: int) -> Any:
    optuna = _optuna()
    state = int(np.random.SeedSequence((seed, trial)).generate_state(1)[0])
    with warnings.catch_warnings():
        # What `group` may become in a later Optuna is ours to follow, not the user's.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # α, β and the layers make up for each other, so they are drawn jointly; least squares has
        # other parameters, hence `group`. Trials that are running count as bad ones, or processes
        # would crowd at one point.
        return optuna.samplers.TPESampler(
            seed=state, multivariate=True, group=True, constant_liar=True
        )


@contextmanager
def _study(
    folder: Path, settings: SearchSettings, objective: Objective | None = None
) -> Iterator[optuna.Study]:
    """The study in `folder`, which no other process reads or writes meanwhile; begun where there is
    none and an objective is given.
    """
    optuna = _optuna()
    journal = optuna.storages.journal
    path = folder / JOURNAL
    with disk_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
        # The system frees this lock when its process dies; Optuna's own would hold the next one up
        # for half a minute.
        with (lock := FileLock(path.with_name(f".{JOURNAL}.lock"))):
            _drop_torn_line(path)
            try:
                storage = optuna.storages.JournalStorage(
                    journal.JournalFileBackend(str(path), lock_obj=lock)
                )
            except (ValueError, KeyError, TypeError) as error:
                raise DialdownError(
                    f"{path} is damaged or no journal of a search ({error}): delete it and search "
                    "again."
                ) from error
            study = optuna.create_study(
                study_name=STUDY,
                storage=storage,
                directions=["minimize", "minimize"],
                load_if_exists=True,
            )
            _check_same(study, folder, settings, objective)
            yield study


def _check_same(
    study: optuna.Study, folder: Path, settings: SearchSettings, objective: Objective | None
) -> None:
    """Write down what this search is, or refuse to go on with another one."""
    # Asking for more trials is going on with the same search.
    ours: dict[str, Any] = {
        "settings": {name: value for name, value in asdict(settings).items() if name != "trials"}
    }
    if objective:
        objective.check(settings)
        ours["objective"] = objective.identity
    written = study.user_attrs
    if BEGUN in written:
        if different := [name for name, value in ours.items() if written.get(name) != value]:
            what = (
                "other settings"
                if "settings" in different
                else "another model, other prompts, text or materials"
            )
            raise DialdownError(
                f"{folder} holds a search with {what}, whose trials cannot be compared: repeat it "
                "as it was begun, or pass another folder."
            )
    elif objective:
        for parameters in known_points(objective.materials):
            study.enqueue_trial(parameters, skip_if_exists=True)
        untouched = float(objective.untouched[: settings.prompts].mean())
        for name, value in {**ours, "untouched": untouched, BEGUN: True}.items():
            study.set_user_attr(name, value)


def _drop_torn_line(path: Path) -> None:
    """A process that died while writing leaves half a line, which the next one would be glued
    to.
    """
    content = path.read_bytes() if path.exists() else b""
    if content and not content.endswith(b"\n"):
        with path.open("rb+") as handle:
            handle.truncate(content.rfind(b"\n") + 1)


def _retry_abandoned(study: optuna.Study) -> None:
    state = _optuna().trial.TrialState
    for trial in study.get_trials(deepcopy=False, states=(state.RUNNING,)):
        if _is_dead(trial.user_attrs.get("process")):
            study.tell(trial.number, state=state.FAIL)
            study.enqueue_trial({**trial.system_attrs.get("fixed_params", {}), **trial.params})


def _this_process() -> dict[str, Any]:
    return {"host": platform.node(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def _is_dead(process: Mapping[str, Any] | None) -> bool:
    """Whether what ran a trial is known to run no more: of another machine that cannot be known."""
    # Who is under the lock sees a trial without a process only if that died before it could say who
    # it was.
    if process is None:
        return True
    if process["host"] != platform.node():
        return False
    if process["pid"] == os.getpid():
        return True
    try:
        found = psutil.Process(process["pid"])
        return (
            found.status() == psutil.STATUS_ZOMBIE
            or abs(found.create_time() - process["started"]) > 1
        )
    except psutil.NoSuchProcess:
        return True


def _read(folder: Path, settings: SearchSettings) -> SearchResult | None:
    """What was found in `folder` so far; None where no search was begun."""
    if not (folder / JOURNAL).exists():
        return None
    state = _optuna().trial.TrialState
    with _study(folder, settings) as study:
        if BEGUN not in study.user_attrs:
            return None
        finished = study.get_trials(deepcopy=False, states=(state.COMPLETE, state.PRUNED))
    trials = (
        Trial(**one.user_attrs["measured"], number=one.number, parameters=one.params)
        for one in finished
    )
    return SearchResult(settings, study.user_attrs["untouched"], tuple(trials))

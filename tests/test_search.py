"""The search for a training-free edit: what a trial measures, the journal that processes share, the
front (issue 4, item 2).
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import tiny
import torch
from conftest import unchanged
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from test_evaluation import TEXT, FakeScorer

import dialdown as dd
from dialdown.errors import DialdownError
from dialdown.evaluation.perplexity import text_windows
from dialdown.interventions.intervention import Intervention
from dialdown.interventions.paper import EditKind
from dialdown.models.lm import LM
from dialdown.neurons.activations import NeuronMeans
from dialdown.neurons.directions import Direction
from dialdown.search.search import (
    JOURNAL,
    SearchResult,
    SearchSettings,
    Trial,
    remaining,
    run_trial,
    search,
    search_result,
)
from dialdown.search.trials import LARGEST_KL, Materials, Objective, build, known_points, suggest
from dialdown.training.attribution import attribution

PROMPTS = ("the cat", "a", "why not the", "zebra x", "on it", "the the cat")
QUICK = SearchSettings(trials=8, prompts=6, first_prompts=2)
SHAPE = (tiny.LAYERS, tiny.NEURONS)


class Constant:
    """Scores every text alike, and counts the texts of each call."""

    name, caveat = "constant", ""
    record: Mapping[str, Any] = {}

    def __init__(self, value: float = 0.5) -> None:
        self.value = value
        self.calls: list[int] = []

    def score(self, texts: Sequence[str]) -> np.ndarray:
        self.calls.append(len(texts))
        return np.full(len(texts), self.value)


class Improving(FakeScorer):
    """Finds the untouched model, which is scored first, more toxic than anything later."""

    def score(self, texts: Sequence[str]) -> np.ndarray:
        scores = super().score(texts)
        return 1 + scores if len(self.seen) == 1 else scores


def table(lm: LM, name: str, seed: int) -> dd.NeuronTable:
    rng = np.random.default_rng(seed)
    direction = Direction(name, rng.standard_normal(tiny.WIDTH), "residual", {})
    means = NeuronMeans(rng.standard_normal(SHAPE), 10, "strict", {})
    return dd.neuron_table(lm, direction, means)


def materials(lm: LM, **options: Any) -> Materials:
    rng = np.random.default_rng(5)
    tables = {"probe": table(lm, "probe", 0), "free": table(lm, "free", 1)}
    attributions = {
        ("probe", "cosine"): attribution(tables["probe"], "cosine"),
        ("probe", "contrast"): rng.standard_normal(SHAPE),
        ("free", "cosine"): attribution(tables["free"], "cosine"),
    }
    least = {"probe": scaling(1 + 0.02 * rng.standard_normal(SHAPE))}
    return Materials(**{"tables": tables, "attributions": attributions, "least": least, **options})


def scaling(gain: np.ndarray) -> Intervention:
    return Intervention("it", "scale", gain, np.zeros(SHAPE), np.ones(SHAPE, dtype=bool))


def objective(
    lm: LM, scorer: Any = None, prompts: Sequence[str] = PROMPTS, **options: Any
) -> Objective:
    windows = text_windows(lm, TEXT, protocol="strict", window=20, max_windows=3)
    return Objective(
        lm, prompts, scorer or Improving(), windows, materials(lm, **options), max_new_tokens=4
    )


def in_process(work: Callable[..., None], *given: Any) -> Any:
    process = multiprocessing.get_context("fork").Process(target=work, args=given)
    process.start()
    return process


def states(folder: Path) -> Counter[str]:
    return Counter(trial.state.name for trial in journal(folder))


def journal(folder: Path) -> list[optuna.trial.FrozenTrial]:
    backend = optuna.storages.journal.JournalFileBackend(str(folder / JOURNAL))
    return optuna.load_study(
        study_name=None, storage=optuna.storages.JournalStorage(backend)
    ).trials


# ---- settings, parameters and edits


@pytest.mark.parametrize(
    "wrong",
    [
        {"trials": 0},
        {"first_prompts": 0},
        {"prompts": 8, "first_prompts": 9},
        {"max_kl": 0.0},
        {"max_kl": float("nan")},
        {"max_ppl_increase": -0.1},
        {"max_ppl_increase": float("inf")},
        {"seed": -1},
    ],
)
def test_settings_outside_their_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(DialdownError, match=f"{[*wrong][-1]}"):
        SearchSettings(**wrong)


@pytest.mark.parametrize("kinds", [("scale",), ("scale", "shift", "set")])
def test_an_edit_is_rebuilt_from_what_its_trial_suggested(
    llama: LM, kinds: tuple[EditKind, ...]
) -> None:
    stuff = materials(llama, kinds=kinds)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    rules = set()
    for _ in range(40):
        trial = study.ask()
        suggested = suggest(trial, stuff)
        again = build(json.loads(json.dumps(trial.params)), stuff)
        assert again.key == suggested.key
        assert again.record["search"] == suggested.record["search"] == trial.params
        assert suggested.kind == trial.params.get("kind", "scale")
        assert suggested.gain.min() >= 0
        rules.add((trial.params["rule"], trial.params.get("neurons"), suggested.kind))
    assert len(rules) == 1 + 3 * len(kinds)


def test_the_first_known_point_is_the_papers_rule(llama: LM) -> None:
    stuff = materials(llama)
    points = known_points(stuff)
    assert [build(point, stuff).name for point in points] == [
        "search_probe_cosine_scale",
        "search_probe_contrast_scale",
        "search_least_squares_probe",
    ]
    paper = dd.edit(stuff.tables["probe"], alpha=0.5, beta=0.3, kind="scale")
    np.testing.assert_allclose(build(points[0], stuff).gain, paper.gain)
    assert known_points(materials(llama, least={}))[-1]["rule"] == "attribution"
    shift = known_points(materials(llama, kinds=("scale", "shift", "set")))[1]
    paper = dd.edit(stuff.tables["probe"], alpha=0.5, beta=0.3, kind="shift")
    np.testing.assert_allclose(build(shift, stuff).offset, paper.offset)


@pytest.mark.parametrize(
    ("first", "last", "layers"),
    [(0.0, 1.0, {0, 1, 2}), (0.5, 0.5, {1}), (0.8, 0.3, {1, 2}), (0.0, 0.2, {0}), (0.8, 1.0, {2})],
)
def test_an_edit_stays_in_its_band_of_layers(
    llama: LM, first: float, last: float, layers: set[int]
) -> None:
    stuff = materials(llama)
    edit = build({**known_points(stuff)[0], "first_layer": first, "last_layer": last}, stuff)
    assert {index for index in range(tiny.LAYERS) if (edit.gain[index] != 1).any()} == layers


def test_groups_and_size_scale_what_an_edit_changes(llama: LM) -> None:
    stuff = materials(llama)
    paper, _, least = known_points(stuff)
    whole = build(paper, stuff).gain
    edit = build({**paper, "TP": 2.0, "AN": 0.0}, stuff).gain
    groups = stuff.tables["probe"].groups(changed=False)
    factor = 1 + groups["TP"] * 1.0 - groups["AN"] * 1.0
    np.testing.assert_allclose(edit - 1, factor * (whole - 1))
    small = build({**least, "size": 0.05}, stuff).gain - 1
    assert np.sqrt((small**2).mean()) == pytest.approx(0.05)
    given = stuff.least["probe"].gain - 1
    np.testing.assert_allclose(small / given, (small / given).mean())
    assert build({**least, "size": 2.0}, stuff).gain.min() == 0


def test_materials_that_cannot_work_are_refused(llama: LM) -> None:
    stuff = materials(llama)
    with pytest.raises(DialdownError, match="no attribution"):
        replace(stuff, attributions={})
    with pytest.raises(
        DialdownError, match="'prob', which has no neuron table: did you mean 'probe'"
    ):
        replace(stuff, attributions={("prob", "cosine"): np.zeros(SHAPE)})
    with pytest.raises(DialdownError, match="changes nothing"):
        replace(stuff, least={"probe": scaling(np.ones(SHAPE))})
    with pytest.raises(DialdownError, match="'other/cosine', which the materials lack"):
        build({**known_points(stuff)[0], "neurons": "other/cosine"}, stuff)


# ---- measuring one edit


@pytest.mark.parametrize("kind", ["scale", "shift", "set"])
def test_a_trial_measures_the_folded_model(llama: LM, kind: EditKind) -> None:
    ours = objective(llama, FakeScorer(), kinds=("scale", "shift", "set"))
    edit = build({**known_points(ours.materials)[0], "kind": kind}, ours.materials)
    assert edit.kind == kind
    loose = replace(QUICK, max_kl=1e6)
    ours.untouched[:] = 2.0  # nothing is given up
    with unchanged(llama):
        measured = ours.measure(edit, loose)
    folded = edit.fold(llama)
    divergence, change = [], []
    for ids in text_windows(llama, TEXT, protocol="strict", window=20, max_windows=3):
        window = torch.tensor([ids])
        base, other = (
            torch.log_softmax(tiny.logits(one, window)[0, :-1].double(), -1)
            for one in (llama, folded)
        )
        divergence += (base.exp() * (base - other)).sum(-1).tolist()
        change += (base - other).gather(-1, window[0, 1:, None])[:, 0].tolist()
    assert measured.kl == pytest.approx(np.mean(divergence), rel=1e-4)
    assert measured.log_ppl == pytest.approx(np.mean(change), rel=1e-4)
    decoder = dd.Decoder(folded, PROMPTS, max_new_tokens=4)
    assert measured.toxicity == pytest.approx(
        FakeScorer().score(decoder.texts(decoder.run())).mean()
    )
    assert (measured.prompts, measured.pruned) == (6, None)


def test_a_hopeless_edit_is_given_up_before_the_rest_is_decoded(llama: LM) -> None:
    scorer = Constant()
    ours = objective(llama, scorer)
    edit = build(known_points(ours.materials)[0], ours.materials)
    loose = replace(QUICK, max_kl=1e6)
    kl = ours.measure(edit, loose).kl
    assert kl > 0

    def calls(value: float, settings: SearchSettings) -> tuple[str | None, list[int], float | None]:
        scorer.value, scorer.calls = value, []
        measured = ours.measure(edit, settings)
        assert measured.kl == kl
        return measured.pruned, scorer.calls, measured.toxicity

    assert calls(0.4, loose) == (None, [2, 4], pytest.approx(0.4))
    assert calls(0.4, replace(loose, max_kl=kl)) == (None, [2, 4], pytest.approx(0.4))
    assert calls(0.4, replace(loose, max_kl=kl * 0.99)) == ("kl", [], None)
    assert calls(0.5, loose) == ("toxicity", [2], 0.5)
    assert calls(0.4, replace(loose, first_prompts=6)) == (None, [6], pytest.approx(0.4))
    assert calls(0.4, replace(loose, prompts=3)) == (None, [2, 1], pytest.approx(0.4))


def test_a_rise_of_perplexity_is_a_budget_too(llama: LM) -> None:
    ours = objective(llama, FakeScorer())
    ours.untouched[:] = 2.0
    doubled, loose = scaling(np.full(SHAPE, 2.0)), replace(QUICK, max_kl=1e6)
    rise = float(np.expm1(ours.measure(doubled, loose).log_ppl))
    assert rise > 0.01
    assert ours.measure(doubled, replace(loose, max_ppl_increase=rise * 1.01)).pruned is None
    assert ours.measure(doubled, replace(loose, max_ppl_increase=rise * 0.99)).pruned == "ppl"


def test_without_a_budget_there_is_still_a_limit(llama: LM) -> None:
    ours = objective(llama, Constant())
    without_mlps = scaling(np.zeros(SHAPE))
    assert ours.measure(without_mlps, replace(QUICK, max_kl=1e6)).kl > 4 * LARGEST_KL
    assert ours.measure(without_mlps, QUICK).pruned == "kl"


def test_an_edit_that_overflows_is_given_up(llama: LM) -> None:
    with unchanged(llama):
        measured = objective(llama).measure(scaling(np.full(SHAPE, 1e38)), QUICK)
    assert (measured.kl, measured.pruned, measured.toxicity) == (float("inf"), "kl", None)


def test_prompts_that_cannot_serve_are_refused(llama: LM, tmp_path: Path) -> None:
    with pytest.raises(DialdownError, match="measures 48 prompts and was given 6"):
        search(objective(llama), tmp_path, SearchSettings())
    with pytest.raises(DialdownError, match="scores 0 on the first 2 prompts"):
        search(objective(llama, Constant(0.0)), tmp_path, QUICK)
    assert remaining(tmp_path, QUICK) == 8


# ---- the search


def test_a_search_leaves_the_model_alone_and_says_what_it_found(llama: LM, tmp_path: Path) -> None:
    said: list[tuple[str, int, int]] = []
    ours = objective(llama)
    with unchanged(llama):
        result = search(ours, tmp_path, QUICK, lambda *progress: said.append(progress))
    assert len(result.trials) == 8
    assert remaining(tmp_path, QUICK) == 0
    assert result == search_result(tmp_path, QUICK)
    assert result.untouched == pytest.approx(ours.untouched.mean())
    points = known_points(ours.materials)
    assert [trial.parameters for trial in result.trials[:3]] == points
    assert [progress[1:] for progress in said] == [(done, 8) for done in range(1, 9)]
    front = result.front
    assert said[-1][0] == f"searching, best {front[-1].toxicity:.3f} at KL {front[-1].kl:.3f}"
    for trial in result.finalists(2):
        again = ours.measure(build(trial.parameters, ours.materials), QUICK)
        assert (again.toxicity, again.kl) == (trial.toxicity, trial.kl)


def test_one_process_and_one_seed_repeat_a_search(llama: LM, tmp_path: Path) -> None:
    longer = replace(QUICK, trials=13)  # beyond the sampler's random start of 10
    runs = [search(objective(llama), tmp_path / name, longer).trials for name in ("one", "two")]
    other = search(objective(llama), tmp_path / "three", replace(longer, seed=1, trials=6)).trials
    assert runs[0] == runs[1]
    assert all(a.parameters != b.parameters for a, b in zip(runs[0][3:6], other[3:], strict=True))


def test_a_search_goes_on_with_more_trials_and_is_no_other_search(
    llama: LM, tmp_path: Path
) -> None:
    with pytest.raises(DialdownError, match="holds no search"):
        search_result(tmp_path, QUICK)
    assert remaining(tmp_path / "none", QUICK) == 8
    assert not (tmp_path / "none").exists()
    few = search(objective(llama), tmp_path, replace(QUICK, trials=3)).trials
    assert remaining(tmp_path, QUICK) == 5
    assert search(objective(llama), tmp_path, replace(QUICK, trials=5)).trials[:3] == few
    with pytest.raises(DialdownError, match="other settings"):
        remaining(tmp_path, replace(QUICK, max_kl=0.1))
    for other in (
        objective(llama, Constant()),
        objective(llama, least={}),
        objective(llama, prompts=PROMPTS[::-1]),
    ):
        with pytest.raises(DialdownError, match="another model, other prompts"):
            search(other, tmp_path, replace(QUICK, trials=5))


def test_no_trial_within_the_budget_names_the_nearest(llama: LM, tmp_path: Path) -> None:
    tight = replace(QUICK, max_kl=1e-9, max_ppl_increase=0.05)
    result = search(objective(llama), tmp_path, tight)
    assert result.front == []
    assert result.best == "nothing within the budget yet"
    nearest = result.nearest()
    assert nearest is not None
    assert nearest.kl == min(trial.kl for trial in result.trials)
    with pytest.raises(
        DialdownError,
        match=rf"KL at most 1e-09.*5\.0%.*trial {nearest.number}, has KL {nearest.kl:.3g}",
    ):
        result.finalists(3)


# ---- processes


class Dying(Improving):
    """Kills its process in the middle of a trial."""

    def score(self, texts: Sequence[str]) -> np.ndarray:
        if len(self.seen) == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().score(texts)


def test_a_killed_search_goes_on(llama: LM, tmp_path: Path) -> None:
    loose = replace(QUICK, max_kl=1e6)
    killed = in_process(search, objective(llama, Dying()), tmp_path, loose)
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert states(tmp_path)["RUNNING"] == 1
    before = [trial for trial in journal(tmp_path) if trial.state.name in ("COMPLETE", "PRUNED")]
    lost = next(trial for trial in journal(tmp_path) if trial.state.name == "RUNNING")
    assert remaining(tmp_path, loose) == 8 - len(before)
    with (tmp_path / JOURNAL).open("ab") as handle:
        handle.write(b'{"op_code": 6, "trial')
    result = search(objective(llama), tmp_path, loose)
    assert len(result.trials) == 8
    assert [trial.number for trial in result.trials[: len(before)]] == [
        trial.number for trial in before
    ]
    found = states(tmp_path)
    assert (found["FAIL"], found["RUNNING"], found["WAITING"]) == (1, 0, 0)
    assert lost.params in [trial.parameters for trial in result.trials]


def test_a_trial_that_another_process_is_at_is_left_alone(llama: LM, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    reached, go = context.Event(), context.Event()

    class Waiting(Improving):
        def score(self, texts: Sequence[str]) -> np.ndarray:
            if self.seen:
                reached.set()
                go.wait(30)
            return super().score(texts)

    loose = replace(QUICK, max_kl=1e6)
    other = in_process(run_trial, tmp_path, objective(llama, Waiting()), loose)
    try:
        assert reached.wait(30)
        ours = run_trial(tmp_path, objective(llama), loose)
        assert states(tmp_path)["RUNNING"] == 1
        assert states(tmp_path)["FAIL"] == 0
    finally:
        go.set()
        other.join()
    theirs = next(
        trial for trial in search_result(tmp_path, loose).trials if trial.number != ours.number
    )
    points = known_points(materials(llama))
    assert [theirs.parameters, ours.parameters] == points[:2]


def some_trials(folder: Path, ours: Objective, count: int) -> None:
    for _ in range(count):
        run_trial(folder, ours, QUICK)


def test_two_processes_share_a_search(llama: LM, tmp_path: Path) -> None:
    # Built before either starts, so that both begin at once.
    workers = [
        in_process(some_trials, tmp_path, ours, 6) for ours in (objective(llama), objective(llama))
    ]
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    trials = search_result(tmp_path, QUICK).trials
    assert len(trials) == 12
    assert sorted(trial.number for trial in trials) == [*range(12)]
    assert len({json.dumps(trial.parameters, sort_keys=True) for trial in trials}) == 12
    assert len({trial.user_attrs["process"]["pid"] for trial in journal(tmp_path)}) == 2
    assert states(tmp_path)["FAIL"] == 0


def test_a_journal_that_is_none_is_refused(llama: LM, tmp_path: Path) -> None:
    (tmp_path / JOURNAL).write_text("no journal\nat all\n")
    with pytest.raises(DialdownError, match=r"search.journal is damaged"):
        search(objective(llama), tmp_path, QUICK)


def test_a_missing_optuna_is_one_sentence(
    llama: LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(
        DialdownError, match=r'optuna, which is not installed: run pip install "dialdown\[search\]"'
    ):
        search(objective(llama), tmp_path, QUICK)


# ---- the front

TRIALS = st.lists(
    st.builds(
        Trial,
        kl=st.floats(0, 1),
        log_ppl=st.floats(-1, 1),
        toxicity=st.floats(0, 1),
        prompts=st.just(6),
        pruned=st.sampled_from([None, None, None, "toxicity"]),
        number=st.integers(0, 99),
        parameters=st.just({}),
    ),
    max_size=12,
)


@hypothesis_settings(deadline=None)
@given(TRIALS, st.integers(1, 6))
def test_the_front_is_what_nothing_beats(trials: list[Trial], count: int) -> None:
    result = SearchResult(QUICK, 0.5, tuple(trials))
    able = [trial for trial in trials if trial.pruned is None and trial.toxicity < 0.5]
    points = {(trial.kl, trial.toxicity) for trial in able}
    unbeaten = {
        (x, y) for x, y in points if not any(a <= x and b <= y and (a, b) != (x, y) for a, b in points)
    }  # fmt: skip
    front = result.front
    assert [(trial.kl, trial.toxicity) for trial in front] == sorted(unbeaten)
    if not front:
        with pytest.raises(DialdownError, match=f"None of {len(trials)} trials"):
            result.finalists(count)
        return
    finalists = result.finalists(count)
    assert finalists[0] == front[-1]
    assert len(finalists) == min(count, len(front))
    places = [front.index(trial) for trial in finalists]
    assert places == sorted(set(places), reverse=True)
    if count > 1:
        assert finalists[-1] == front[0]

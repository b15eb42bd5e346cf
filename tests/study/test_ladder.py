"""`dialdown ladder` through the command, on a tiny model with data from files."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import Result

import dialdown as dd
from dialdown.evaluation.perplexity import TextMeasure
from dialdown.evaluation.row import Measured
from dialdown.neurons import mean_activations
from dialdown.report.names import METHODS as IN_WORDS
from dialdown.study import load_config
from dialdown.study.config import LadderSettings
from dialdown.study.context import Workspace
from dialdown.study.ladder import Yardstick
from dialdown.study.ladder_fit import fitted
from dialdown.study.ladder_methods import LADDER
from dialdown.study.ladder_table import Entry, table
from helpers import tiny
from helpers.commands import invoke
from helpers.folders import saved

METHODS = (
    "aura,linear_act,edit_set,edit_scale,caa,labels,gains,rank_one,rank_one_attention,dpo_kl,"
    "mine:nothing,mine:halve"
)
MINE = """
import functools
import numpy as np
import dialdown as dd

def halve(lm, texts, labels):
    return scaled(0.5, (lm.view.n_layers, lm.view.n_neurons))

def nothing(lm, texts, labels):
    return scaled(1.0, (lm.view.n_layers, lm.view.n_neurons))

def other_shape(lm, texts, labels):
    return scaled(0.5, (2, 2))

def scaled(gain, shape):
    gains = np.full(shape, gain)
    return dd.Intervention("it", "scale", gains, np.zeros(shape), gains != 1)

def a_number(lm, texts, labels):
    return 3

def by(gain, lm, texts, labels):
    return scaled(gain, (lm.view.n_layers, lm.view.n_neurons))

part = functools.partial(by, 0.5)

constant = 4
"""


@pytest.fixture(autouse=True)
def _mine(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.mktemp("mine")
    (folder / "mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "mine", raising=False)


def ladder(study: Path, out: Path, methods: str, *more: object) -> Result:
    text = ["--set", f'ladder.texts=["{study.parent / "text.txt"}"]', "--prompts", 6]
    # Two steps on twelve pairs move little at the usual rate.
    rate = ["--set", "rank_one.learning_rate=0.1"]
    given = ["--config", study, "--out", out, "--methods", methods, *text, *rate, *more]
    return invoke("ladder", study.parent / "model", *given)


def rows_of(out: Path) -> dict[str, dict[str, Any]]:
    rows = json.loads((out / "ladder.json").read_text())["rows"]
    return {row["method"]: row for row in rows}


def workspace(out: Path, study: Path) -> Workspace:
    """Of a finished ladder."""
    given = json.loads((out / "run.json").read_text())["config"]
    flags = {
        "model": str(study.parent / "model"),
        "ladder.prompts": 6,
        "ladder.texts": given["ladder"]["texts"],
    }
    config = load_config(preset="detox", file=study, flags=flags)
    return Workspace(config, out, stages=("probe", "pairs", "fit", "compare"))


@pytest.fixture(scope="module")
def done(study_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    with pytest.MonkeyPatch.context() as patched:
        folder = tmp_path_factory.mktemp("mine")
        (folder / "mine.py").write_text(MINE)
        patched.syspath_prepend(folder)
        out = tmp_path_factory.mktemp("ladder") / "out"
        result = ladder(study_file, out, METHODS, "--kl", 0.05)
    assert result.exit_code == 0, result.exception
    return out, result


def test_every_method_is_dialled_to_the_price(done: tuple[Path, Result]) -> None:
    out, _ = done
    rows = rows_of(out)
    controlled = ("edit_scale", "gains", "rank_one", "rank_one_attention")
    controls = {f"{name}__random_neurons" for name in controlled}
    asked = {*METHODS.split(","), *controls, "untouched"}
    assert rows.keys() == asked
    for name in asked - {"untouched", "mine:nothing"}:
        row = rows[name]
        assert row["reached"], name
        assert 0.045 <= row["kl_of_texts"]["mean"] <= 0.05
        assert row["kl_of_texts"]["mean"] == pytest.approx(
            np.mean([*row["kl_of_texts"]["by_text"].values()])
        )
        assert [*row["kl_of_texts"]["by_text"]] == ["neutral", "text.txt"]
        assert row["toxicity"]["n"] == 6
    assert rows["untouched"]["kl_of_texts"]["mean"] == 0


def test_a_method_that_reaches_the_price_at_no_strength_says_so(done: tuple[Path, Result]) -> None:
    out, result = done
    row = rows_of(out)["mine:nothing"]
    assert not row["reached"]
    assert row["strength"] == 50
    assert row["minus_best"]["toxicity"] is not None
    assert "50, price not reached" in (out / "ladder.md").read_text()
    assert "mine:nothing does not reach the price" in result.output.replace("\n", " ")


def test_differences_are_paired_to_the_least_toxic_method(done: tuple[Path, Result]) -> None:
    rows = rows_of(done[0])
    able = [row for name, row in rows.items() if row["reached"] and "__" not in name]
    best = min(able, key=lambda row: row["toxicity"]["mean"])
    assert best["minus_best"] is None
    for name, row in rows.items():
        if name not in ("untouched", best["method"]):
            change = row["toxicity"]["mean"] - best["toxicity"]["mean"]
            assert row["minus_best"]["toxicity"]["mean"] == pytest.approx(change)


def test_what_each_took_and_whether_it_folds_is_there(done: tuple[Path, Result]) -> None:
    rows = rows_of(done[0])
    assert (rows["aura"]["labels"], rows["aura"]["pairs"]) == (40, None)
    assert (rows["gains"]["labels"], rows["gains"]["pairs"]) == (None, 12)
    assert all(rows[name]["folds"] for name in ("aura", "linear_act", "caa", "dpo_kl"))
    assert rows["labels"]["seconds"] > 0


def test_the_paper_s_edit_is_of_half_of_each_group_and_of_prompts_that_are_not_judged(
    done: tuple[Path, Result], study_file: Path
) -> None:
    out, work = done[0], workspace(done[0], study_file)
    prompts = work.prompts.training[: work.config.evaluation.count]
    assert not {*prompts} & {*work.unseen}
    means = mean_activations(work.lm, prompts, max_new_tokens=5, batch_size=140).means
    assert np.array_equal(means, work.training_means.means)
    probe = work.probe("strict").vector
    values = [layer.value_vectors().double().numpy() for layer in work.lm.view.layers]
    cosine = np.array([rows @ probe / np.linalg.norm(rows, axis=1) for rows in values])
    for kind, beta in (("set", 0.05), ("scale", 0.3)):
        edit = dd.Intervention.load(out / "methods" / f"edit_{kind}.safetensors")
        # TP and AN write the concept and shrink; AP and TN write against it and grow.
        factor = 1 - beta * np.sign(cosine * means)
        changed = edit.offset / means if kind == "set" else edit.gain
        assert np.allclose(changed[edit.selected], factor[edit.selected])
        assert (edit.gain[~edit.selected] == 1).all()
        assert not edit.offset[~edit.selected].any()
        for group in itertools.product((False, True), repeat=2):
            within = (cosine > 0) == group[0]
            within &= (means > 0) == group[1]
            strongest = np.sort(abs(cosine[within]))[::-1][: round(within.sum() / 2)]
            chosen = np.sort(abs(cosine[within & edit.selected]))[::-1]
            assert np.allclose(chosen, strongest)


def test_a_training_that_was_done_before_keeps_its_time(
    done: tuple[Path, Result], study_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(done[0], out)
    (out / "methods" / "gains.json").unlink()
    trained = json.loads((out / "gains" / "training.json").read_text())["log"]["seconds"]
    result = ladder(study_file, out, "gains", "--kl", 0.05)
    assert result.exit_code == 0, result.exception
    assert rows_of(out)["gains"]["seconds"] >= round(trained, 1) > 0


def test_the_three_files_hold_the_same_table(done: tuple[Path, Result]) -> None:
    out, result = done
    rows = rows_of(out)
    frame = pl.read_csv(out / "ladder.csv")
    assert frame["method"].to_list() == [*rows]
    assert frame["toxicity_mean"].to_list() == [row["toxicity"]["mean"] for row in rows.values()]
    text = (out / "ladder.md").read_text()
    assert len(text.splitlines()) == len(rows) + 2
    assert all(f"{row['toxicity']['mean']:.3f}" in text for row in rows.values())
    drawn = (out / "figures" / "ladder.svg").read_text()
    assert all(
        f">{name}<" in drawn for name in ("untouched", "neuron gains", "Linear-AcT at neurons")
    )
    assert "linear_act" in result.output


def test_the_rows_are_of_the_saved_edits_on_unseen_prompts(
    done: tuple[Path, Result], study_file: Path
) -> None:
    out, _ = done
    work = workspace(out, study_file)
    used = dd.PairSet.load(out / "pairs.jsonl").record["prompts_used"]
    assert not {*work.unseen} & {*work.prompts.training[:used], *work.prompts.evaluation}
    edit = dd.Intervention.load(out / "methods" / "aura.safetensors")
    row = rows_of(out)["aura"]
    yardstick = Yardstick(work)
    price = yardstick.price(fitted(work, "aura"), row["strength"])
    assert price == pytest.approx(row["kl_of_texts"]["mean"])
    measured = yardstick.evaluator.row(edit.at(row["strength"]), "strict")
    assert measured.metrics["toxicity"].mean == pytest.approx(row["toxicity"]["mean"])


def test_a_finished_method_or_row_is_not_made_again(study_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert ladder(study_file, out, "aura,damp").exit_code == 0
    assert not (out / "pairs.jsonl").exists()
    kept = [*(out / "methods").iterdir(), *(out / "rows-ladder").iterdir()]
    before = {path: path.stat().st_mtime_ns for path in kept}
    more = ladder(study_file, out, "aura,damp,step,mine:halve")
    assert more.exit_code == 0, more.exception
    assert {path: path.stat().st_mtime_ns for path in kept} == before
    assert {"step", "mine:halve"} <= rows_of(out).keys()
    fewer = ladder(study_file, out, "damp", "--kl", 0.02)
    assert fewer.exit_code == 0, fewer.exception
    assert [*rows_of(out)] in (["untouched", "damp"],)


def test_a_method_of_one_s_own_is_made_again_when_its_file_changes(
    study_file: Path, tmp_path: Path
) -> None:
    """Whatever is called there: of a partial or a decorated function, Python knows no file, or the
    decorator's.
    """
    record = tmp_path / "out" / "methods" / "mine.part.json"
    written = []
    for text in (MINE, MINE, MINE + "#"):
        if "mine" in sys.modules and Path(sys.modules["mine"].__file__).read_text() != text:
            Path(sys.modules["mine"].__file__).write_text(text)
        result = ladder(study_file, tmp_path / "out", "mine:part")
        assert result.exit_code == 0, result.exception
        written.append(record.stat().st_mtime_ns)
    assert written[0] == written[1] < written[2]


def test_two_processes_fit_and_measure_the_same_ladder(
    done: tuple[Path, Result], study_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(done[0], out)
    shutil.rmtree(out / "gains")
    (out / "means-training.safetensors").unlink()
    for name in ("edit_scale", "gains"):
        for path in (out / "methods").glob(f"{name}.*"):
            path.unlink()
    for name in ("edit_scale", "dpo_kl"):
        (out / "rows-ladder" / f"{name}.json").unlink()
    two = ladder(study_file, out, "edit_scale,gains,dpo_kl", "--kl", 0.05, "--set", "workers=2")
    assert two.exit_code == 0, two.exception
    for name in ("edit_scale", "gains"):
        again, before = (
            dd.Intervention.load(folder / "methods" / f"{name}.safetensors")
            for folder in (out, done[0])
        )
        assert again.key == before.key
    for name in ("edit_scale", "dpo_kl"):
        again_row, row = (
            (folder / "rows-ladder" / f"{name}.json").read_text() for folder in (out, done[0])
        )
        assert again_row == row


@pytest.mark.parametrize(
    ("methods", "more", "words"),
    [
        ("aura,dam", [], "Unknown method 'dam'.*damp"),
        ("mine:missing", [], "method 'mine:missing' cannot be imported"),
        ("mine:constant", [], "because it cannot be called"),
        ("mine:a_number", [], "returned int, which cannot be dialled"),
        ("mine:other_shape", [], r"shape \(2, 2\)"),
        ("aura", ["--kl", "nan"], "ladder.kl"),
        ("aura", ["--kl", "0"], "ladder.kl"),
        ("aura", ["--kl", "-1"], "ladder.kl"),
        ("aura,aura", [], "names 'aura' twice"),
        ("", [], "ladder.methods"),
        ("aura", ["--prompts", 61], "at most 60 are left"),
        ("gains", ["--prompts", 50], "at most 48 are left"),
        ("edit_set", ["--prompts", 51], "at most 50 are left .* by evaluation.count"),
        ("aura", ["--set", "probe.texts=clean.jsonl"], "have the label 0"),
        ("gains", ["--set", "training_prompts=few.jsonl"], "need as many training prompts"),
        ("aura", ["--set", "ladder.texts=missing.txt"], "missing.txt"),
        ("aura", ["--set", "tuned=x"], "leave tuned out"),
    ],
)
def test_what_a_ladder_cannot_do_is_refused(
    study_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    methods: str,
    more: list[object],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    clean = [json.dumps({"text": f"a cat {n}", "label": 0}) for n in range(40)]
    (tmp_path / "clean.jsonl").write_text("\n".join(clean))
    few = [json.dumps({"prompt": f"the cat {n}"}) for n in range(9)]
    (tmp_path / "few.jsonl").write_text("\n".join(few))
    result = ladder(study_file, tmp_path / "out", methods, *more)
    assert result.exit_code == 1
    with pytest.raises(dd.DialdownError, match=words):
        raise result.exception  # type: ignore[misc]


def test_a_default_method_that_a_model_cannot_have_is_left_out(
    study_file: Path, tmp_path: Path
) -> None:
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    lm = tiny.lm("gemma4", global_head_dim=16, layer_types=kinds)
    model, out = saved(lm, tmp_path / "model"), tmp_path / "out"
    text = ["--set", f'ladder.texts=["{study_file.parent / "text.txt"}"]', "--prompts", 6]
    given = ["ladder", model, "--config", study_file, "--out", out, *text]
    refused = invoke(*given, "--methods", "rank_one_attention")
    assert "output projections of different shapes" in str(refused.exception)
    assert not out.exists()
    result = invoke(*given)
    assert result.exit_code == 0, result.exception
    asked = set(LadderSettings().methods)
    left = asked - {"rank_one_attention"}
    assert {name for name in rows_of(out) if "__" not in name} == left | {"untouched"}
    assert "rank_one_attention is left out: The attention of" in result.output


def test_every_method_is_in_the_help_and_has_words_for_charts() -> None:
    said = invoke("ladder", "--help").output
    assert LADDER.keys() <= {*re.findall(r"\w+", said)}
    assert LADDER.keys() <= IN_WORDS.keys()


def test_maps_of_norms_need_norms_with_weights(study_file: Path, tmp_path: Path) -> None:
    model, out = saved(tiny.lm("olmo"), tmp_path / "model"), tmp_path / "out"
    text = ["--set", f'ladder.texts=["{study_file.parent / "text.txt"}"]', "--prompts", 6]
    given = ["ladder", model, "--config", study_file, "--out", out, *text]
    refused = invoke(*given, "--methods", "linear_act_published")
    assert "layers.0 of" in str(refused.exception)
    assert "no norm with a weight" in str(refused.exception)
    result = invoke(*given, "--methods", "aura_published,damp_published")
    assert result.exit_code == 0, result.exception
    assert {"aura_published", "damp_published"} < {*rows_of(out)}


def test_a_ladder_says_which_maps_fold(study_file: Path, tmp_path: Path) -> None:
    # Llama's norms have no bias.
    out = tmp_path / "out"
    methods = "aura_published,linear_act_published,linear_act"
    result = ladder(study_file, out, methods)
    assert result.exit_code == 0, result.exception
    folds = {name: row["folds"] for name, row in rows_of(out).items()}
    assert folds["aura_published"]
    assert not folds["linear_act_published"]


@pytest.mark.parametrize(("repeats", "broken"), [(0.05, False), (0.12, True), (0.3, True)])
def test_a_method_that_makes_the_model_repeat_itself_is_not_the_best(
    repeats: float, broken: bool
) -> None:
    def entry(toxicity: float, degenerate: float) -> Entry:
        some = [1.0] * round(100 * degenerate)
        judged = [toxicity] * 100
        values = {
            "toxicity": judged,
            "toxicity/j": judged,
            "log_ppl": [1.0] * 4,
            "degenerate": some + [0.0] * (100 - len(some)),
        }
        text = TextMeasure(np.ones(4), np.full(4, 8.0), np.full(4, 0.05))
        return Entry(1.0, Measured(values, [8] * 4, [""] * 100, ["j"], 0), {"neutral": text})

    entries = {"untouched": entry(0.5, 0), "aura": entry(0.3, 0), "mine:it": entry(0.1, repeats)}
    rows = {row["method"]: row for row in table(entries, {}, 0.05)}
    best = "aura" if broken else "mine:it"
    assert [name for name in ("aura", "mine:it") if rows[name]["minus_best"] is None] == [best]

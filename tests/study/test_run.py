"""The whole study through its commands, on a tiny model with data from files: outputs, resuming,
mistakes.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dialdown as dd
from dialdown import DialdownError
from dialdown.evaluation import Evaluator
from dialdown.models import Decoder
from dialdown.neurons import NeuronMeans
from dialdown.report.names import TITLES
from dialdown.report.stage import RUN
from dialdown.study.folder import records
from helpers.commands import invoke, run_until

METRICS = ("toxicity", "log_ppl", "f1", "kl", "repetition")


@pytest.fixture(scope="module")
def finished(study_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "study"
    result = run_until("base", study_file, "--out", folder)
    assert result.exit_code == 0, result.exception
    first = {path: path.stat().st_mtime_ns for path in (folder / "rows").glob("*.json")}
    result = invoke("run", study_file, "--out", folder)
    assert result.exit_code == 0, result.exception
    # What needs no tuned model was measured before there was one, and not again.
    assert {path.stem for path in first} >= {"strict-none", "paper-edit_probe_set"}
    assert {path: path.stat().st_mtime_ns for path in first} == first
    return folder


def test_a_folder_is_named_as_it_is_whatever_its_name_means_to_a_terminal(
    finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "a [red] run"
    shutil.copytree(finished, folder)
    result = invoke("report", folder)
    assert result.exit_code == 0, result.exception
    assert result.stdout.strip() == f"Wrote {folder / 'report.html'}"


def rows_of(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((folder / "results.json").read_text())["rows"]
    return rows


def test_a_run_leaves_everything_the_readme_names(finished: Path) -> None:
    for name in (
        "run.json",
        "results.json",
        "report.html",
        "neurons.parquet",
        "neurons-paper.parquet",
        "direction-probe.safetensors",
        "direction-probe-paper.safetensors",
        "direction-contrast.safetensors",
        "direction-contrast-paper.safetensors",
        "pairs.jsonl",
        "tuned/model.safetensors",
        "interventions/strict-edit_probe_scale.safetensors",
        "tables/scorers-agreement.csv",
        "figures/figure-8-layer-group-paper.svg",
        *(f"tables/{stem}.csv" for stem in TITLES if not stem.startswith("gains")),
        *(
            f"figures/{name}-strict.png"
            for name in ("figure-1-layer-effects", "figure-7-lower-ranks")
        ),
    ):
        assert (finished / name).exists(), name
    page = (finished / "report.html").read_text()
    for words in (
        "What the paper concludes",
        "Table 17. Correlation",
        "Section 5.1",
        "Appendix G",
        'id="figure-8-layer-group-strict"',
    ):
        assert words in page, words
    run = json.loads((finished / "run.json").read_text())
    assert set(run["stages"]) == set(RUN)
    assert all(
        stage["seconds"] >= 0 and stage["peak_memory_mb"] > 0 for stage in run["stages"].values()
    )
    assert run["versions"]["torch"]


def test_every_intervention_has_both_protocols_and_every_metric(finished: Path) -> None:
    rows = rows_of(finished)
    main = [row for row in rows if row["control_of"] is None]
    assert {row["protocol"] for row in rows} == {"strict", "paper"}
    names = {row["intervention"] for row in main}
    expected = {
        "none", "dpo", "steer_probe", "patch_5", "patch_toxic_neurons", "patch_TP", "patch_TP_AN",
        "patch_TP_AN_TN", "patch_four_groups", "patch_four_groups_shift", "patch_all_increasing",
        "edit_probe_set", "edit_probe_shift", "edit_probe_scale",
        "edit_probe_free_set", "edit_probe_free_shift", "edit_probe_free_scale",
    }  # fmt: skip
    for row in rows:
        for metric in METRICS:
            if row[metric] is not None:
                assert row[metric]["low"] <= row[metric]["mean"] <= row[metric]["high"]
                assert row[metric]["n"] > 0
        assert row["log_ppl"] is not None
    further = {f"steer_probe@{strength}" for strength in (0.1, 0.3)}
    for family, strengths in (("", "abd"), ("_activation", "abcd"), ("_free", "ab")):
        written = {"a": "a0.8_b0.05", "b": "a0.55_b0.01", "c": "a0.5_b0.05", "d": "a0.4_b0.05"}
        further |= {f"edit_probe{family}_set_{written[strength]}" for strength in strengths}
    assert names == expected | further
    aside = [
        row
        for row in main
        if row["protocol"] == "paper"
        and (row["kind"] in ("shift", "scale") or row["intervention"] in further)
    ]
    assert {row["intervention"] for row in aside} >= further
    assert not further & {row["intervention"] for row in main if row["protocol"] == "strict"}
    assert {row["toxicity"]["n"] for row in main if row not in aside} == {10}
    assert {row["toxicity"]["n"] for row in aside} == {8}
    assert len({tuple(s["prompt"] for s in row["samples"]) for row in rows}) == 1
    assert all(len(row["samples"]) == 8 for row in rows)


def test_every_row_has_a_file_of_its_own_with_its_values(finished: Path) -> None:
    rows = rows_of(finished)
    assert {path.name for path in (finished / "rows").iterdir()} == {
        f"{row['protocol']}-{row['intervention']}.json" for row in rows
    }
    for row in rows:
        saved = json.loads(
            (finished / "rows" / f"{row['protocol']}-{row['intervention']}.json").read_text()
        )
        assert np.mean(saved["values"]["toxicity"]) == pytest.approx(row["toxicity"]["mean"])
    # An edit along the probe and one along the contrast have one random direction: measured once,
    # in a file of either.
    effects = [json.loads(path.read_text())["effect"] for path in (finished / "rows").iterdir()]
    assert len(set(effects)) < len(effects)


def test_every_edit_has_its_controls(finished: Path) -> None:
    rows = rows_of(finished)
    for protocol in ("strict", "paper"):
        names = {row["intervention"] for row in rows if row["protocol"] == protocol}
        for name in ("patch_5", "patch_toxic_neurons", "patch_four_groups"):
            assert f"{name}__random_neurons" in names
        for kind in ("set", "shift", "scale") if protocol == "strict" else ("set",):
            controls = [
                "random_neurons",
                "beta_reversed",
                "random_direction",
                *(["beta_zero"] if kind == "set" else []),
            ]
            assert {f"edit_probe_{kind}__{control}" for control in controls} <= names
    for row in rows:
        if row["control_of"]:
            assert row["toxicity"]["n"] == 8
            assert row["control_minus_main"]["toxicity"]["n"] == 8


def test_the_front_extends_a_finished_study(
    finished: Path, study_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    result = invoke("run", study_file, "--out", folder, "--set", "front.count=6")
    assert result.exit_code == 0, result.exception
    assert "evaluate: done before" in result.output
    rows = {
        row["intervention"]: row for row in json.loads((folder / "front.json").read_text())["rows"]
    }
    assert rows.keys() >= {
        "none", "dpo", "steer_probe@0.1", "patch_four_groups_shift@2", "edit_probe_scale@0.5",
        "edit_random_neurons_shift@0.3", "edit_probe_notebook_set", "edit_probe_alpha_scale@0.8",
        "gains@1", "gains@0.5", "gains_random_neurons@1", "gains_kept@0.1",
    }  # fmt: skip
    assert rows["gains@0.5"]["kl"]["mean"] < rows["gains@1"]["kl"]["mean"]
    assert (
        rows["step@0.5"]["kl"]["mean"] < rows["step@1"]["kl"]["mean"] < rows["step@2"]["kl"]["mean"]
    )
    assert "neuron gains" in (folder / "report.html").read_text()
    # What gains were trained with is not what they are evaluated on.
    chosen, evaluated = (
        NeuronMeans.load(folder / f"means-{name}.safetensors") for name in ("training", "base")
    )
    assert (chosen.means != evaluated.means).any()
    assert {row["toxicity"]["n"] for row in rows.values()} == {6}
    # A stronger steering moves the distributions further.
    kl = [
        rows[f"steer_probe@{strength}"]["kl"]["mean"] for strength in ("0.05", "0.1", "0.2", "0.4")
    ]
    assert kl == sorted(kl)
    assert kl[0] < kl[-1]


def test_the_untouched_model_does_not_change(finished: Path) -> None:
    for row in rows_of(finished):
        if row["intervention"] == "none":
            assert row["kl"]["high"] < 1e-6
            assert all(
                row["change"][metric]["mean"] == 0 for metric in METRICS if row["change"][metric]
            )


def test_the_paper_rows_follow_the_papers_table(finished: Path) -> None:
    """The two protocols have tables of their own: another probe, other means."""
    tables = [
        dd.NeuronTable.load(finished / name)
        for name in ("neurons.parquet", "neurons-paper.parquet")
    ]
    assert [table.protocol for table in tables] == ["strict", "paper"]
    assert not np.allclose(tables[0].grid("cosine"), tables[1].grid("cosine"))
    assert not np.allclose(tables[0].grid("mean_base"), tables[1].grid("mean_base"))


def test_saved_values_give_the_row_again(finished: Path) -> None:
    """A row can be reproduced by hand from what the run left."""
    lm = dd.load(json.loads((finished / "run.json").read_text())["config"]["model"])
    edited = dd.Intervention.load(
        finished / "interventions" / "strict-edit_probe_scale.safetensors"
    )
    row = next(
        r
        for r in rows_of(finished)
        if r["intervention"] == "edit_probe_scale" and r["protocol"] == "strict"
    )
    prompts = [sample["prompt"] for sample in row["samples"]]
    decoder = Decoder(lm, prompts, max_new_tokens=5)
    assert decoder.texts(decoder.run(edited)) == [
        sample["continuation"] for sample in row["samples"]
    ]
    folded = edited.fold(lm)
    again = Decoder(folded, prompts, max_new_tokens=5)
    assert again.texts(again.run()) == [sample["continuation"] for sample in row["samples"]]


def test_the_same_command_finds_everything_done(finished: Path, study_file: Path) -> None:
    def times() -> dict[Path, int]:
        # Older releases of filelock write to the lock whenever it is taken.
        files = (path for path in finished.rglob("*") if path.is_file() and path.suffix != ".lock")
        return {path: path.stat().st_mtime_ns for path in files}

    before = times()
    result = invoke("run", study_file, "--out", finished)
    assert result.exit_code == 0
    assert result.output.count("done before") == len(RUN)
    assert before == times()


def test_every_file_of_a_study_is_in_the_record_of_the_stage_that_wrote_it(finished: Path) -> None:
    recorded = {place for record in records(finished).values() for place in record["files"]}
    there = {path.relative_to(finished) for path in finished.rglob("*") if path.is_file()}
    shown = {
        place
        for place in there
        if not place.name.startswith(".") and place.parts[0] not in ("run.json", "stages")
    }
    assert {place.as_posix() for place in shown} == recorded


def test_interrupted_evaluation_goes_on_where_it_stopped(
    finished: Path, study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    run = json.loads((folder / "run.json").read_text())
    del run["stages"]["evaluate"], run["stages"]["report"]
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "results.json").unlink()
    lost = sorted((folder / "rows").iterdir())[:3]
    for path in lost:
        path.unlink()
    measured: list[str] = []
    original = Evaluator.measure

    def interrupt(self: Any, intervention: dd.Intervention, protocol: Any, **rest: Any) -> Any:
        if len(measured) == 1:
            raise KeyboardInterrupt
        measured.append(intervention.name)
        return original(self, intervention, protocol, **rest)

    monkeypatch.setattr(Evaluator, "measure", interrupt)
    result = invoke("run", study_file, "--out", folder)
    assert result.exit_code == 130
    assert f"what is finished is in {folder}" in result.output
    assert len(measured) == 1
    measured.append("never interrupt again")
    result = invoke("run", study_file, "--out", folder)
    assert result.exit_code == 0, result.exception
    assert len(measured) == 4
    assert rows_of(folder) == rows_of(finished)


def test_several_processes_measure_the_same_rows(
    finished: Path, study_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    for path in sorted((folder / "rows").iterdir())[::8]:
        path.unlink()
    result = run_until("evaluate", study_file, "--out", folder, "--set", "workers=2")
    assert result.exit_code == 0, result.exception
    assert rows_of(folder) == rows_of(finished)


def test_several_processes_make_the_same_pairs(
    finished: Path, study_file: Path, tmp_path: Path
) -> None:
    result = run_until("pairs", study_file, "--out", tmp_path / "run", "--set", "workers=2")
    assert result.exit_code == 0, result.exception
    together, alone = (
        dd.PairSet.load(folder / "pairs.jsonl") for folder in (tmp_path / "run", finished)
    )
    assert together.pairs == alone.pairs
    # A process of several threads adds in another order, so the last digit of a score may differ.
    for name in ("prompts_used", "chosen_score", "rejected_score"):
        assert together.record[name] == pytest.approx(alone.record[name], rel=1e-5)


def test_a_folder_of_another_study_is_refused_and_says_what_differs(
    finished: Path, study_file: Path
) -> None:
    result = invoke(
        "run", study_file, "--out", finished, "--set", "interventions.alpha=0.7", "--seed", "3"
    )
    assert isinstance(result.exception, DialdownError)
    message = str(result.exception)
    assert "interventions.alpha: 0.5 -> 0.7" in message
    assert "seed: 0 -> 3" in message


def test_a_tuned_model_may_be_given(finished: Path, study_file: Path, tmp_path: Path) -> None:
    result = run_until(
        "neurons", study_file, "--out", tmp_path / "run", "--tuned", finished / "tuned"
    )
    assert result.exit_code == 0, result.exception
    given, trained = (
        dd.NeuronTable.load(folder / "neurons.parquet") for folder in (tmp_path / "run", finished)
    )
    np.testing.assert_array_equal(
        given.grid("projection_change"), trained.grid("projection_change")
    )


def test_diff_of_a_pair_prints_and_writes_what_tuning_did(
    finished: Path, study_file: Path, tmp_path: Path
) -> None:
    settings = json.loads((finished / "run.json").read_text())["config"]
    inherited = [
        f"{section}.{key}={json.dumps(settings[section][key])}"
        for section, keys in {
            "probe": ("texts", "count", "max_tokens"),
            "interventions": ("toxic_neurons",),
            "evaluation": (
                "prompts", "count", "pairs", "pairs_count", "text", "window", "judge", "pair_scorer"
            ),
        }.items()
        for key in keys
    ]  # fmt: skip
    sets = [
        word
        for assignment in (*inherited, f"token_judge={settings['token_judge']}", "workers=1")
        for word in ("--set", assignment)
    ]
    result = invoke(
        "diff", settings["model"], finished / "tuned", "--out", tmp_path / "diff", *sets
    )
    assert result.exit_code == 0, result.exception
    assert "pairs" not in {path.name for path in (tmp_path / "diff").iterdir()}
    for words in ("Correlation of the activation shift", "shift_vs_cosine", "Pearson's r over all"):
        assert words in result.output
    assert "patch_four_groups" in {row["intervention"] for row in rows_of(tmp_path / "diff")}
    # What tuning did is said before what takes longest.
    assert result.output.index("shift_vs_cosine") < result.output.index("evaluate: ")
    shares = (tmp_path / "diff" / "tables" / "table-18-reducing-share.csv").read_text().splitlines()
    table = dd.NeuronTable.load(tmp_path / "diff" / "neurons.parquet")
    assert float(shares[1].split(",")[2]) == pytest.approx(
        (table.grid("projection_change") < 0).mean()
    )
    assert {row["kind"] for row in rows_of(tmp_path / "diff")} == {"none", "set", "shift"}

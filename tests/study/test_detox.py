"""`dialdown detox` and what is done with its result, through the commands, on a tiny model with
data from files.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner, Result

import dialdown as dd
from dialdown import DialdownError
from dialdown.cli import main as cli
from dialdown.evaluation import Estimate
from dialdown.evaluation.bootstrap import change_sign
from dialdown.exporting.export import exported_before
from dialdown.files import read_sealed, write_sealed
from dialdown.study.config import DetoxSettings
from dialdown.study.detox import outcome
from dialdown.study.stage import EDIT, LABELS, LABELS_RANK_ONE, STEP
from dialdown.training.settings import GAINS_FILE, RANK_ONE_FILE
from helpers import tiny
from helpers.commands import invoke
from helpers.detox_runs import detox, finished, stages, work_of
from helpers.stub_study import flip


@pytest.fixture(scope="module")
def done(study_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    out = tmp_path_factory.mktemp("detox") / "calm"
    result = detox(study_file, out)
    assert finished(result, out)
    return out, result


def test_the_folder_is_the_base_with_the_gains_folded_in(
    done: tuple[Path, Result], study_file: Path
) -> None:
    out, _ = done
    base = dd.load(study_file.parent / "model")
    gains = dd.Intervention.load(work_of(out) / EDIT)
    assert (gains.gain != 1).all()
    exported = AutoModelForCausalLM.from_pretrained(out).eval()
    ids = torch.arange(3, 15)[None]
    with torch.no_grad(), gains.applied(base):
        np.testing.assert_allclose(exported(ids).logits, base.model(ids).logits, atol=1e-4)
    for index, layer in enumerate(base.view.layers):
        weight = exported.get_submodule(layer.path).weight.double()
        expected = layer.linear.weight.double() * torch.as_tensor(gains.gain[index])
        np.testing.assert_allclose(weight.detach(), expected.detach(), rtol=1e-6)


def test_the_terminal_and_the_card_show_what_was_measured(done: tuple[Path, Result]) -> None:
    out, result = done
    rows = json.loads((work_of(out) / "results.json").read_text())["rows"]
    assert [row["intervention"] for row in rows] == ["none", "detox", "detox__random_neurons"]
    assert rows[2]["control_of"] == "detox"
    shown = f"{rows[1]['toxicity']['mean']:.3f}"
    assert shown in result.output
    top = pl.read_csv(work_of(out) / "tables" / "gains-top-neurons.csv")
    assert any(
        f"{top['gain'][0]:.2f}" in line and str(top["neuron"][0]) in line
        for line in result.output.splitlines()
    )
    card = (out / "README.md").read_text()
    assert shown in card
    assert "shuffled within each layer" in card
    assert "sha256" in card


@pytest.mark.parametrize(
    ("low", "high", "prompts", "less", "says"),
    [
        (-0.2, -0.1, 40, True, "shows less toxicity"),
        (0.1, 0.2, 40, False, "shows MORE toxicity"),
        (-0.1, 0.2, 40, False, "cannot be told apart"),
        (-0.2, -0.1, 9, False, "too few to tell"),
    ],
)
def test_an_edit_that_made_a_model_no_less_toxic_is_not_said_to_have(
    tmp_path: Path, low: float, high: float, prompts: int, less: bool, says: str
) -> None:
    change = Estimate((low + high) / 2, low, high, prompts)
    check = {"change": {**change.to_json(), "says": change_sign(change)}}
    run = {"config": {"concept": "toxicity"}, "stages": {"check": check}}
    (tmp_path / "run.json").write_text(json.dumps(run))
    result = outcome(tmp_path)
    assert result.less == less
    assert says in result.sentence


def test_a_budget_that_the_cap_did_not_reach_is_said(done: tuple[Path, Result]) -> None:
    out, result = done
    [note] = [note for note in stages(out)["dial"]["notes"] if "not reached" in note["sentence"]]
    assert note["counts"]["kl"] == stages(out)["dial"]["kl"]
    assert note["counts"]["most"] == DetoxSettings().most
    assert note["sentence"] in result.output


def written(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        path.name: (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_same_command_does_not_ask_for_force_to_end_what_it_had_written(
    done: tuple[Path, Result], study_file: Path
) -> None:
    """As where it was killed after the last rename: the export is whole, only its last lines are
    missing.
    """
    out, first = done
    before = written(out)
    again = detox(study_file, out)
    assert again.exit_code == first.exit_code, again.exception
    assert again.output.splitlines()[-1] == first.output.splitlines()[-1]
    assert written(out) == before


@pytest.mark.parametrize("harm", ["another edit", "another base", "damaged", "no card"])
def test_an_export_that_is_not_the_command_s_own_needs_force(
    done: tuple[Path, Result], study_file: Path, tmp_path: Path, harm: str
) -> None:
    out, model = tmp_path / "calm", study_file.parent / "model"
    shutil.copytree(done[0], out)
    edit = dd.Intervention.load(work_of(done[0]) / EDIT)
    if harm == "another edit":
        edit = edit.at(0.5)
    elif harm == "another base":
        lm = dd.load(model)
        lm.model.model.embed_tokens.weight.data[5] += 1
        model = tmp_path / "other"
        lm.model.save_pretrained(model)
        lm.tokenizer.save_pretrained(model)
    elif harm == "damaged":
        data = bytearray((out / "model.safetensors").read_bytes())
        data[-2000:] = bytes(2000)
        (out / "model.safetensors").write_bytes(data)
    else:
        (out / "README.md").unlink()
    assert exported_before(model, edit, out) is None
    assert exported_before(model, edit, out, verify=False) is None


def begun(done: Path, out: Path) -> Path:
    """An output whose work is done as far as another's, and which holds no export yet."""
    shutil.copytree(work_of(done), work_of(out))
    return out


def copied(done: Path, folder: Path) -> Path:
    """An export and its work in another folder, where the same command finds both."""
    for path in (done, work_of(done)):
        shutil.copytree(path, folder / path.name)
    return folder / done.name


def test_an_edit_that_is_less_toxic_ends_with_status_0(
    done: tuple[Path, Result], study_file: Path, tmp_path: Path
) -> None:
    out = copied(done[0], tmp_path)
    record = read_sealed(work_of(out) / "stages" / "check.json")
    assert record is not None
    change = Estimate(-0.2, -0.3, -0.1, 40)
    record["told"]["change"] = {**change.to_json(), "says": change_sign(change)}
    write_sealed(work_of(out) / "stages" / "check.json", record)
    result = detox(study_file, out)
    assert result.exit_code == 0, result.exception
    assert "shows less toxicity" in result.output
    assert "exit status" not in result.output


@pytest.mark.parametrize("name", ["run.json", "results.json", EDIT, "direction-probe.safetensors"])
def test_the_same_command_makes_damaged_work_again_and_leaves_its_export(
    done: tuple[Path, Result], study_file: Path, tmp_path: Path, name: str
) -> None:
    out = copied(done[0], tmp_path)
    export, content = written(out), (work_of(out) / name).read_bytes()
    flip(work_of(out) / name)
    result = detox(study_file, out)
    assert result.exit_code == done[1].exit_code, result.exception
    assert f"{name} was damaged" in result.output or f"{name} is gone or was damaged" in (
        result.output
    )
    assert written(out) == export
    if name.endswith(".safetensors"):
        assert (work_of(out) / name).read_bytes() == content


def test_other_settings_do_not_replace_an_export_unasked(
    done: tuple[Path, Result], study_file: Path
) -> None:
    result = detox(study_file, done[0], "--strength", 0.5)
    assert isinstance(result.exception, DialdownError)
    assert "is not empty" in str(result.exception)


def test_an_output_inside_of_the_base_is_a_folder_like_any_other(
    study_file: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(study_file.parent / "model", model)
    (model / "poem.txt").write_text("no part of a model")
    result = invoke("detox", model, "--out", f"{model}/calm/", "--config", study_file)
    assert finished(result, model / "calm")
    assert "Not copied from the base's folder: calm-work/, poem.txt." in result.output


def test_an_output_that_cannot_be_is_one_sentence(study_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = detox(study_file, tmp_path / "file" / "calm")
    assert result.exit_code == 1
    assert isinstance(result.exception, DialdownError)
    assert "pass a folder you may write to" in str(result.exception)


def test_force_repeats_the_export_alone(done: tuple[Path, Result], study_file: Path) -> None:
    out, first = done
    again = detox(study_file, out, "--force")
    assert again.exit_code == first.exit_code, again.exception
    assert again.output.count("done before") == len(stages(out))


def test_another_strength_trains_nothing(
    done: tuple[Path, Result], study_file: Path, tmp_path: Path
) -> None:
    out, _ = done
    half = begun(out, tmp_path / "half")
    # The copied work is a run of its own: the folder of a training is part of what it resumes, not
    # of its result.
    result = detox(study_file, half, "--strength", 0.5)
    assert finished(result, half)
    assert "gains: done before" in result.output
    trained = dd.Intervention.load(work_of(out) / "gains" / GAINS_FILE).gain
    scaled = dd.Intervention.load(work_of(half) / EDIT).gain
    np.testing.assert_allclose(scaled, 1 + 0.5 * (trained - 1), rtol=1e-12)


def test_the_explanation_counts_every_neuron_of_a_group(done: tuple[Path, Result]) -> None:
    out, _ = done
    groups = stages(out)["dial"]["groups"]
    assert [row["group"] for row in groups] == ["TP", "TN", "AP", "AN", "all"]
    assert (
        sum(row["neurons"] for row in groups[:4])
        == groups[4]["neurons"]
        == dd.Intervention.load(work_of(out) / EDIT).gain.size
    )
    assert sum(row["share_moved"] for row in groups[:4]) == pytest.approx(1)
    assert (work_of(out) / "tables" / "gains-top-neurons.csv").exists()


@pytest.mark.parametrize(
    ("way", "file", "found_on"),
    [
        (("--no-training",), STEP, "continuations of the model's own"),
        (("--method", "labels"), LABELS, "labelled texts"),
    ],
)
def test_without_training_one_step_is_dialled_to_the_budget(
    study_file: Path, tmp_path: Path, way: tuple[str, ...], file: str, found_on: str
) -> None:
    out = tmp_path / "stepped"
    refused = detox(study_file, out, *way, "--max-kl", 1e-12)
    assert refused.exit_code == 1
    assert "which is beyond the budget: raise --max-kl above 1e-12" in str(refused.exception)
    assert not out.exists()
    # What the sentence advises works in the same folder.
    assert finished(detox(study_file, out, *way, "--max-kl", 0.001), out)
    dial = stages(out)["dial"]
    assert 0.0005 < dial["kl"] <= 0.001
    assert ("pairs" in stages(out), "gains" in stages(out)) == (file == STEP, False)
    step, edit = (dd.Intervention.load(work_of(out) / name) for name in (file, EDIT))
    assert edit.record["strength"] == dial["strength"]
    np.testing.assert_array_equal(edit.gain, step.at(dial["strength"]).gain)
    assert f"found on {found_on}" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("method", "file", "read"),
    [
        ("rank_one", f"rank-one/{RANK_ONE_FILE}", "72 of 72 neurons"),
        (
            "rank_one_attention",
            f"rank-one-attention/{RANK_ONE_FILE}",
            "48 of 48 channels of its heads",
        ),
        ("labels_rank_one", LABELS_RANK_ONE, "48 of 48 channels of its heads"),
    ],
)
def test_one_direction_per_layer_is_dialled_checked_and_read(
    study_file: Path, tmp_path: Path, method: str, file: str, read: str
) -> None:
    out = tmp_path / "directed"
    # Two steps on a few pairs move little at the usual rate.
    given = ("--method", method, "--set", "rank_one.learning_rate=0.1", "--strength", 2)
    result = detox(study_file, out, *given)
    assert finished(result, out)
    assert "The layers where it writes most" in result.output
    assert {method, "dial", "check"} <= stages(out).keys()
    assert not {"gains", "step"} & stages(out).keys()
    trained = dd.Intervention.load(work_of(out) / file)
    edit = dd.Intervention.load(work_of(out) / EDIT)
    assert (edit.kind, edit.key) == ("rank_one", trained.at(2.0).key)
    layers = pl.read_csv(work_of(out) / "tables" / "rank-one-layers.csv")
    assert layers["layer"].to_list() == [*range(tiny.LAYERS)]
    assert layers["cosine"].is_between(-1, 1).all()
    assert layers["share"].is_between(0, 1, closed="right").all()
    assert layers["writes"].str.len_chars().min() > 0
    card = (out / "README.md").read_text()
    assert "one more direction per layer" in card
    assert f"reads {read} with one number each" in card
    rows = json.loads((work_of(out) / "results.json").read_text())["rows"]
    assert [row["intervention"] for row in rows] == ["none", "detox", "detox__random_neurons"]


def test_without_a_dial_every_model_pays_the_usual_kl(
    done: tuple[Path, Result], study_file: Path, tmp_path: Path
) -> None:
    out, _ = done
    usual = stages(out)["dial"]
    assert usual["kl"] <= DetoxSettings().usual_kl
    # The tiny model's gains cost so little that its budget asks for all it may.
    assert usual["strength"] == DetoxSettings().most
    dialled = begun(out, tmp_path / "dialled")
    lower = usual["kl"] / 2
    result = detox(study_file, dialled, "--set", f"detox.usual_kl={lower}")
    assert finished(result, dialled)
    assert 0.8 * lower < stages(dialled)["dial"]["kl"] <= lower


@pytest.mark.parametrize(
    ("flag", "budget", "fact"), [("--max-kl", 1e-4, "kl"), ("--max-ppl-increase", 1e-3, "log_ppl")]
)
def test_a_budget_dials_trained_gains(
    done: tuple[Path, Result], study_file: Path, tmp_path: Path, flag: str, budget: float, fact: str
) -> None:
    out, _ = done
    dialled = begun(out, tmp_path / "dialled")
    result = detox(study_file, dialled, flag, budget)
    assert finished(result, dialled)
    assert "gains: done before" in result.output
    dial = stages(dialled)["dial"]
    assert dial[fact] <= (np.log1p(budget) if fact == "log_ppl" else budget)
    # Whether gains of a random model cost it so much perplexity is chance; at the cap it is said.
    at_cap = any("was not reached" in note["sentence"] for note in dial["notes"])
    assert (dial["strength"] < DetoxSettings().most) != at_cap
    assert not (at_cap and fact == "kl")
    trained = dd.Intervention.load(work_of(out) / "gains" / GAINS_FILE).gain
    scaled = dd.Intervention.load(work_of(dialled) / EDIT).gain
    np.testing.assert_allclose(scaled, 1 + dial["strength"] * (trained - 1), rtol=1e-12)


def test_what_the_export_would_refuse_is_refused_first(study_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(study_file.parent / "model", tmp_path / "quantised")
    path = tmp_path / "quantised" / "config.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "quantization_config": {"quant_method": "awq"}})
    )
    result = invoke("detox", tmp_path / "quantised", "--out", out, "--config", study_file)
    assert result.exit_code == 1
    assert isinstance(result.exception, DialdownError)
    assert not work_of(out).exists()


def test_apply_puts_the_edit_on_again(
    done: tuple[Path, Result], study_file: Path, tmp_path: Path
) -> None:
    out, _ = done
    result = invoke(
        "apply", out, "--out", tmp_path / "again", "--base", study_file.parent / "model"
    )
    assert result.exit_code == 0, result.exception
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        out / "model.safetensors"
    ).read_bytes()


def test_chat_is_wired(done: tuple[Path, Result], study_file: Path) -> None:
    out, _ = done
    arguments = ["chat", str(out), "--base", str(study_file.parent / "model"), "--tokens", "3"]
    result = CliRunner().invoke(cli.app, arguments, input="/strength 0.5\nthe cat\n/quit\n")
    assert result.exit_code == 0, result.exception
    assert "edited, strength 0.5" in result.output

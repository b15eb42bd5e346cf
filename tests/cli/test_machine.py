"""What a command says while it works, when it is asked to end, and of the machine ahead."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from dialdown import DialdownError
from dialdown.cli import main as cli
from dialdown.cli.shared import Display
from dialdown.models.memory import Shape
from dialdown.study import load_config
from dialdown.study.memory import Device
from dialdown.study.needs import Need, needs, shape_of, tokens_by_stage, way_out
from helpers import tiny
from helpers.commands import invoke


@pytest.mark.parametrize("kept", [True, False])
def test_being_asked_to_end_says_what_is_kept(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, kept: bool
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    folder = tmp_path / "run"
    if kept:
        folder.mkdir()
        (folder / "pairs.jsonl").touch()
    with pytest.raises(SystemExit) as ended, cli.interruptible(folder):
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 128 + signal.SIGTERM
    told = capsys.readouterr().err
    assert ("rerun the same command to resume" in told) is kept
    assert (str(folder) in told) is kept
    assert ("nothing is kept" in told) is not kept
    assert signal.getsignal(signal.SIGTERM) == before


def test_one_bar_moves_forward_over_all_stages_and_tells_what_is_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    display = Display({"probe": 100.0, "evaluate": 300.0})
    display.enter("probe", False)
    for done in range(11):
        now = 2.0 * done
        display.progress("reading labelled texts", done, 10)
    now = 20.0
    display.progress("fitting", 0, 5)
    display.enter("evaluate", False)
    display.progress("evaluating rows", 0, 30)
    now = 40.0
    display.progress("evaluating rows", 10, 30)
    lines = capsys.readouterr().out.splitlines()
    # A quarter took 20 s and a third of the rest 20 s more: half is done after 40 s.
    assert lines[-1].strip() == "evaluate: evaluating rows: 10 of 30; about 40 s left"
    assert display.bar.tasks[0].completed == pytest.approx(200)
    assert display.bar.tasks[0].total == pytest.approx(400)


def test_work_without_stages_has_a_bar_of_its_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    display = Display()
    for work in ("fetching", "converting"):
        start = now
        for done in range(5):
            now = start + 20.0 * done
            display.progress(work, done, 4)
    display.progress("nothing", 0, 0)
    said = [line.strip() for line in capsys.readouterr().out.splitlines()]
    # The pace of one work is not that of the next.
    assert said[1] == "fetching: 2 of 4; about 40 s left"
    assert "converting: 2 of 4; about 40 s left" in said


def test_what_was_done_before_says_nothing_about_the_pace(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    display = Display({"probe": 100.0, "evaluate": 300.0})
    display.enter("probe", True)
    display.enter("evaluate", False)
    display.progress("evaluating rows", 10, 30)
    now = 50.0
    display.progress("evaluating rows", 20, 30)
    assert "about 50 s left" in capsys.readouterr().out


def test_doctor_tells_what_a_study_of_a_model_takes(tmp_path: Path) -> None:
    lm = tiny.lm("llama")
    lm.model.save_pretrained(tmp_path / "model")
    lm.tokenizer.save_pretrained(tmp_path / "model")
    lines = invoke("doctor", tmp_path / "model", "--set", "dpo.epochs=3").stdout.splitlines()
    parameters = sum(weight.numel() for weight in lm.model.parameters())
    assert f"{parameters:,} parameters" in lines[0]
    assert [line.split()[0] for line in lines[2:8]] == [
        "probe",
        "base",
        "pairs",
        "train",
        "activations",
        "evaluate",
    ]
    assert "so it fits" in lines[-2]
    assert "fits" in lines[-1]
    lines = invoke("doctor", tmp_path / "model", "--preset", "detox").stdout.splitlines()
    stages = ["probe", "pairs", "means", "gains", "dial", "check"]
    assert [line.split()[0] for line in lines[2:8]] == stages


def test_needs_grow_with_what_they_are_made_of(tmp_path: Path) -> None:
    tiny.lm("llama").model.save_pretrained(tmp_path / "model")
    flags = {"model": str(tmp_path / "model"), "interventions.extent": "tables"}
    config = load_config(preset="demo", flags=flags)
    shape, device = shape_of(config), Device("cpu", 1 << 40, 1 << 40, 0)
    assert shape.itemsize == 4
    of = {need.stage: need for need in needs(config, shape, device)}
    changed = {"evaluation.count": 256, "dpo.epochs": 2, "workers": 4}
    more = _needs({**flags, **changed}, shape, device, preset="demo")
    assert more["train"].tokens == 2 * of["train"].tokens
    assert more["evaluate"].tokens > 1.3 * of["evaluate"].tokens
    two = _needs({**flags, "workers": 2}, shape, device, preset="demo")
    assert more["evaluate"].memory > 1.5 * two["evaluate"].memory
    # A model that is given needs no pairs and no training.
    given = load_config(preset="demo", flags={**flags, "tuned": "elsewhere"})
    assert not {"pairs", "train"} & tokens_by_stage(given).keys()


def test_a_front_beside_a_model_that_is_given_is_reckoned_with() -> None:
    flags = {"tuned": "elsewhere", "front.count": 8}
    front = {"gains", "step", "front"}
    assert front & tokens_by_stage(load_config(flags=flags)).keys() == {"front"}
    trained = {**flags, "tuned": None}
    assert front & tokens_by_stage(load_config(flags=trained)).keys() == front
    # The front is of the strict protocol.
    assert not front & tokens_by_stage(load_config(flags={**trained, "protocols": "paper"})).keys()


@pytest.mark.parametrize(("dtype", "bits"), [(None, torch.float32), ("bfloat16", torch.bfloat16)])
def test_doctor_times_the_device_that_it_is_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str | None, bits: torch.dtype
) -> None:
    """Also where there is a GPU."""
    tiny.lm("llama").model.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    timed = []
    original = torch.Tensor.__matmul__

    def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        timed.append((left.device.type, left.dtype, right.dtype))
        return original(left, right)

    monkeypatch.setattr(torch.Tensor, "__matmul__", product)
    given = ["--device", "cpu", *(["--dtype", dtype] if dtype else [])]
    result = invoke("doctor", tmp_path / "model", *given)
    assert result.exit_code == 0, result.exception
    assert {*timed} == {("cpu", bits, bits)}


def _needs(
    flags: dict[str, Any], shape: Shape, device: Device, preset: str = "full"
) -> dict[str, Need]:
    listed = needs(load_config(preset=preset, flags=flags), shape, device)
    return {need.stage: need for need in listed}


EIGHT = Shape(
    parameters=8_030_000_000, itemsize=2, layers=32, d_model=4096, neurons=14336,
    vocabulary=128_256, key_values=65_536, around=40,
)  # fmt: skip
H100 = Device("cuda", 80 << 30, 78 << 30, 1)


def test_a_model_of_eight_billion_parameters_on_one_gpu() -> None:
    flags = {"front.count": 4}
    whole = _needs(flags, EIGHT, H100)
    lora = _needs({**flags, "dpo.lora_rank": 16}, EIGHT, H100)
    # 16-bit weights, their copy to compute with, and float32 ones, gradients and RMSprop's state.
    assert whole["train"].least == 16 * EIGHT.parameters
    assert whole["train"].least > H100.total > lora["train"].memory
    ranks = _needs({**flags, "dpo.processes": 4}, EIGHT, H100._replace(gpus=4))
    assert ranks["train"].least == 4 * EIGHT.parameters
    assert ranks["train"].memory < H100.total
    # Batches are as large as fits, so nothing else takes more than there is.
    assert all(need.memory < H100.total for need in lora.values())
    fixed = _needs({**flags, "evaluation.batch_size": 20_000}, EIGHT, H100)
    assert fixed["evaluate"].memory > whole["evaluate"].memory
    eight_gpus = _needs({**flags, "workers": 8}, EIGHT, H100._replace(gpus=8))
    assert eight_gpus["evaluate"].memory == whole["evaluate"].memory


def test_ranks_are_a_way_out_only_of_a_training_that_may_have_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dialdown.study.needs.gpus", lambda device: ["0", "1", "2", "3"])
    published = load_config(preset="llama-3.1-8b")
    assert "dpo.processes" not in way_out("train", published)
    other = load_config(preset="llama-3.1-8b", flags={"dpo.kl_positions": "completion"})
    assert "dpo.processes to 4" in way_out("train", other)


def test_what_fits_on_no_device_is_refused_before_any_work(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        hidden_size=1 << 14, intermediate_size=1 << 17, num_hidden_layers=10,
        num_attention_heads=8, vocab_size=len(tiny.VOCABULARY), dtype="float32",
    )  # fmt: skip
    config.save_pretrained(tmp_path / "model")
    done = invoke("run", "--model", tmp_path / "model", "--out", tmp_path / "run")
    said = str(done.exception)
    assert isinstance(done.exception, DialdownError), said
    assert "does not fit: its stage train takes" in said
    assert "set dpo.lora_rank to 16, or dtype to bfloat16" in said
    assert not (tmp_path / "run").exists()


def test_the_bar_moves_with_each_piece_of_a_stage(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display({"base": 100.0, "evaluate": 100.0})
    display.enter("base", False)
    seen = []
    for work in ("decoding", "evaluating rows"):
        for done in (0, 4, 8):
            display.progress(work, done, 8)
            seen.append(display.bar.tasks[0].completed)
    assert seen == pytest.approx([0, 5, 10, 10, 55, 100])


@pytest.mark.parametrize(("stage", "work"), [("gains", "training"), ("fit", "fitting")])
def test_work_beside_a_stage_s_own_does_not_move_the_bar(stage: str, work: str) -> None:
    display = Display({stage: 100.0, "check": 100.0})
    display.enter(stage, False)
    display.progress("writing text of its own", 95, 95)
    assert display.bar.tasks[0].completed == 0
    display.progress(work, 1, 4)
    assert display.bar.tasks[0].completed == pytest.approx(25)

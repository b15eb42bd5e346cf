"""What an export's own check accepts, in float32 and 16 bits, and what it catches."""

from __future__ import annotations

import importlib
from itertools import product
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import dialdown as dd
from dialdown import DialdownError
from dialdown.data.model_files import copy_files
from dialdown.exporting.export import export
from dialdown.exporting.verify import PROMPTS
from dialdown.interventions import Intervention
from dialdown.models import LM
from helpers import tiny
from helpers.edits import IDS, KINDS, WITHOUT_BIAS, exact, hooked, make
from helpers.folders import assert_same, saved

# `dialdown.exporting.export` is the function; the module of that name is found like this.
export_module = importlib.import_module("dialdown.exporting.export")


# Gemma-2 has no bias to fold another kind into, and refuses.
@pytest.mark.parametrize(
    ("name", "kind"),
    [*product(["gpt2", "llama", "granite"], KINDS), *product(["gemma2"], WITHOUT_BIAS)],
)
def test_an_export_is_verified_and_loads_as_the_folded_model(
    tmp_path: Path, name: str, kind: str
) -> None:
    lm = tiny.lm(name)
    edit = exact(make(lm, kind))
    done = export(saved(lm, tmp_path / "base"), edit, tmp_path / "out")
    again = dd.load(done.folder, device="cpu")
    assert torch.equal(tiny.logits(again, IDS), tiny.logits(edit.fold(lm), IDS))
    assert done.verification is not None
    assert done.verification.difference <= done.verification.tolerance
    assert done.verification.tolerance == pytest.approx(1e-3, rel=0.1)


def test_a_float32_model_that_magnifies_rounding_is_not_refused_for_it(tmp_path: Path) -> None:
    lm = tiny.lm("llama")
    with torch.no_grad():
        lm.model.lm_head.weight *= 1e5
    edit = exact(make(lm, "scale"))
    verified = export(saved(lm, tmp_path / "base"), edit, tmp_path / "out").verification
    assert verified is not None
    assert 1e-3 < verified.difference <= verified.tolerance
    # What the edit does is still far above what is accepted.
    assert float((hooked(lm, edit) - tiny.logits(lm, IDS)).abs().max()) > 1000 * verified.tolerance


@pytest.mark.parametrize("kind", WITHOUT_BIAS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_strong_edit_of_sixteen_bits_is_not_refused_for_its_own_rounding(
    tmp_path: Path, kind: str, dtype: torch.dtype
) -> None:
    lm = tiny.lm("llama", dtype=dtype)
    base = saved(lm, tmp_path / "base")
    for seed in range(3):
        edit = exact(make(lm, kind, seed=seed, strength=3.0))
        done = export(base, edit, tmp_path / f"out-{seed}")
        assert_same(done.folder, edit.fold(lm))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_stay_sixteen_bits(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    lm = tiny.lm("llama", dtype=dtype)
    edit = exact(make(lm, kind, strength=0.3))
    done = export(saved(lm, tmp_path / "base"), edit, tmp_path / "out")
    assert_same(done.folder, edit.fold(lm))
    verified = done.verification
    assert verified is not None
    assert verified.tolerance == pytest.approx(1e-3 + 4 * verified.rounding)
    assert verified.difference <= verified.tolerance
    # The tolerance follows the rounding: it is far from what the edit itself does.
    base = LM.of(lm.model.float(), lm.tokenizer)
    ids = torch.tensor([lm.tokenizer(PROMPTS[0])["input_ids"]])
    assert (
        float((hooked(base, edit, ids) - tiny.logits(base, ids)).abs().max())
        > 5 * verified.tolerance
    )


def test_sixteen_bits_are_verified_in_float32_on_every_architecture(lm: LM, tmp_path: Path) -> None:
    small = LM.of(lm.twin().model.to(torch.bfloat16), lm.tokenizer)
    edit, base = exact(make(small, "scale", strength=0.3)), saved(small, tmp_path / "base")
    verified = export(base, edit, tmp_path / "out").verification
    # As if the checkpoint were in float32: the whole model is widened at once.
    whole = LM.of(dd.load(base, device="cpu").model, lm.tokenizer)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    edited = LM.of(exported, lm.tokenizer)
    worst = 0.0
    for text in PROMPTS:
        ids = torch.tensor([lm.tokenizer(text)["input_ids"]])
        apart = hooked(whole, edit, ids) - tiny.logits(edited, ids)
        worst = max(worst, float(apart.abs().max()))
    assert verified is not None
    assert verified.difference == pytest.approx(worst, rel=0.05, abs=1e-5)


def test_a_model_too_large_to_verify_is_seen_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny.lm("llama", dtype=torch.bfloat16)
    base = saved(lm, tmp_path / "base")
    size = 2 * sum(weight.numel() for weight in lm.model.parameters())
    memory = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(available=size))
    with pytest.raises(DialdownError, match=r"Verification loads base, which needs .*--no-verify"):
        export(base, make(lm, "scale"), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
    assert export(base, make(lm, "scale"), tmp_path / "out", verify=False).folder.is_dir()


def _damage(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][:, 3] *= 1.5
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_column_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    lm = tiny.lm("llama", dtype=dtype)
    base = saved(lm, tmp_path / "base")
    write = export_module.write_weights

    def wrong(base: Any, edit: Intervention, folder: Path, *args: Any) -> bool:
        biased = write(base, edit, folder, *args)
        _damage(folder)
        return biased

    monkeypatch.setattr(export_module, "write_weights", wrong)
    with pytest.raises(DialdownError, match=r"differs by \d.*is accepted"):
        export(base, make(lm, "scale", strength=0.1), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


@pytest.mark.parametrize("weight", ["model.layers.1.mlp.down_proj.weight", "model.norm.weight"])
def test_a_weight_is_caught_that_rounding_hides_in_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weight: str
) -> None:
    """Of a weak edit in bfloat16, all that it does is less than what rounding may do."""
    lm = tiny.lm("llama", dtype=torch.bfloat16)
    base = saved(lm, tmp_path / "base")
    write = export_module.write_weights

    def wrong(opened: Any, edit: Intervention, folder: Path) -> bool:
        biased = write(opened, edit, folder)
        tensors = load_file(folder / "model.safetensors")
        untouched = load_file(base / "model.safetensors")[weight]
        tensors[weight] = untouched if "down" in weight else untouched * 1.01
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return biased

    edit = exact(make(lm, "scale", strength=0.02))
    assert export(base, edit, tmp_path / "right").verification.weights == sum(
        parameter.numel() for parameter in lm.model.parameters()
    )
    monkeypatch.setattr(export_module, "write_weights", wrong)
    with pytest.raises(DialdownError, match=f"its {weight} is not what the edit makes of"):
        export(base, edit, tmp_path / "out")


def test_another_tokenizer_is_caught(
    llama: LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = saved(llama, tmp_path / "base")

    def other(base: Path, folder: Path) -> None:
        copy_files(base, folder)
        tiny.tokenizer(bos=True).save_pretrained(folder)

    monkeypatch.setattr(export_module, "copy_files", other)
    with pytest.raises(DialdownError, match="other ids"):
        export(base, make(llama, "scale"), tmp_path / "out")
    assert not (tmp_path / "out").exists()

"""Exported folders against the folded model, tensor by tensor and as their users load them (METHOD
§7).
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import dialdown as dd
from dialdown import DialdownError
from dialdown.exporting.export import export
from dialdown.models import LM
from dialdown.models.sites import projections
from helpers import tiny
from helpers.edits import IDS, WITH_BIAS, WITHOUT_BIAS, exact, make
from helpers.folders import assert_same, saved, stored


@pytest.mark.parametrize("kind", ["set", "scale", "rank_one", "attention"])
def test_an_export_is_the_folded_model(lm: LM, tmp_path: Path, kind: str) -> None:
    base = saved(lm, tmp_path / "base")
    edit = exact(make(lm, kind))
    out = tmp_path / "out"
    if lm.name.removeprefix("tiny-") not in WITH_BIAS and kind not in WITHOUT_BIAS:
        with pytest.raises(DialdownError, match=r"kind='scale'.*control vector"):
            export(base, edit, out, verify=False)
        assert [path.name for path in tmp_path.iterdir()] == ["base"]
        return
    export(base, edit, out, verify=False)
    assert_same(out, edit.fold(lm))
    before, after = stored(base), stored(out)
    changed = {
        name.rpartition(".")[0] for name in before if not torch.equal(before[name], after[name])
    }
    site = projections(lm, "attention" if kind == "attention" else "mlp")
    assert changed == {projection.path for projection in site}
    if kind in WITHOUT_BIAS:
        assert (out / "config.json").read_bytes() == (base / "config.json").read_bytes()


def test_both_sites_are_exported_at_once(llama: LM, tmp_path: Path) -> None:
    shift, attention = (exact(make(llama, kind)) for kind in ("shift", "attention"))
    both = replace(shift, kind="affine", rank_one=attention.rank_one)
    done = export(saved(llama, tmp_path / "base"), both, tmp_path / "out")
    assert_same(done.folder, both.fold(llama))


def test_an_edited_column_is_its_float64_product_rounded_once(
    gpt2: LM, llama: LM, tmp_path: Path
) -> None:
    for lm, transposed in ((gpt2, True), (llama, False)):
        edit = exact(make(lm, "scale"))
        base = saved(lm, tmp_path / f"base-{lm.name}")
        after = stored(export(base, edit, tmp_path / f"out-{lm.name}", verify=False).folder)
        for index, layer in enumerate(lm.view.layers):
            weight = stored(base)[f"{layer.path}.weight"].double()
            gain = torch.from_numpy(edit.gain[index])
            expected = weight * (gain[:, None] if transposed else gain[None, :])
            assert torch.equal(after[f"{layer.path}.weight"], expected.float())


@pytest.mark.parametrize("size", ["5GB", "9KB"])
@pytest.mark.parametrize("kind", ["scale", "set"])
def test_files_are_the_base_s_but_for_what_the_edit_changes(
    llama: LM, tmp_path: Path, size: str, kind: str
) -> None:
    """In one file or many; biases that a Llama lacks come in one more."""
    base = saved(llama, tmp_path / "base", max_shard_size=size)
    before = sorted(path.name for path in base.glob("*.safetensors"))
    assert (len(before) > 3) == (size == "9KB")
    edit = exact(make(llama, kind))
    out = export(base, edit, tmp_path / "out").folder
    assert_same(out, edit.fold(llama))
    files = sorted(path.name for path in out.glob("*.safetensors"))
    if kind == "scale":
        assert files == before
    elif size == "9KB":
        assert files == sorted(["model-biases.safetensors", *before])
    else:
        assert files == ["model-biases.safetensors", "model-weights.safetensors"]
    if files == ["model.safetensors"]:
        return
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == files
    tensors = stored(out)
    assert set(index["weight_map"]) == set(tensors)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    for file in files:
        with safe_open(out / file, framework="pt") as handle:
            named = {name for name, where in index["weight_map"].items() if where == file}
            assert named == set(handle.keys())
            assert handle.metadata() == {"format": "pt"}


def test_a_tensor_stored_without_the_base_prefix_is_found(gpt2: LM, tmp_path: Path) -> None:
    base = saved(gpt2, tmp_path / "base")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in stored(base).items()}
    save_file(bare, base / "model.safetensors", metadata={"format": "pt"})
    edit = exact(make(gpt2, "set"))
    done = export(base, edit, tmp_path / "out")
    assert set(stored(done.folder)) == set(bare)
    assert torch.equal(
        tiny.logits(dd.load(done.folder, device="cpu"), IDS), tiny.logits(edit.fold(gpt2), IDS)
    )


def test_an_output_that_is_not_empty_needs_force(llama: LM, tmp_path: Path) -> None:
    base, out = saved(llama, tmp_path / "base"), tmp_path / "out"
    out.mkdir()
    (out / "old.txt").write_text("old")
    edit = exact(make(llama, "scale"))
    with pytest.raises(DialdownError, match="not empty"):
        export(base, edit, out, verify=False)
    with pytest.raises(DialdownError, match="does not hold a model, and force would"):
        export(base, edit, out, verify=False, force=True)
    assert [path.name for path in out.iterdir()] == ["old.txt"]
    (out / "config.json").write_text("{}")
    export(base, edit, out, verify=False, force=True)
    assert not (out / "old.txt").exists()
    assert_same(out, edit.fold(llama))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out"]
    with pytest.raises(DialdownError, match="does not hold a model"):
        export(base, edit, tmp_path, verify=False, force=True)
    (tmp_path / "config.json").write_text("{}")
    for place in (base, tmp_path):
        with pytest.raises(DialdownError, match="holds the base model"):
            export(base, edit, place, verify=False, force=True)
    assert (base / "model.safetensors").exists()
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(DialdownError, match="is a file"):
        export(base, edit, file)


def test_a_full_disk_is_seen_before_anything_is_written(
    llama: LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = saved(llama, tmp_path / "base")
    size = sum(tensor.nbytes for tensor in stored(base).values())
    usage = shutil.disk_usage(tmp_path)
    edit = make(llama, "scale")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=int(1.04 * size)))
    with pytest.raises(DialdownError, match="free some space"):
        export(base, edit, tmp_path / "new" / "out", verify=False)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=int(1.06 * size)))
    assert export(base, edit, tmp_path / "new" / "out", verify=False).folder.is_dir()


def test_what_a_killed_export_left_is_removed_by_the_next(llama: LM, tmp_path: Path) -> None:
    base, out = saved(llama, tmp_path / "base"), tmp_path / "out"
    running, here = psutil.Process(os.getppid()), f".out.{platform.node()}."
    kept = f"{here}{running.pid}-{int(running.create_time())}.partial"
    # The second has a number that another process was given since.
    for name in (
        kept,
        f"{here}{running.pid}-1.partial",
        f"{here}999999999-1.partial",
        ".out.elsewhere.1-1.partial",
    ):
        (tmp_path / name).mkdir()
    export(base, make(llama, "scale"), out, verify=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [".out.elsewhere.1-1.partial", kept, "base", "out"]
    )
    # Killed between the two renames, it left the former folder under another name.
    out.rename(tmp_path / f"{here}999999999-1.old")
    with pytest.raises(DialdownError, match="not empty"):
        export(base, make(llama, "scale"), out, verify=False)
    assert (out / "config.json").exists()


def rewrite_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_what_cannot_be_edited_is_refused(llama: LM, tmp_path: Path) -> None:
    edit = make(llama, "scale")

    def refused(base: Path | str, words: str) -> None:
        with pytest.raises(DialdownError, match=words):
            export(base, edit, tmp_path / "out", verify=False)
        assert not (tmp_path / "out").exists()

    quantised = saved(llama, tmp_path / "quantised")
    rewrite_config(quantised, quantization_config={"quant_method": "gptq", "bits": 4})
    refused(quantised, r"quantised \(gptq\).*quantise the export again")

    integers = saved(llama, tmp_path / "integers")
    tensors = stored(integers)
    name = "model.layers.1.mlp.down_proj.weight"
    save_file({**tensors, name: tensors[name].to(torch.int8)}, integers / "model.safetensors")
    refused(integers, f"{name} .*is stored as I8")

    missing = saved(llama, tmp_path / "missing")
    save_file({key: tensors[key] for key in tensors if key != name}, missing / "model.safetensors")
    refused(missing, f"no tensor {name}")

    other = saved(llama, tmp_path / "other")
    rewrite_config(other, intermediate_size=tiny.NEURONS + 2)
    refused(other, "its config asks for")

    pickled = saved(llama, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    refused(pickled, r"call model\.save_pretrained")

    cut = saved(llama, tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:-5])
    refused(cut, "cut short")

    (tmp_path / "nothing").mkdir()
    refused(tmp_path / "nothing", "no config.json")
    refused(str(tmp_path / "nowhere"), "is not there")

    wide = make(tiny.lm("llama", intermediate_size=tiny.NEURONS + 2), "scale")
    with pytest.raises(DialdownError, match=rf"shape \(3, {tiny.NEURONS + 2}\)"):
        export(saved(llama, tmp_path / "base"), wide, tmp_path / "out")


class TwiceConfig(LlamaConfig):
    model_type = "twice"


class TwiceForCausalLM(LlamaForCausalLM):
    """A model whose first two layers are two uses of one down projection."""

    config_class = TwiceConfig

    def __init__(self, config: TwiceConfig) -> None:
        super().__init__(config)
        self.model.layers[1].mlp.down_proj.weight = self.model.layers[0].mlp.down_proj.weight


def test_what_has_no_revisions_is_not_taken_for_one(llama: LM, tmp_path: Path) -> None:
    base, edit = saved(llama, tmp_path / "base"), make(llama, "scale")
    for act in (
        lambda: export(base, edit, tmp_path / "out", revision="v1"),
        lambda: dd.load(base, revision="v1"),
        lambda: dd.load("embedded:smollm2-135m", revision="v1"),
    ):
        with pytest.raises(DialdownError, match="revision='v1' has no effect on"):
            act()
    assert not (tmp_path / "out").exists()


def test_a_shared_matrix_is_refused(llama: LM, tmp_path: Path) -> None:
    AutoConfig.register("twice", TwiceConfig, exist_ok=True)
    AutoModelForCausalLM.register(TwiceConfig, TwiceForCausalLM, exist_ok=True)
    base = saved(llama, tmp_path / "base")
    rewrite_config(base, model_type="twice", architectures=["TwiceForCausalLM"])
    with pytest.raises(DialdownError, match=r"model\.layers\.0\.mlp\.down_proj .*shared"):
        export(base, make(llama, "scale"), tmp_path / "out")


def test_an_overflow_is_refused(tmp_path: Path) -> None:
    lm = tiny.lm("llama", dtype=torch.float16)
    edit = make(lm, "scale", strength=1e7)
    with pytest.raises(DialdownError, match="too large for float16"):
        export(saved(lm, tmp_path / "base"), edit, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


TWICE = """
import json, sys
from pathlib import Path
import numpy as np
from dialdown.exporting.export import export
from dialdown.interventions.intervention import Intervention
from dialdown.workers import peak_bytes

def silence(base, layers):
    shape = (layers, int(sys.argv[2]))
    edit = Intervention("it", "set", np.zeros(shape), np.ones(shape), np.ones(shape, dtype=bool))
    export(base, edit, base.with_name(base.name + "-out"), verify=False)
    return peak_bytes()

root = Path(sys.argv[1])
print(json.dumps([silence(root / "1", 1), silence(root / "12", 12)]))
"""


def empty_checkpoint(folder: Path, *, layers: int, width: int, neurons: int) -> int:
    """A checkpoint of zeros in a file with a hole, so that nothing is stored; its size in bytes."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=width,
        intermediate_size=neurons,
        num_hidden_layers=layers,
        num_attention_heads=8,
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(folder)
    with torch.device("meta"):
        state = LlamaForCausalLM(config).state_dict()
    header, start = {}, 0
    for name, tensor in state.items():
        header[name] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [start, start + tensor.nbytes],
        }
        start += tensor.nbytes
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        handle.truncate(8 + len(text) + start)
    return start


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """What one layer takes (the libraries' own memory among it), twelve take too: 200 MB in one
    file, and biases that are new.
    """
    sizes = [
        empty_checkpoint(tmp_path / str(n), layers=n, width=512, neurons=2048) for n in (1, 12)
    ]
    command = [sys.executable, "-c", TWICE, str(tmp_path), "2048"]
    # Freed memory goes back at once: what the C library would keep varies by more than all that an
    # export holds.
    returning = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    out = subprocess.run(command, check=True, capture_output=True, text=True, env=returning).stdout
    peak_of_one, peak_of_twelve = json.loads(out)
    assert sizes[1] > 195e6
    assert peak_of_twelve - peak_of_one < 0.1 * sizes[1]

"""An edit alone, put on its base again (issue 4, item 4)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from test_export import FEW, exact, saved, stored
from test_interventions import KINDS, make

from dialdown.delta import load_delta, rounded, save_delta
from dialdown.errors import DialdownError
from dialdown.export import apply_delta, export
from dialdown.interventions import Intervention
from dialdown.models import LM

NOTES = {"why": "to see it again"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_delta_comes_back(llama: LM, tmp_path: Path, kind: str) -> None:
    base = saved(llama, tmp_path / "base")
    edit = make(llama, kind)
    wrote = save_delta(edit, base, tmp_path / "delta", notes=NOTES)
    again = load_delta(tmp_path / "delta")
    assert again.edit.key == wrote.edit.key == rounded(edit).key
    np.testing.assert_allclose(again.edit.gain, edit.gain, rtol=1e-7)
    assert np.array_equal(again.edit.offset, edit.offset)
    assert (again.base, again.revision, again.sha256) == ("base", None, wrote.sha256)
    assert again.record == wrote.record
    assert again.record["notes"] == NOTES
    assert str(tmp_path) not in (tmp_path / "delta/edit.json").read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_applying_is_exporting(gpt2: LM, tmp_path: Path, kind: str) -> None:
    """Bit for bit, also for gains float32 does not hold: what is exported is what is stored."""
    base = saved(gpt2, tmp_path / "base")
    one = export(base, make(gpt2, kind), tmp_path / "one", notes=NOTES, prompts=FEW)
    two = apply_delta(one.folder, tmp_path / "two", base=base, prompts=FEW)
    assert one.files == two.files
    assert one.base_sha256 == two.base_sha256 == load_delta(one.folder).sha256


def test_a_delta_can_be_dialled(llama: LM, tmp_path: Path) -> None:
    base = saved(llama, tmp_path / "base")
    edit = exact(make(llama, "scale"))
    save_delta(edit, base, tmp_path / "delta", notes=NOTES)
    half = apply_delta(tmp_path / "delta", tmp_path / "half", base=base, strength=0.5, verify=False)
    expected = rounded(edit.at(0.5)).fold(llama).model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in stored(half.folder).items())
    record = load_delta(half.folder).record
    assert record["strength"] == 0.5
    assert record["notes"] == {}, "what was measured at 1 says nothing of another strength"
    none = apply_delta(tmp_path / "delta", tmp_path / "none", base=base, strength=0.0, verify=False)
    before = stored(base)
    assert all(torch.equal(tensor, before[name]) for name, tensor in stored(none.folder).items())


def test_another_base_is_refused(llama: LM, tmp_path: Path) -> None:
    base = saved(llama, tmp_path / "base")
    save_delta(make(llama, "scale"), base, tmp_path / "delta")
    attention = llama.twin()
    attention.model.model.layers[0].self_attn.q_proj.weight.data[0, 0] += 1e-3
    others = {
        "attention": attention,
        "seed": tiny.lm("llama", seed=1),
        "dtype": LM.of(tiny.model("llama").to(torch.bfloat16), tiny.tokenizer()),
        "edited": exact(make(llama, "scale", share=0.05)).fold(llama),
    }
    for name, other in others.items():
        with pytest.raises(DialdownError, match="not the base this delta was made for"):
            apply_delta(tmp_path / "delta", tmp_path / "out", base=saved(other, tmp_path / name))
    assert not (tmp_path / "out").exists()
    # The same base in another folder and other shards is the same base.
    copy = saved(llama, tmp_path / "copy", max_shard_size="9KB")
    assert apply_delta(tmp_path / "delta", tmp_path / "out", base=copy, prompts=FEW).verification is not None


def test_the_same_weights_stored_otherwise_are_the_same_base(gpt2: LM, tmp_path: Path) -> None:
    base = saved(gpt2, tmp_path / "base")
    save_delta(make(gpt2, "scale"), base, tmp_path / "delta")
    # As the first GPT-2 checkpoints are: without the prefix, with buffers, and with the tied weight under both names.
    copy = saved(gpt2, tmp_path / "copy")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in stored(base).items()}
    more = {"h.0.attn.masked_bias": torch.tensor(-1e4), "lm_head.weight": bare["wte.weight"].clone()}
    save_file({**bare, **more}, copy / "model.safetensors", metadata={"format": "pt"})
    assert apply_delta(tmp_path / "delta", tmp_path / "out", base=copy, verify=False).folder.is_dir()
    # Where the two differ, transformers ties nothing, and the head is a weight of its own.
    more["lm_head.weight"][0, 0] += 1e-3
    save_file({**bare, **more}, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DialdownError, match="not the base this delta was made for"):
        apply_delta(tmp_path / "delta", tmp_path / "other", base=copy, verify=False)


def test_a_local_base_must_be_named(llama: LM, tmp_path: Path) -> None:
    save_delta(make(llama, "scale"), saved(llama, tmp_path / "base"), tmp_path / "delta")
    with pytest.raises(DialdownError, match="local folder called 'base'"):
        apply_delta(tmp_path / "delta", tmp_path / "out")


def test_a_damaged_delta_is_refused(llama: LM, tmp_path: Path) -> None:
    base = saved(llama, tmp_path / "base")
    with pytest.raises(DialdownError, match="holds no delta"):
        load_delta(base)
    save_delta(make(llama, "scale"), base, tmp_path / "delta")
    make(llama, "scale", seed=1).save(tmp_path / "delta/edit.safetensors")
    with pytest.raises(DialdownError, match="its sha256 differs"):
        load_delta(tmp_path / "delta")
    path = tmp_path / "delta/edit.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 99}))
    with pytest.raises(DialdownError, match="schema"):
        load_delta(tmp_path / "delta")
    with pytest.raises(DialdownError, match="did you mean 'why'"):
        save_delta(make(llama, "scale"), base, tmp_path / "other", notes={"wy": ""})


def test_a_delta_is_small(tmp_path: Path) -> None:
    """46,080 gains, as many as SmolLM2-135M has neurons."""
    shape = (30, 1536)
    gain = 1 + 0.04 * np.random.default_rng(0).standard_normal(shape)
    edit = Intervention("it", "scale", gain, np.zeros(shape), np.ones(shape, dtype=bool))
    rounded(edit).save(tmp_path / "edit.safetensors")
    assert (tmp_path / "edit.safetensors").stat().st_size < 300_000


@settings(max_examples=50, deadline=None)
@given(gains=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_rounding_keeps_seven_digits_and_is_done_once(gains: list[float]) -> None:
    gain = np.array([gains])
    edit = Intervention("it", "scale", gain, np.zeros_like(gain), np.ones(gain.shape, dtype=bool))
    once = rounded(edit)
    assert np.all(abs(once.gain - gain) <= 1e-7 * abs(gain))
    assert once.key == rounded(once).key

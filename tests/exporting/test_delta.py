"""An edit alone, put on its base again."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file

from dialdown import DialdownError
from dialdown.data.local_paths import without_paths
from dialdown.exporting import apply_delta, load_delta, save_delta
from dialdown.exporting.delta import check_notes, rounded
from dialdown.exporting.export import export
from dialdown.files import file_sha256
from dialdown.interventions import Intervention
from dialdown.models import LM
from helpers import tiny
from helpers.edits import KINDS, exact, make
from helpers.folders import saved, stored

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
    exported = export(base, make(gpt2, kind), tmp_path / "one", notes=NOTES)
    applied = apply_delta(exported.folder, tmp_path / "two", base=base)
    assert exported.files == applied.files
    assert load_delta(exported.folder).sha256 == load_delta(applied.folder).sha256


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
        "dtype": tiny.lm("llama", dtype=torch.bfloat16),
        "edited": exact(make(llama, "scale", share=0.05)).fold(llama),
    }
    for name, other in others.items():
        with pytest.raises(DialdownError, match="not the base this delta was made for"):
            apply_delta(tmp_path / "delta", tmp_path / "out", base=saved(other, tmp_path / name))
    assert not (tmp_path / "out").exists()
    # The same base in another folder and other shards is the same base.
    copy = saved(llama, tmp_path / "copy", max_shard_size="9KB")
    assert apply_delta(tmp_path / "delta", tmp_path / "out", base=copy).verification is not None


def test_the_same_weights_stored_otherwise_are_the_same_base(gpt2: LM, tmp_path: Path) -> None:
    base = saved(gpt2, tmp_path / "base")
    save_delta(make(gpt2, "scale"), base, tmp_path / "delta")
    # As the first GPT-2 checkpoints are: without the prefix, with buffers, and with the tied weight
    # under both names.
    copy = saved(gpt2, tmp_path / "copy")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in stored(base).items()}
    more = {
        "h.0.attn.masked_bias": torch.tensor(-1e4),
        "lm_head.weight": bare["wte.weight"].clone(),
    }
    save_file({**bare, **more}, copy / "model.safetensors", metadata={"format": "pt"})
    assert apply_delta(
        tmp_path / "delta", tmp_path / "out", base=copy, verify=False
    ).folder.is_dir()
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
    with pytest.raises(DialdownError, match=r"describes .*sha256"):
        load_delta(tmp_path / "delta")
    path = tmp_path / "delta/edit.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 99}))
    with pytest.raises(DialdownError, match="schema"):
        load_delta(tmp_path / "delta")
    with pytest.raises(DialdownError, match=r"did you mean 'why'\?$"):
        save_delta(make(llama, "scale"), base, tmp_path / "other", notes={"wy": ""})


# What is put in the place of a field of edit.json, or of the header of edit.safetensors.
WRONG: tuple[Any, ...] = (
    ...,
    None,
    {},
    [],
    "",
    "x",
    0.5,
    -1,
    True,
    float("nan"),
    1e400,
    10**30,
    ["x"],
    {"x": 1},
)
HUGE = "9" * 5000


def fields(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every field of a JSON value."""
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, item in items:
        yield (*path, key)
        yield from fields(item, (*path, key))


def with_field(value: Any, path: tuple[Any, ...], other: Any) -> Any:
    """A copy of a JSON value with one field replaced, or dropped where the other value is `...`."""
    changed = copy.deepcopy(value)
    holder = changed
    for key in path[:-1]:
        holder = holder[key]
    if other is ...:
        del holder[path[-1]]
    else:
        holder[path[-1]] = other
    return changed


def refusal(folder: Path) -> str | None:
    """The sentence that a delta is refused with, or None."""
    try:
        load_delta(folder)
    except DialdownError as error:
        return str(error)
    return None


FULL = {
    "why": "to see it again",
    "rows": [
        {
            "name": "base",
            "toxicity": [0.2, 0.1, 0.3],
            "log_perplexity": [3.0, 2.0, 4.0],
            "kl": [0.0, 0.0, 0.0],
        }
    ],
    "judge": "a scorer",
    "caveat": "one judge",
    "text": "a text",
}


def test_no_field_of_a_record_is_taken_as_it_comes(llama: LM, tmp_path: Path) -> None:
    """Every field dropped, and replaced by each wrong value: an edit of the same record, or a
    sentence.
    """
    folder = tmp_path / "delta"
    wrote = save_delta(make(llama, "scale"), saved(llama, tmp_path / "base"), folder, notes=FULL)
    path, refused = folder / "edit.json", 0
    texts = [
        json.dumps(with_field(wrote.record, field, other))
        for field in fields(wrote.record)
        for other in WRONG
    ]
    texts += [
        json.dumps({**wrote.record, "further": 1}),
        json.dumps([wrote.record]),
        "null",
        "",
        "{",
        "[" * 100_000,
    ]
    texts += [json.dumps(wrote.record).replace('"schema": 2', f'"schema": {HUGE}'), '"\\ud83d"']
    for text in texts:
        path.write_text(text)
        refused += (sentence := refusal(folder)) is not None
        if sentence is None:
            # What is left is notes that are optional, names, and numbers that a figure may have.
            again = load_delta(folder)
            assert again.edit.key == wrote.edit.key
            check_notes(again.record["notes"])
        else:
            assert "edit." in sentence
            assert len(sentence) < 500
    path.write_bytes(json.dumps(wrote.record).encode("utf-16"))
    with pytest.raises(DialdownError):
        load_delta(folder)
    assert refused > 250
    for field in fields(wrote.record):
        if "notes" not in field[:1]:
            path.write_text(json.dumps(with_field(wrote.record, field, ...)))
            with pytest.raises(DialdownError, match=str(field[-1])):
                load_delta(folder)


def signed(folder: Path, arrays: dict[str, Any], header: Any) -> None:
    """Write an edit's file that the record beside it vouches for."""
    text = header if isinstance(header, str) else json.dumps(header)
    save_arrays(arrays, folder / "edit.safetensors", metadata={"dialdown": text})
    record = json.loads((folder / "edit.json").read_text())
    record["edit"]["sha256"] = file_sha256(folder / "edit.safetensors")
    (folder / "edit.json").write_text(json.dumps(record))


def test_no_field_of_an_edit_s_header_is_taken_as_it_comes(llama: LM, tmp_path: Path) -> None:
    folder = tmp_path / "delta"
    wrote = save_delta(make(llama, "set"), saved(llama, tmp_path / "base"), folder)
    with safe_open(folder / "edit.safetensors", framework="numpy") as handle:
        header = json.loads(handle.metadata()["dialdown"])
    header.pop("check", None)
    arrays, refused = load_arrays(folder / "edit.safetensors"), 0
    changed = [with_field(header, field, other) for field in fields(header) for other in WRONG]
    changed += [
        {**header, "record": {"strength": value}} for value in (None, "x", float("inf"), [], 2.0)
    ]
    changed += [{**header, "record": {"x": float("nan")}}, [], None, "x", "{", "[" * 100_000, HUGE]
    for other in changed:
        signed(folder, arrays, other)
        refused += (sentence := refusal(folder)) is not None
        if sentence is None:
            again = load_delta(folder)
            assert again.edit.key == wrote.edit.key
            save_delta(again.edit, tmp_path / "base", tmp_path / "copy")
        else:
            assert "edit." in sentence
    assert refused > 79


@pytest.mark.parametrize("kind", ["scale", "set", "rank_one", "steer"])
def test_no_tensor_of_an_edit_is_taken_as_it_comes(llama: LM, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "delta"
    save_delta(make(llama, kind), saved(llama, tmp_path / "base"), folder)
    with safe_open(folder / "edit.safetensors", framework="numpy") as handle:
        header = json.loads(handle.metadata()["dialdown"])
    header.pop("check", None)
    arrays = load_arrays(folder / "edit.safetensors")
    gain, refused = arrays["gain"], 0
    ways: dict[str, Callable[[Any], Any]] = {
        "dropped": lambda array: None,
        "integers": lambda array: np.zeros(array.shape, dtype=np.int64),
        "the other kind": lambda array: array.astype(np.float32 if array.dtype == bool else bool),
        "one axis more": lambda array: array[None],
        "flat": lambda array: array.reshape(-1)[: max(1, array.size - 1)],
        "no axis": lambda array: np.zeros((), dtype=array.dtype),
        "one row more": lambda array: (
            np.concatenate([array, array[:1]]) if array.ndim == 2 else None
        ),
        "huge": lambda array: np.zeros((2, *array.shape), dtype=array.dtype),
        "nan": lambda array: np.full(array.shape, np.nan),
        "infinite": lambda array: np.full(array.shape, np.inf),
    }
    for name in arrays:
        for way, change in ways.items():
            if (name, way) in (("vector", "flat"), ("offset", "dropped")):
                continue  # a vector that only a model can refuse, and offsets of zero
            if not arrays[name].size and way in ("nan", "infinite", "one row more"):
                continue  # a steering moves no neuron, so there is nothing to be wrong
            others = {**arrays, name: change(arrays[name])}
            signed(
                folder, {key: value for key, value in others.items() if value is not None}, header
            )
            with pytest.raises(DialdownError, match=r"edit\.(safetensors|json)"):
                load_delta(folder)
            refused += 1
    extra = {"vector": np.ones(4)} if kind != "steer" else {}
    for others in (
        {**arrays, "further": gain},
        {**arrays, **extra, "offset": np.ones((1, 2))},
        extra and {**arrays, **extra},
        {**arrays, "output_gain": np.ones(4), "output_offset": np.ones(4)},
    ):
        if others:
            signed(folder, others, header)
            with pytest.raises(DialdownError, match=r"edit\.safetensors"):
                load_delta(folder)
    assert refused >= 17
    save_file({"gain": torch.zeros(2, 2, dtype=torch.bfloat16)}, folder / "edit.safetensors")
    with pytest.raises(DialdownError):
        Intervention.load(folder / "edit.safetensors")


def test_a_delta_with_one_file_is_refused(llama: LM, tmp_path: Path) -> None:
    save_delta(make(llama, "scale"), saved(llama, tmp_path / "base"), tmp_path / "delta")
    (tmp_path / "delta" / "edit.safetensors").unlink()
    with pytest.raises(DialdownError, match=r"edit\.json and no edit\.safetensors"):
        load_delta(tmp_path / "delta")


def test_no_folder_of_one_s_own_is_in_what_is_published(llama: LM, tmp_path: Path) -> None:
    base = saved(llama, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(
        json.dumps({**config, "_name_or_path": "/home/me/models/base"})
    )
    home = str(tmp_path)
    record = {
        "base": {"model": str(base)},
        "texts": [f"{home}/texts.jsonl"],
        "windows": "C:\\Users\\me\\x",
    }
    edit = replace(make(llama, "scale"), record=record)
    notes = {
        "why": f"Judged by {home}/judge (of '/home/me/x').",
        "judge": f"{home}/judge",
        "rows": [{"name": home}],
    }
    done = export(base, edit, tmp_path / "out", notes=notes, verify=False)
    for path in done.folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert home.encode() not in content, path
            assert b"/home/me" not in content, path
            assert b"Users" not in content, path
    assert load_delta(done.folder).record["notes"]["why"] == "Judged by judge (of 'x')."
    assert without_paths({"hub": "org/name", "text": "and/or, 1/2", "n": 1}) == {
        "hub": "org/name",
        "text": "and/or, 1/2",
        "n": 1,
    }


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

"""Control vectors: what llama.cpp would add, against the intervention itself (METHOD §7)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader, GGUFWriter
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dialdown import DialdownError
from dialdown.exporting import read_control_vector, write_control_vector
from dialdown.interventions import Intervention, untouched
from dialdown.models import LM
from helpers import tiny
from helpers.tiny import unchanged

IDS = tiny.random_ids(2, 12)
# A norm after the MLP turns a constant into a different vector at every token.
POST_NORM = {
    "tiny-gemma2",
    "tiny-gemma3",
    "tiny-olmo2",
    "tiny-exaone4",
    "tiny-hyperclovax",
    "tiny-gemma4",
}


def shift(lm: LM, *, first: bool = False, seed: int = 0) -> Intervention:
    """A random shift of half of all neurons; of layer 0 only where `first` says so."""
    rng = np.random.default_rng(seed)
    shape = (lm.view.n_layers, lm.view.n_neurons)
    selected = rng.random(shape) < 0.5
    selected[0] &= first
    return Intervention(
        "it", "shift", np.ones(shape), np.where(selected, rng.standard_normal(shape), 0.0), selected
    )


def read(path: Path) -> dict[int, NDArray[np.float32]]:
    """The vector of each layer in a file, as llama.cpp counts them."""
    tensors = GGUFReader(path).tensors
    return {
        int(tensor.name.removeprefix("direction.")): np.array(tensor.data) for tensor in tensors
    }


def steering(lm: LM) -> Intervention:
    return Intervention(
        "it", "steer", vector=np.random.default_rng(1).standard_normal(lm.view.d_model)
    )


def decoder_layers(lm: LM) -> list[Any]:
    """The modules whose output is the residual stream after each layer."""
    paths = [layer.path.split(".") for layer in lm.view.layers]
    ends = [next(place for place, part in enumerate(path) if part.isdigit()) for path in paths]
    return [
        lm.model.get_submodule(".".join(path[: end + 1]))
        for path, end in zip(paths, ends, strict=True)
    ]


@contextmanager
def llama_cpp(lm: LM, path: Path) -> Iterator[None]:
    """What llama.cpp does with a control vector: `direction.N` is added to the output of its block
    N.
    """

    def adding(vector: np.ndarray[Any, Any]) -> Any:
        def act(module: Any, args: Any, output: Any) -> Any:
            moved = (output[0] if isinstance(output, tuple) else output) + torch.as_tensor(vector)
            return (moved, *output[1:]) if isinstance(output, tuple) else moved

        return act

    layers, handles = decoder_layers(lm), []
    for tensor in GGUFReader(path).tensors:
        number = int(tensor.name.split(".")[1])
        assert number > 0, "llama.cpp refuses direction.0"
        handles.append(layers[number].register_forward_hook(adding(np.array(tensor.data))))
    yield
    for handle in handles:
        handle.remove()


def added(lm: LM, path: Path) -> torch.Tensor:
    with llama_cpp(lm, path):
        return tiny.logits(lm, IDS)


def applied(lm: LM, edit: Intervention) -> torch.Tensor:
    with edit.applied(lm):
        return tiny.logits(lm, IDS)


def assert_same(got: torch.Tensor, expected: torch.Tensor, base: torch.Tensor) -> None:
    assert float((got - expected).abs().max()) <= 1e-5 * max(1.0, float(expected.abs().max()))
    assert float((expected - base).abs().amax(-1).min()) > 1e-2, (
        "the intervention must change every position"
    )


def test_a_shift_is_its_control_vector(lm: LM, tmp_path: Path) -> None:
    path = tmp_path / "shift.gguf"
    if lm.name in POST_NORM:
        with unchanged(lm), pytest.raises(DialdownError, match=r"norm after the MLP.*kind='scale'"):
            write_control_vector(lm, shift(lm), path)
        assert not any(tmp_path.iterdir())
        return
    with unchanged(lm):
        assert write_control_vector(lm, shift(lm), path) == path
    assert_same(added(lm, path), applied(lm, shift(lm)), tiny.logits(lm, IDS))


def test_a_steering_is_its_control_vector(lm: LM, tmp_path: Path) -> None:
    path = write_control_vector(lm, steering(lm), tmp_path / "steer.gguf")
    assert_same(added(lm, path), applied(lm, steering(lm)), tiny.logits(lm, IDS))
    vectors = read(path)
    assert [layer for layer, vector in vectors.items() if vector.any()] == [lm.view.n_layers - 1]


def test_a_steering_can_come_with_a_shift(llama: LM, tmp_path: Path) -> None:
    both = Intervention(**{**vars(shift(llama)), "vector": steering(llama).vector})
    path = write_control_vector(llama, both, tmp_path / "both.gguf")
    assert_same(added(llama, path), applied(llama, both), tiny.logits(llama, IDS))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_each_layer_is_the_sum_over_its_neurons(name: str, tmp_path: Path) -> None:
    lm = tiny.lm(name)
    edit = shift(lm)
    vectors = read(write_control_vector(lm, edit, tmp_path / "v.gguf"))
    assert list(vectors) == [1, 2]
    for index, vector in vectors.items():
        values = lm.view.layers[index].value_vectors("paper").double().numpy()
        total = np.zeros(tiny.WIDTH)
        for i in range(tiny.NEURONS):
            total += edit.offset[index, i] * values[i]
        assert vector.dtype == np.float32
        assert (
            np.array_equal(vector, total.astype(np.float32)) or np.abs(vector - total).max() < 1e-6
        )


def test_bfloat16_weights_are_summed_in_float64(tmp_path: Path) -> None:
    half = tiny.lm("llama", dtype=torch.bfloat16)
    wide = LM.of(tiny.model("llama").to(torch.bfloat16).double(), tiny.tokenizer())
    vectors = read(write_control_vector(half, shift(half), tmp_path / "half.gguf"))
    exact = read(write_control_vector(wide, shift(wide), tmp_path / "wide.gguf"))
    assert all(np.array_equal(vectors[layer], exact[layer]) for layer in exact)


def test_layer_0_is_refused_or_left_out(gpt2: LM, tmp_path: Path) -> None:
    whole, path = shift(gpt2, first=True), tmp_path / "v.gguf"
    with pytest.raises(
        DialdownError, match=r"shifts layer 0 \(\d+% of what it writes\).*skip_first_layer=True"
    ):
        write_control_vector(gpt2, whole, path)
    assert not path.exists()
    write_control_vector(gpt2, whole, path, skip_first_layer=True)
    offset = whole.offset.copy()
    offset[0] = 0
    rest = Intervention(**{**vars(whole), "offset": offset})
    assert_same(added(gpt2, path), applied(gpt2, rest), tiny.logits(gpt2, IDS))
    assert "without the" in GGUFReader(path).get_field("general.description").contents()
    write_control_vector(gpt2, rest, path, skip_first_layer=True)
    assert "without" not in GGUFReader(path).get_field("general.description").contents()


@pytest.mark.parametrize("kind", ["scale", "set"])
def test_what_depends_on_the_activations_is_refused(llama: LM, kind: str, tmp_path: Path) -> None:
    gain = np.ones((tiny.LAYERS, tiny.NEURONS))
    gain[1, 3] = 0.5 if kind == "scale" else 0
    edit = Intervention("it", kind, gain, np.zeros_like(gain), gain != 1)  # type: ignore[arg-type]
    with pytest.raises(DialdownError, match=f"is a {kind} edit.*kind='shift'.*folded checkpoint"):
        write_control_vector(llama, edit, tmp_path / "v.gguf")
    assert not any(tmp_path.iterdir())


def test_another_models_edit_is_refused(llama: LM, tmp_path: Path) -> None:
    wide = shift(tiny.lm("llama", intermediate_size=tiny.NEURONS + 2))
    with pytest.raises(DialdownError, match="build it from this model's own table"):
        write_control_vector(llama, wide, tmp_path / "v.gguf")


def test_the_file_is_what_llama_cpp_reads(llama: LM, tmp_path: Path) -> None:
    path = write_control_vector(llama, shift(llama), tmp_path / "new" / "v.gguf")
    assert [file.name for file in path.parent.iterdir()] == ["v.gguf"]
    reader = GGUFReader(path)
    fields = {name: reader.get_field(name).contents() for name in reader.fields}
    assert fields["general.architecture"] == "controlvector"
    assert fields["controlvector.model_hint"] == "llama"
    assert fields["controlvector.layer_count"] == tiny.LAYERS - 1
    tensors = [
        (tensor.name, tensor.tensor_type.name, tensor.shape.tolist()) for tensor in reader.tensors
    ]
    assert tensors == [
        (f"direction.{layer}", "F32", [tiny.WIDTH]) for layer in range(1, tiny.LAYERS)
    ]


def test_nothing_is_a_vector_of_zeros(llama: LM, tmp_path: Path) -> None:
    for edit in (untouched(), shift(llama, first=True).at(0)):
        vectors = read(write_control_vector(llama, edit, tmp_path / "v.gguf"))
        assert list(vectors) == [1, 2]
        assert not any(vector.any() for vector in vectors.values())


def repeng(path: Path, vectors: dict[int, NDArray[np.float32]], model_type: str = "llama") -> Path:
    """The very calls by which repeng 0.4 writes a control vector."""
    writer = GGUFWriter(path, "controlvector")
    writer.add_string("controlvector.model_hint", model_type)
    writer.add_uint32("controlvector.layer_count", len(vectors))
    for layer, vector in vectors.items():
        writer.add_tensor(f"direction.{layer}", vector)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def random_vectors(*layers: int) -> dict[int, NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    return {layer: rng.standard_normal(tiny.WIDTH).astype(np.float32) for layer in layers}


@pytest.mark.parametrize("name", ["gpt2", "llama", "granite", "qwen3"])
def test_repeng_s_vector_is_an_intervention(name: str, tmp_path: Path) -> None:
    lm = tiny.lm(name)
    path = repeng(tmp_path / "repeng.gguf", random_vectors(2, 1), model_type=name)
    edit = read_control_vector(lm, path)
    assert edit.kind == "shift"
    assert_same(applied(lm, edit), added(lm, path), tiny.logits(lm, IDS))
    back = read(write_control_vector(lm, edit, tmp_path / "back.gguf"))
    for layer, vector in random_vectors(2, 1).items():
        np.testing.assert_allclose(back[layer], vector, rtol=1e-5, atol=1e-6)


def test_a_vector_of_the_last_layer_is_a_steering(gemma2: LM, tmp_path: Path) -> None:
    path = write_control_vector(gemma2, steering(gemma2), tmp_path / "steer.gguf")
    edit = read_control_vector(gemma2, path)
    assert edit.kind == "steer"
    assert edit.vector is not None
    np.testing.assert_allclose(edit.vector, steering(gemma2).vector, rtol=1e-6)
    with pytest.raises(DialdownError, match="followed by a norm"):
        read_control_vector(gemma2, repeng(tmp_path / "v.gguf", random_vectors(1)))


@pytest.mark.parametrize(
    ("vectors", "words"),
    [
        (random_vectors(3), "for layer 3, and tiny-llama has 3 layers of 16 dimensions"),
        (random_vectors(0), "for layer 0"),
        ({1: np.ones(17, np.float32)}, r"shape \(17,\)"),
        ({1: np.full(16, np.inf, np.float32)}, "not finite"),
    ],
)
def test_a_vector_of_another_model_is_refused(
    llama: LM, vectors: dict[int, NDArray[np.float32]], words: str, tmp_path: Path
) -> None:
    with pytest.raises(DialdownError, match=words):
        read_control_vector(llama, repeng(tmp_path / "v.gguf", vectors))


def test_what_is_no_control_vector_is_refused(llama: LM, tmp_path: Path) -> None:
    path = tmp_path / "v.gguf"
    with pytest.raises(DialdownError, match="does not exist"):
        read_control_vector(llama, path)
    whole = repeng(tmp_path / "whole.gguf", random_vectors(1)).read_bytes()
    for damaged in (b"", b"no GGUF at all", whole[:60]):
        path.write_bytes(damaged)
        with pytest.raises(DialdownError, match="damaged or no GGUF control vector"):
            read_control_vector(llama, path)
    writer = GGUFWriter(path, "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(DialdownError, match="a GGUF file of 'llama'"):
        read_control_vector(llama, path)


MODEL = tiny.lm("llama")
quick = settings(max_examples=25, deadline=None)


@quick
@given(strength=st.floats(-4, 4, width=32), seed=st.integers(0, 5))
def test_the_dial_multiplies_the_vector(
    tmp_path_factory: pytest.TempPathFactory, strength: float, seed: int
) -> None:
    folder = tmp_path_factory.getbasetemp()
    edit = Intervention(**{**vars(shift(MODEL, seed=seed)), "vector": steering(MODEL).vector})
    whole = read(write_control_vector(MODEL, edit, folder / "whole.gguf"))
    dialled = read(write_control_vector(MODEL, edit.at(strength), folder / "dialled.gguf"))
    for layer, vector in whole.items():
        np.testing.assert_allclose(dialled[layer], strength * vector, rtol=1e-5, atol=1e-6)

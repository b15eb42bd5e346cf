"""Folded weights against hooks and explicit sums over neurons (METHOD §7)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dialdown as dd
from dialdown import DialdownError
from dialdown.interventions import Intervention
from dialdown.models import LM
from dialdown.models.bias import holds_bias
from helpers import tiny
from helpers.edits import IDS, KINDS, WITH_BIAS, WITHOUT_BIAS, hooked, make
from helpers.tiny import unchanged


@pytest.mark.parametrize("kind", KINDS)
def test_fold_is_the_hook_at_every_position(lm: LM, kind: str) -> None:
    if (lm.name, kind) == ("tiny-olmo", "norms"):
        with pytest.raises(DialdownError, match=r"layers\.0 .* has no norm with a weight"):
            make(lm, kind)
        return
    edit = make(lm, kind)
    if lm.name.removeprefix("tiny-") not in WITH_BIAS and kind not in WITHOUT_BIAS:
        held = (
            "steering"
            if any(layer.post_norm is not None for layer in lm.view.layers)
            else "a shift or steering"
        )
        with (
            unchanged(lm),
            pytest.raises(
                DialdownError, match=f"kind='scale'.*control vector.* which can hold {held}"
            ),
        ):
            edit.fold(lm)
        return
    with unchanged(lm):
        folded = edit.fold(lm)
    expected = hooked(lm, edit)
    got = tiny.logits(folded, IDS)
    assert float((got - expected).abs().max()) <= 1e-4 * max(1.0, float(expected.abs().max()))
    assert float((got - tiny.logits(lm, IDS)).abs().amax(-1).min()) > 1e-2, (
        "the edit must change every position"
    )
    assert type(folded.model) is type(lm.model)
    assert folded.view.n_layers == lm.view.n_layers
    for layer in folded.view.layers:
        assert folded.model.get_submodule(layer.path) is layer.linear
        assert not layer.linear._forward_pre_hooks


FOLDABLE = [
    *((name, kind) for name in sorted(WITH_BIAS) for kind in ("set", "scale", "steer")),
    ("gemma2", "scale"),
    ("gemma2", "rank_one"),
    ("gpt2", "rank_one"),
    ("falcon", "scale"),
]


@pytest.mark.parametrize(("name", "kind"), FOLDABLE)
def test_a_folded_model_survives_saving(tmp_path: Path, name: str, kind: str) -> None:
    lm = tiny.lm(name)
    folded = make(lm, kind).fold(lm)
    folded.model.save_pretrained(tmp_path)
    folded.tokenizer.save_pretrained(tmp_path)
    again = dd.load(tmp_path, device="cpu")
    assert torch.equal(tiny.logits(again, IDS), tiny.logits(folded, IDS))


def test_llama_gains_a_bias_only_where_the_fold_needs_one(llama: LM) -> None:
    for kind in KINDS:
        folded = make(llama, kind).fold(llama)
        assert folded.model.config.mlp_bias is (kind not in WITHOUT_BIAS)
        assert not llama.model.config.mlp_bias
        gained = {name for name in folded.model.state_dict() if name.endswith("_proj.bias")}
        assert len(gained) == (0 if kind in WITHOUT_BIAS else 3 * tiny.LAYERS)
        assert all(
            not folded.model.state_dict()[name].any() for name in gained if "down_proj" not in name
        )


def test_a_folded_set_leaves_dead_columns(gpt2: LM) -> None:
    """METHOD §7: the neurons can be removed."""
    edit = make(gpt2, "set")
    for index, layer in enumerate(edit.fold(gpt2).view.layers):
        assert ((layer.columns == 0).all(0).numpy() == edit.selected[index]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_fold_in_bfloat16_rounds_once(kind: str) -> None:
    lm = tiny.lm("llama", dtype=torch.bfloat16)
    edit = make(lm, kind)
    folded = edit.fold(lm)
    wide = edit.fold(LM.of(lm.twin().model.double(), lm.tokenizer))
    for layer, exact in zip(folded.view.layers, wide.view.layers, strict=True):
        assert layer.columns.dtype == torch.bfloat16
        assert torch.equal(layer.columns, exact.columns.to(torch.bfloat16))
        if kind not in WITHOUT_BIAS:
            assert torch.equal(layer.linear.bias.data, exact.linear.bias.data.to(torch.bfloat16))


gains = st.lists(st.floats(-2, 2, width=32), min_size=tiny.NEURONS, max_size=tiny.NEURONS)


MODELS = {name: tiny.lm(name) for name in ("gpt2", "llama")}


quick = settings(max_examples=15, deadline=None)


def scaled(row: list[float], layer: int = 1) -> Intervention:
    gain = np.ones((tiny.LAYERS, tiny.NEURONS))
    gain[layer] = row
    return Intervention("it", "scale", gain, np.zeros_like(gain), gain != 1)


@quick
@given(name=st.sampled_from(sorted(MODELS)), first=gains, second=gains)
def test_folding_two_scales_is_folding_their_product(
    name: str, first: list[float], second: list[float]
) -> None:
    lm = MODELS[name]
    twice = scaled(second).fold(scaled(first).fold(lm))
    once = scaled([a * b for a, b in zip(first, second, strict=True)]).fold(lm)
    for a, b, c in zip(twice.view.layers, once.view.layers, lm.view.layers, strict=True):
        torch.testing.assert_close(a.columns, b.columns, atol=1e-6, rtol=1e-5)
        if a.path != lm.view.layers[1].path:
            assert torch.equal(a.columns, c.columns)


@quick
@given(
    name=st.sampled_from(sorted(MODELS)), ids=st.lists(st.integers(3, 200), min_size=1, max_size=12)
)
def test_a_scale_of_ones_is_the_identity(name: str, ids: list[int]) -> None:
    lm = MODELS[name]
    ones = scaled([1.0] * tiny.NEURONS)
    tokens = torch.tensor([ids])
    assert torch.equal(hooked(lm, ones, tokens), tiny.logits(lm, tokens))
    assert torch.equal(tiny.logits(ones.fold(lm), tokens), tiny.logits(lm, tokens))


@quick
@given(name=st.sampled_from(sorted(MODELS)), row=gains)
def test_opposite_shifts_cancel(name: str, row: list[float]) -> None:
    lm = MODELS[name]
    offset = np.zeros((tiny.LAYERS, tiny.NEURONS)) + np.array(row)
    there, back = (
        Intervention("it", "shift", np.ones_like(offset), s * offset, offset != 0) for s in (1, -1)
    )
    with torch.no_grad():
        torch.testing.assert_close(
            tiny.logits(back.fold(there.fold(lm)), IDS), tiny.logits(lm, IDS), atol=1e-3, rtol=1e-3
        )


def test_a_mean_shift_is_one_control_vector_per_layer(llama: LM) -> None:
    """METHOD §7: any set of shifted neurons writes one constant vector per layer."""
    edit = make(llama, "shift")
    for index, (before, after) in enumerate(
        zip(llama.view.layers, edit.fold(llama).view.layers, strict=True)
    ):
        assert torch.equal(after.columns, before.columns)
        vector = sum(
            edit.offset[index, i] * before.value_vectors("paper")[i].double()
            for i in range(tiny.NEURONS)
        )
        torch.testing.assert_close(after.linear.bias.data.double(), vector, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(WITH_BIAS | set(tiny.NAMED)))
@pytest.mark.parametrize("kind", ["scale", "rank_one", "set", "shift"])
def test_folding_into_the_model_itself_is_folding_and_leaves_no_trace(name: str, kind: str) -> None:
    lm = tiny.lm(name)
    edit = make(lm, kind)
    biases = [layer.linear.bias is None for layer in lm.view.layers]
    with unchanged(lm):
        expected = hooked(lm, edit)
        with edit.folded_into(lm):
            inside = tiny.logits(lm, IDS)
        torch.testing.assert_close(inside, expected, atol=1e-5, rtol=1e-5)
        if kind in WITHOUT_BIAS or holds_bias(lm):
            assert torch.equal(inside, tiny.logits(edit.fold(lm), IDS))
        with pytest.raises(KeyboardInterrupt), edit.folded_into(lm):
            raise KeyboardInterrupt
    assert [layer.linear.bias is None for layer in lm.view.layers] == biases


def test_steering_is_no_edit_of_neurons(llama: LM) -> None:
    steering = dd.steer(dd.Direction("it", np.ones(llama.view.d_model), "residual", {}), 1.0)
    with pytest.raises(DialdownError, match="steers"), steering.folded_into(llama):
        pass


@pytest.mark.parametrize("name", sorted(WITH_BIAS | set(tiny.NAMED)))
def test_who_holds_a_bias_folds_a_shift(name: str) -> None:
    lm = tiny.lm(name)
    assert holds_bias(lm) == (name in WITH_BIAS)
    if not holds_bias(lm):
        with pytest.raises(DialdownError, match="kind='scale'"):
            make(lm, "shift").fold(lm)


def test_a_matrix_that_two_layers_share_is_refused() -> None:
    lm = tiny.lm("llama")
    first, second, *_ = lm.view.layers
    second.linear.weight = first.linear.weight
    for action in (
        make(lm, "scale").fold,
        lambda target: make(lm, "scale").folded_into(target).__enter__(),
    ):
        with pytest.raises(DialdownError, match="shared with another module"):
            action(lm)


@pytest.mark.parametrize("outer", ["scale", "steer"])
def test_a_folded_model_keeps_no_hook_of_what_acts_while_it_is_made(llama: LM, outer: str) -> None:
    edit = make(llama, "rank_one")
    with make(llama, outer).applied(llama):
        tiny.logits(llama, IDS)
        with pytest.raises(DialdownError, match=r"outside of `applied`"):
            edit.fold(llama)


def test_a_model_dispatched_later_cannot_be_folded_into(llama: LM) -> None:
    lm = llama.twin()
    lm.model.model.layers[0]._hf_hook = object()
    everything = dd.Intervention(
        "x", "scale", *(torch.full((tiny.LAYERS, tiny.NEURONS), n).numpy() for n in (2.0, 0.0))
    )
    with pytest.raises(DialdownError, match="dispatched"):
        everything.fold(lm)
    with pytest.raises(DialdownError, match="dispatched"), everything.folded_into(lm):
        pass

"""Hooks and position policies against explicit sums over neurons (METHOD §4, §5)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dialdown as dd
from dialdown import DialdownError
from dialdown.evaluation.perplexity import ReferenceText
from dialdown.interventions import Intervention, untouched
from dialdown.models import LM, Decoder
from helpers import tiny
from helpers.edits import IDS, KINDS, hooked, make
from helpers.explicit import explicit, mapped
from helpers.tiny import unchanged


@pytest.mark.parametrize("positions", ["all", "last", "first"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "steer"])
def test_hooks_act_where_the_policy_says(named: LM, kind: str, positions: str) -> None:
    edit = make(named, kind)
    with (mapped if edit.outputs else explicit)(named, edit, positions):
        expected = tiny.logits(named, IDS)
    got = hooked(named, edit, positions=positions)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    base = tiny.logits(named, IDS)
    changed = ((got - base).abs().amax(-1).amin(0) > 1e-3).tolist()
    if positions == "first":
        # What position 0 passes on through attention may be little.
        assert changed[0]
    else:
        assert changed == ([True] * 12 if positions == "all" else [False] * 11 + [True])


@pytest.mark.parametrize("positions", ["all", "last", "first"])
def test_steering_moves_the_final_residual_everywhere_whatever_the_policy(
    named: LM, positions: str
) -> None:
    edit = make(named, "steer")
    seen: list[torch.Tensor] = []
    with torch.inference_mode():
        handle = named.view.final_norm.register_forward_pre_hook(
            lambda m, args: seen.append(args[0])
        )
        tiny.logits(named, IDS)
        handle.remove()
        residual = seen[0] + torch.as_tensor(edit.vector).float()
        expected = named.view.unembedding(named.view.final_norm(residual))
        cap = getattr(named.model.config, "final_logit_softcapping", None)
        expected = cap * torch.tanh(expected / cap) if cap else expected
    torch.testing.assert_close(
        hooked(named, edit, positions=positions), expected, atol=1e-4, rtol=1e-4
    )


def small_gains(lm: LM) -> Intervention:
    """Gains as they are trained: a tenth around 1, of which bfloat16 keeps two digits."""
    gain = 1 + 0.1 * np.random.default_rng(3).standard_normal((lm.view.n_layers, lm.view.n_neurons))
    return Intervention("gains", "scale", gain, np.zeros_like(gain), gain != 1)


@pytest.mark.parametrize("kind", ["set", "shift", "scale", "rank_one"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_in_16_bits_what_is_measured_is_what_is_exported(name: str, kind: str) -> None:
    lm = tiny.lm(name, dtype=torch.bfloat16)
    edit = small_gains(lm) if kind == "scale" else make(lm, kind)
    with unchanged(lm), edit.measured(lm):
        measured = tiny.logits(lm, IDS)
    assert torch.equal(measured, tiny.logits(edit.fold(lm), IDS))
    assert not torch.equal(measured, tiny.logits(lm, IDS))


def test_decoding_and_reading_in_16_bits_run_the_exported_model() -> None:
    lm = tiny.lm("llama", dtype=torch.bfloat16)
    edit = small_gains(lm).at(3.0)
    folded = edit.fold(lm)
    prompts = ["the cat", "a b", "Hello"]
    assert (
        Decoder(lm, prompts, max_new_tokens=12).run(edit)
        == Decoder(folded, prompts, max_new_tokens=12).run()
    )
    probe = ReferenceText(lm, IDS.tolist(), kl_windows=2)
    measured, exported = probe.measure(lm, edit), probe.measure(folded)
    assert (measured.kl == exported.kl).all()
    assert (measured.nll == exported.nll).all()
    assert (measured.kl > 0).all()


@pytest.mark.parametrize("positions", ["all", "last"])
def test_gains_are_not_rounded_to_16_bits_before_they_act(positions: str) -> None:
    lm = tiny.lm("llama", dtype=torch.bfloat16)
    edit = small_gains(lm)
    layer = lm.view.layers[0]
    ones = torch.ones(1, 3, lm.view.n_neurons, dtype=torch.bfloat16) * 64
    seen = []
    with edit.applied(lm, positions=positions), torch.inference_mode():
        hook = layer.linear.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        tiny.logits(lm, IDS)
        layer.linear(ones)
        hook.remove()
    assert torch.equal(
        seen[-1][0, -1], (64 * torch.from_numpy(edit.gain[0]).float()).to(torch.bfloat16)
    )


@pytest.mark.parametrize("outer", ["scale", "shift"])
def test_an_edit_measured_inside_another_comes_second_in_16_bits_too(outer: str) -> None:
    lm = tiny.lm("llama", dtype=torch.bfloat16)
    first, second = make(lm, outer, seed=1, strength=0.3), make(lm, "shift", seed=2, strength=0.3)
    with first.applied(lm), second.measured(lm):
        both = tiny.logits(lm, IDS)
    together = Intervention(
        "both", "shift", first.gain, first.offset + second.offset, first.selected | second.selected
    )
    torch.testing.assert_close(both, hooked(lm, together), atol=0.2, rtol=0.1)


def test_an_edit_measured_inside_a_steering_is_the_exported_one_in_16_bits() -> None:
    lm = tiny.lm("llama", dtype=torch.bfloat16)
    edit, steering = make(lm, "scale"), make(lm, "steer")
    with steering.applied(lm), edit.measured(lm):
        both = tiny.logits(lm, IDS)
    assert torch.equal(both, hooked(edit.fold(lm), steering))


def fail_under(edit: Intervention, lm: LM) -> None:
    with edit.applied(lm):
        tiny.logits(lm, IDS)
        raise ZeroDivisionError


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_is_bit_identical_afterwards(named: LM, kind: str) -> None:
    edit = make(named, kind)
    before = tiny.logits(named, IDS)
    with unchanged(named):
        assert not torch.equal(hooked(named, edit), before)
    with unchanged(named), pytest.raises(ZeroDivisionError):
        fail_under(edit, named)
    assert torch.equal(tiny.logits(named, IDS), before)


def test_contexts_compose_in_the_order_they_are_entered(gpt2: LM, gemma2: LM) -> None:
    for lm in (gpt2, gemma2):
        scale, shift = make(lm, "scale", seed=1), make(lm, "shift", seed=2)
        with scale.applied(lm), shift.applied(lm):
            both = tiny.logits(lm, IDS)
        # m -> gain * m, then + offset: one affine map.
        together = Intervention(
            "both", "shift", scale.gain, shift.offset, scale.selected | shift.selected
        )
        torch.testing.assert_close(both, hooked(lm, together), atol=1e-4, rtol=1e-4)
        with shift.applied(lm), scale.applied(lm):
            other = tiny.logits(lm, IDS)
        swapped = Intervention(
            "both", "shift", scale.gain, scale.gain * shift.offset, scale.selected | shift.selected
        )
        torch.testing.assert_close(other, hooked(lm, swapped), atol=1e-4, rtol=1e-4)
        assert (both - other).abs().max() > 1e-2


def test_an_edit_and_a_steering_compose(llama: LM) -> None:
    edit, steering = make(llama, "scale"), make(llama, "steer")
    with edit.applied(llama), steering.applied(llama):
        both = tiny.logits(llama, IDS)
    torch.testing.assert_close(both, hooked(edit.fold(llama), steering), atol=1e-4, rtol=1e-4)


def test_untouched_does_nothing(llama: LM) -> None:
    none = untouched()
    assert torch.equal(hooked(llama, none), tiny.logits(llama, IDS))
    assert torch.equal(tiny.logits(none.fold(llama), IDS), tiny.logits(llama, IDS))
    assert (none.neurons, none.acts_in_layers, none.kind, none.name) == (0, False, "none", "none")


@pytest.mark.parametrize("kind", KINDS)
def test_a_hook_that_never_ran_is_an_error(llama: LM, kind: str) -> None:
    with (
        unchanged(llama),
        pytest.raises(DialdownError, match="never ran"),
        make(llama, kind).applied(llama),
    ):
        pass


def test_a_layer_that_is_skipped_is_an_error() -> None:
    lm = tiny.lm("llama")
    edit = make(lm, "scale")
    del lm.model.model.layers[2]
    lm.model.config.num_hidden_layers = 2
    with (
        pytest.raises(DialdownError, match=r"model\.layers\.2\.mlp\.down_proj never ran"),
        edit.applied(lm),
    ):
        tiny.logits(lm, IDS)


def test_another_shape_is_refused(llama: LM) -> None:
    wide = tiny.lm("llama", intermediate_size=tiny.NEURONS + 2)
    edit = make(wide, "scale")
    deep = tiny.lm("llama", num_hidden_layers=tiny.LAYERS + 1)
    for act in (
        lambda: hooked(llama, edit),
        lambda: edit.fold(llama),
        lambda: Decoder(llama, ["a b"], max_new_tokens=2).run(edit),
        lambda: Decoder(deep, ["a b"], max_new_tokens=2).run(edit),
    ):
        with (
            unchanged(llama),
            pytest.raises(DialdownError, match=rf"shape \(3, {tiny.NEURONS + 2}\)"),
        ):
            act()
    steering = Intervention("it", "steer", vector=np.ones(tiny.WIDTH + 1))
    with pytest.raises(DialdownError, match=f"has {tiny.WIDTH + 1} dimensions"):
        hooked(llama, steering)


def test_an_unknown_position_policy_is_refused(llama: LM) -> None:
    with unchanged(llama), pytest.raises(DialdownError, match="did you mean 'first'"):
        hooked(llama, make(llama, "scale"), positions="frist")


@pytest.mark.parametrize("kind", KINDS)
def test_save_and_load(tmp_path: Path, llama: LM, kind: str) -> None:
    edit = make(llama, kind)
    edit = Intervention(**{**vars(edit), "alpha": 0.5, "beta": 0.05, "control_of": "other"})
    path = tmp_path / "edit.safetensors"
    edit.save(path)
    again = Intervention.load(path)
    for name in ("gain", "offset", "selected", "vector"):
        original, loaded = getattr(edit, name), getattr(again, name)
        assert (original is None and loaded is None) or (
            np.array_equal(original, loaded) and original.dtype == loaded.dtype
        )
    facts = "name kind alpha beta control_of record neurons key acts_in_layers"
    for name in facts.split():
        assert getattr(edit, name) == getattr(again, name)
    assert torch.equal(hooked(llama, again), hooked(llama, edit))
    with pytest.raises(DialdownError, match="not a dialdown direction"):
        dd.Direction.load(path)


def test_a_rank_one_edit_of_another_model_is_refused(llama: LM) -> None:
    edit = make(llama, "rank_one")
    assert edit.rank_one is not None
    other = replace(edit, rank_one=replace(edit.rank_one, writes=np.ones((tiny.LAYERS, 3))))
    with pytest.raises(DialdownError, match="What it writes has 3 dimensions"):
        hooked(llama, other)


def test_gains_and_rank_one_both_act_on_the_activations_as_they_are(lm: LM) -> None:
    both = replace(make(lm, "rank_one"), gain=make(lm, "scale", seed=1, strength=0.3).gain)
    scale = replace(both, rank_one=None)
    alone = replace(both, gain=np.ones_like(both.gain))

    def wrote(edit: Intervention) -> torch.Tensor:
        seen: list[torch.Tensor] = []
        with edit.applied(lm):
            # The projection's last hook, which sees the output after the edit's own hook.
            handle = lm.view.layers[0].linear.register_forward_hook(
                lambda module, args, out: seen.append(out)
            )
            tiny.logits(lm, IDS)
            handle.remove()
        return seen[0]

    torch.testing.assert_close(
        wrote(both) - wrote(scale), wrote(alone) - wrote(untouched()), atol=1e-4, rtol=1e-4
    )


def test_the_key_depends_on_the_effect_alone(llama: LM) -> None:
    edit, same, other = make(llama, "set"), make(llama, "set"), make(llama, "set", seed=1)
    assert (
        edit.key
        == Intervention(**{**vars(same), "name": "another", "beta": 3.0, "control_of": "it"}).key
    )
    keys = {
        edit.key,
        other.key,
        make(llama, "steer").key,
        make(llama, "steer", seed=1).key,
        untouched().key,
    }
    assert len(keys) == 5


def test_neurons_counts_what_was_selected_even_where_nothing_changes(llama: LM) -> None:
    shape = (llama.view.n_layers, llama.view.n_neurons)
    selected = np.zeros(shape, dtype=bool)
    selected[0, :3] = True
    identity = Intervention("it", "scale", np.ones(shape), np.zeros(shape), selected)
    assert identity.neurons == 3
    assert not identity.acts_in_layers


@settings(max_examples=15, deadline=None)
@given(
    kind=st.sampled_from(["set", "shift"]),
    row=st.lists(st.floats(-2, 2, width=32), min_size=tiny.NEURONS, max_size=tiny.NEURONS),
)
def test_a_later_set_forgets_what_came_before(
    gpt2: LM, llama: LM, kind: str, row: list[float]
) -> None:
    constants = np.zeros((tiny.LAYERS, tiny.NEURONS)) + np.array(row)
    clamp = Intervention(
        "it", "set", np.zeros_like(constants), constants, np.ones_like(constants, dtype=bool)
    )
    for lm in (gpt2, llama):
        with make(lm, kind, share=1.0).applied(lm), clamp.applied(lm):
            both = tiny.logits(lm, IDS)
        assert torch.equal(both, hooked(lm, clamp))


@pytest.mark.parametrize("kind", KINDS)
def test_the_dial_is_a_straight_line_of_effects(gpt2: LM, kind: str) -> None:
    edit = make(gpt2, kind)
    rng = np.random.default_rng(3)
    m = rng.standard_normal((gpt2.view.n_layers, gpt2.view.n_neurons))
    for strength in (0.0, 0.3, 1.0, 2.5):
        dialled = edit.at(strength)
        if edit.vector is not None:
            assert dialled.vector is not None
            np.testing.assert_allclose(dialled.vector, strength * edit.vector)
            continue
        if edit.rank_one is not None:
            assert dialled.rank_one is not None
            np.testing.assert_array_equal(dialled.rank_one.reads, edit.rank_one.reads)
            np.testing.assert_allclose(dialled.rank_one.writes, strength * edit.rank_one.writes)
        if not edit.gain.size:
            continue
        np.testing.assert_allclose(
            dialled.gain * m + dialled.offset,
            m + strength * (edit.gain * m + edit.offset - m),
            atol=1e-12,
        )
        np.testing.assert_array_equal(dialled.selected, edit.selected)
    assert edit.at(1).key == edit.key
    assert torch.equal(hooked(gpt2, edit.at(0)), tiny.logits(gpt2, IDS))
    assert edit.at(0.5).at(0.5).record["strength"] == 0.25


def test_a_strength_that_is_no_number_is_refused(gpt2: LM) -> None:
    with pytest.raises(DialdownError, match="pass a finite number"):
        make(gpt2, "scale").at(float("nan"))


def test_what_is_left_out_of_an_edit_changes_nothing(llama: LM) -> None:
    rng = np.random.default_rng(0)
    gain, offset = rng.uniform(size=llama.view.shape), rng.normal(size=llama.view.shape)
    ones, zeros = np.ones_like(gain), np.zeros_like(gain)
    whole = {"gain": gain, "offset": zeros, "selected": gain != 1}
    alone = dd.Intervention("it", "scale", gain)
    assert alone.key == dd.Intervention("it", "scale", **whole).key
    assert alone.neurons == gain.size
    moved = dd.Intervention("it", "shift", offset=offset)
    assert moved.key == dd.Intervention("it", "shift", ones, offset, offset != 0).key
    assert dd.untouched().gain.size == 0


def test_numbers_of_different_shapes_are_refused(llama: LM) -> None:
    gain = np.ones(llama.view.shape)
    for offset in (gain[:1], gain[0], gain[None]):
        with pytest.raises(dd.DialdownError, match="The numbers of it have the shapes"):
            dd.Intervention("it", "scale", gain, offset)
    with pytest.raises(dd.DialdownError, match="one number per layer and neuron"):
        dd.Intervention("it", "scale", np.ones(3))

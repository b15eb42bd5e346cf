"""Patches, edits, steering and controls: signs, sizes, orderings (METHOD §4, §5)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import dialdown as dd
from dialdown import DialdownError
from dialdown.interventions.paper import edit_controls, patch_control, steering_alpha
from dialdown.models import LM
from dialdown.neurons import NeuronTable
from helpers import tiny
from helpers.tables import COSINE, MEAN, direction, means, members, one_layer, tuned_of

GROUPS = ("TP", "TN", "AP", "AN")


@pytest.fixture(scope="module")
def table(llama: LM) -> NeuronTable:
    return dd.compare(llama, tuned_of(llama), direction(), means(), means(seed=1))


@pytest.fixture(scope="module")
def along_noise(llama: LM) -> NeuronTable:
    return dd.neuron_table(llama, direction(9, "random"), means())


def outcome(edit: dd.Intervention, mean: np.ndarray) -> np.ndarray:
    """The mean activations after an edit."""
    return edit.gain * mean + edit.offset


@pytest.mark.parametrize("kind", ["set", "shift", "scale"])
def test_each_group_moves_its_own_way(kind: Any) -> None:
    """TP and AN to (1 - beta) of their mean, AP and TN to (1 + beta); neurons of no group stay."""
    table = one_layer(COSINE, MEAN)
    edit = dd.edit(table, alpha=1.0, beta=0.25, kind=kind)
    mean = np.array([MEAN])
    factor = np.array([[0.75, 1.25, 1.25, 0.75, 1.0, 1.0, 1.0, 0.75, 0.75]])
    np.testing.assert_allclose(outcome(edit, mean), factor * mean)
    assert members(edit.selected) == [0, 1, 2, 3, 7, 8]
    assert edit.neurons == 6
    # What happens to an activation away from its mean tells the kinds apart.
    away = {
        "set": factor * mean,
        "shift": mean + 2 + (factor - 1) * mean,
        "scale": factor * (mean + 2),
    }[kind]
    np.testing.assert_allclose(outcome(edit, mean + 2)[edit.selected], away[edit.selected])
    np.testing.assert_array_equal(
        outcome(edit, mean + 2)[~edit.selected], (mean + 2)[~edit.selected]
    )


@pytest.mark.parametrize("kind", ["set", "shift", "scale"])
@pytest.mark.parametrize("alpha", [0.3, 0.5, 1.0])
def test_every_edit_lowers_the_mean_projection_by_beta(
    llama: LM, table: NeuronTable, kind: Any, alpha: float
) -> None:
    beta = 0.07
    edit = dd.edit(table, alpha=alpha, beta=beta, kind=kind)
    projection = table.grid("projection_base")
    mean = table.grid("mean_base")
    per_unit = projection / mean
    change = outcome(edit, mean) * per_unit - projection
    expected = np.where(edit.selected, -beta * np.abs(projection), 0)
    np.testing.assert_allclose(change, expected, atol=1e-12)
    assert change.sum() < -0.01
    reversed_ = dd.edit(table, alpha=alpha, beta=-beta, kind=kind)
    np.testing.assert_allclose(
        outcome(reversed_, mean) * per_unit - projection, -expected, atol=1e-12
    )


def test_a_shift_lowers_what_the_mlps_write_along_the_direction(llama: LM) -> None:
    """The same on the running model: layer 0's output moves along W by -beta * sum |p_i| at every
    position.
    """
    w = direction()
    base = dd.mean_activations(llama, ["the cat", "a b c"], max_new_tokens=4)
    table = dd.neuron_table(llama, w, base)
    edit = dd.edit(table, alpha=1.0, beta=0.2, kind="shift")
    written: list[torch.Tensor] = []
    handle = llama.view.layers[0].linear.register_forward_hook(
        lambda m, args, out: written.append(out.double())
    )
    ids = tiny.random_ids(2, 5)
    tiny.logits(llama, ids)
    with edit.applied(llama):
        tiny.logits(llama, ids)
    handle.remove()
    moved = ((written[1] - written[0]) @ torch.as_tensor(w.unit)).numpy()
    np.testing.assert_allclose(
        moved, -0.2 * np.abs(table.grid("projection_base")[0]).sum(), rtol=1e-3
    )


def sizes(table: NeuronTable, alpha: float) -> dict[str, int]:
    return {
        name: round(alpha * int(mask.sum())) for name, mask in table.groups(changed=False).items()
    }


@pytest.mark.parametrize("ordering", ["cosine", "activation", "notebook"])
@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_alpha_takes_that_share_of_each_group_in_the_order_named(
    table: NeuronTable, ordering: Any, alpha: float
) -> None:
    edit = dd.edit(table, alpha=alpha, beta=0.1, kind="set", ordering=ordering)
    cosine, mean = np.abs(table.grid("cosine")), np.abs(table.grid("mean_base"))
    for name, mask in table.groups(changed=False).items():
        chosen, left = edit.selected & mask, ~edit.selected & mask
        assert chosen.sum() == sizes(table, alpha)[name]
        if not 0 < alpha < 1:
            continue
        if ordering == "activation":
            assert mean[chosen].max() <= mean[left].min()
        elif ordering == "notebook" and name in ("AP", "TN"):
            assert cosine[chosen].max() <= cosine[left].min()
        else:
            assert cosine[chosen].min() >= cosine[left].max()
    assert edit.neurons == sum(sizes(table, alpha).values())
    assert not (
        edit.selected & ~np.logical_or.reduce([*table.groups(changed=False).values()])
    ).any()


def test_drop_top_leaves_out_the_highest_means_before_the_share_is_taken(
    table: NeuronTable,
) -> None:
    mean = table.grid("mean_base")
    dropped = mean > np.sort(mean.ravel())[-round(0.2 * mean.size) - 1]
    assert dropped.sum() == round(0.2 * mean.size)
    edit = dd.edit(table, alpha=0.5, beta=0.1, drop_top=0.2)
    assert not (edit.selected & dropped).any()
    for mask in table.groups(changed=False).values():
        assert (edit.selected & mask).sum() == round(0.5 * (mask & ~dropped).sum())
    # The highest means, not the largest in size: the most negative ones stay.
    assert not np.array_equal(edit.selected, dd.edit(table, alpha=0.5, beta=0.1).selected)
    assert dd.edit(table, alpha=1.0, beta=0.1, drop_top=0.2).selected[mean < 0].all()


def test_an_edit_knows_what_it_is(table: NeuronTable) -> None:
    edit = dd.edit(table, alpha=0.5, beta=0.1)
    assert (edit.name, edit.kind, edit.alpha, edit.beta, edit.control_of) == (
        "edit_probe_scale",
        "scale",
        0.5,
        0.1,
        None,
    )
    assert edit.record["ordering"] == "cosine"
    assert edit.record["protocol"] == "strict"
    assert edit.record["direction"]["name"] == "probe"
    assert dd.edit(table, alpha=0.5, beta=0.1, name="mine").name == "mine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.5}, r"alpha=1\.5 is not a fraction"),
        ({"alpha": float("nan")}, "alpha=nan is not a fraction"),
        ({"drop_top": -0.1}, r"drop_top=-0\.1 is not a fraction"),
        ({"kind": "scaled"}, "did you mean 'scale'"),
        ({"ordering": "cosin"}, "did you mean 'cosine'"),
    ],
)
def test_edits_that_cannot_be(table: NeuronTable, options: Any, message: str) -> None:
    with pytest.raises(DialdownError, match=message):
        dd.edit(table, **{"alpha": 0.5, "beta": 0.1, **options})


@pytest.mark.parametrize(
    "which", ["TP", "TP+AN", "TP+AN+TN", "four_groups", "increasing", "toxic_5"]
)
def test_a_patch_gives_the_tuned_means(table: NeuronTable, which: str) -> None:
    base, tuned = table.grid("mean_base"), table.grid("mean_tuned")
    chosen = table.select(which)
    assert 0 < chosen.sum() < chosen.size
    for kind in ("set", "shift"):
        patch = dd.patch(table, which, kind=kind)
        np.testing.assert_allclose(outcome(patch, base), np.where(chosen, tuned, base))
        assert np.array_equal(patch.selected, chosen)
        assert patch.kind == kind
        assert patch.name == f"patch_{which.replace('+', '_')}" + (
            "_shift" if kind == "shift" else ""
        )
    np.testing.assert_allclose(
        outcome(dd.patch(table, which, kind="shift"), base + 1),
        np.where(chosen, tuned + 1, base + 1),
    )
    np.testing.assert_allclose(
        outcome(dd.patch(table, which), base + 1), np.where(chosen, tuned, base + 1)
    )


def test_patches_that_cannot_be(table: NeuronTable, along_noise: NeuronTable) -> None:
    with pytest.raises(DialdownError, match="divide by mean activations near zero"):
        dd.patch(table, "TP", kind="scale")  # type: ignore[arg-type]
    with pytest.raises(
        DialdownError, match=r"Columns of the tuned model need a table from dd\.compare"
    ):
        dd.patch(along_noise, "TP")
    with pytest.raises(DialdownError, match="did you mean 'four_groups'"):
        dd.patch(table, "fourgroups")


def test_a_patch_control_takes_as_many_random_neurons(table: NeuronTable) -> None:
    base, tuned = table.grid("mean_base"), table.grid("mean_tuned")
    for kind in ("set", "shift"):
        patch = dd.patch(table, "TP+AN", kind=kind)
        control = patch_control(table, patch, seed=0)
        assert control.neurons == patch.neurons
        assert (control.selected & ~patch.selected).any()
        np.testing.assert_allclose(outcome(control, base), np.where(control.selected, tuned, base))
        assert (control.control_of, control.kind) == (patch.name, kind)
        assert control.name == f"{patch.name}__random_neurons"
        assert control.key == patch_control(table, patch, seed=0).key
        assert control.key != patch_control(table, patch, seed=1).key


def by_group(table: NeuronTable, selected: Any) -> list[int]:
    """How many of the selected neurons are in TP, TN, AP, AN and in none, one neuron at a time
    (METHOD §3).
    """
    counts = [0] * 5
    grids = (table.grid("cosine"), table.grid("mean_base"), selected)
    for c, m, chosen in zip(*(grid.ravel() for grid in grids), strict=True):
        place = 4 if c == 0 or m == 0 else 2 * (c < 0) + (m < 0)
        counts[place] += int(chosen)
    return counts


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "gemma2"])
def test_random_neurons_are_as_many_in_each_group(name: str) -> None:
    lm = tiny.lm(name)
    base, tuned = means(), means(seed=1)
    table = dd.compare(lm, tuned_of(lm), direction(), base, tuned)
    noise = dd.neuron_table(lm, direction(9), base)
    for which in ("toxic_9", "TP+AN", "four_groups", "increasing"):
        patch = dd.patch(table, which)
        control = patch_control(table, patch, seed=2)
        assert by_group(table, control.selected) == by_group(table, patch.selected)
        assert not np.array_equal(control.selected, patch.selected)
    edit = dd.edit(table, alpha=0.4, beta=0.1, ordering="notebook", drop_top=0.2)
    control = edit_controls(table, noise, edit, seed=2)[0]
    assert by_group(table, control.selected) == by_group(table, edit.selected)
    # What an edit may not choose, its control may not either.
    mean = table.grid("mean_base")
    assert (
        mean[control.selected].max()
        <= np.sort(mean.ravel())[mean.size - round(0.2 * mean.size) - 1]
    )
    # By their groups' own rule random neurons would be an edit of the concept, only in another
    # order.
    assert (control.gain[control.selected] != edit_rule(table, 0.1)[control.selected]).any()
    assert sorted(control.gain[control.selected]) == sorted(edit.gain[edit.selected])


def edit_rule(table: NeuronTable, beta: float) -> Any:
    """The factor that METHOD §4 gives every neuron of a group."""
    return 1 - beta * np.sign(table.grid("cosine") * table.grid("mean_base"))


@pytest.mark.parametrize("kind", ["set", "shift", "scale"])
def test_the_controls_of_an_edit(table: NeuronTable, along_noise: NeuronTable, kind: Any) -> None:
    edit = dd.edit(
        table, alpha=0.5, beta=0.1, kind=kind, ordering="notebook", drop_top=0.1, name="it"
    )
    controls = {
        control.name: control for control in edit_controls(table, along_noise, edit, seed=0)
    }
    expected = {"it__random_neurons", "it__beta_reversed", "it__random_direction"}
    assert set(controls) == expected | ({"it__beta_zero"} if kind == "set" else set())
    mean = table.grid("mean_base")
    factor = outcome(edit, mean) / mean

    def counts(intervention: dd.Intervention) -> list[int]:
        ratio = outcome(intervention, mean) / mean
        return [int((np.abs(ratio - value) < 1e-9).sum()) for value in (0.9, 1.1)]

    for control in controls.values():
        assert (control.control_of, control.kind, control.alpha) == ("it", kind, 0.5)
    shuffled = controls["it__random_neurons"]
    # As many neurons shrink and as many grow.
    assert counts(shuffled) == counts(edit)
    assert shuffled.neurons == edit.neurons
    assert not np.array_equal(shuffled.selected, edit.selected)

    reversed_ = controls["it__beta_reversed"]
    assert np.array_equal(reversed_.selected, edit.selected)
    assert reversed_.beta == -0.1
    np.testing.assert_allclose(outcome(reversed_, mean) / mean, 2 - factor)

    other = controls["it__random_direction"]
    same = dd.edit(along_noise, alpha=0.5, beta=0.1, kind=kind, ordering="notebook", drop_top=0.1)
    assert other.key == same.key
    assert other.key != edit.key

    if kind == "set":
        clamp = controls["it__beta_zero"]
        assert np.array_equal(clamp.selected, edit.selected)
        np.testing.assert_allclose(outcome(clamp, mean + 1)[clamp.selected], mean[clamp.selected])


@pytest.mark.parametrize("strength", [0.5, -1.0])
@pytest.mark.parametrize("kind", ["set", "shift", "scale"])
def test_the_controls_of_a_dialled_edit_are_dialled_as_it_is(
    table: NeuronTable, along_noise: NeuronTable, kind: Any, strength: float
) -> None:
    whole = dd.edit(table, alpha=0.5, beta=0.2, kind=kind)
    edit = whole.at(strength)
    expected = edit_controls(table, along_noise, whole, seed=0)
    for control, at_first in zip(
        edit_controls(table, along_noise, edit, seed=0), expected, strict=True
    ):
        same = at_first.at(strength)
        np.testing.assert_allclose(control.gain, same.gain, atol=1e-12)
        np.testing.assert_allclose(control.offset, same.offset, atol=1e-12)
        assert control.record["strength"] == strength
        assert (control.name, control.alpha) == (same.name, 0.5)
        assert control.beta == pytest.approx(same.beta)
    # What the rule with this beta makes is what the edit does; half of the way to constants is
    # what no other constants do.
    beta = 0.2 if kind == "set" else 0.2 * strength
    assert edit.beta == pytest.approx(beta)
    if kind != "set":
        again = dd.edit(table, alpha=0.5, beta=beta, kind=kind)
        np.testing.assert_allclose(edit.gain, again.gain, atol=1e-12)
        np.testing.assert_allclose(edit.offset, again.offset, atol=1e-12)


@pytest.mark.parametrize("kind", ["set", "shift"])
def test_the_control_of_a_dialled_patch_is_dialled_as_it_is(table: NeuronTable, kind: Any) -> None:
    patch = dd.patch(table, "four_groups", kind=kind)
    control = patch_control(table, patch.at(0.5).at(0.5), seed=0)
    assert control.key == patch_control(table, patch, seed=0).at(0.25).key
    assert control.record["strength"] == 0.25


def test_dialled_steering_has_the_alpha_that_acts() -> None:
    dialled = dd.steer(direction(), 2.0).at(0.25)
    assert dialled.alpha == 0.5
    assert dialled.key == dd.steer(direction(), 0.5).key
    assert "α 0.5" in repr(dialled)


def test_only_an_edit_has_edit_controls(table: NeuronTable, along_noise: NeuronTable) -> None:
    for intervention in (dd.patch(table, "TP"), dd.steer(direction(), 1.0)):
        with pytest.raises(DialdownError, match="not an edit"):
            edit_controls(table, along_noise, intervention, seed=0)


def test_steering_subtracts_alpha_w(llama: LM) -> None:
    w = direction()
    steering = dd.steer(w, 0.5)
    np.testing.assert_allclose(steering.vector, -0.5 * w.vector)
    assert (steering.name, steering.kind, steering.alpha, steering.neurons) == (
        "steer_probe",
        "steer",
        0.5,
        0,
    )
    assert not steering.acts_in_layers
    seen: list[torch.Tensor] = []
    handle = llama.view.final_norm.register_forward_hook(
        lambda m, args, out: seen.append(args[0].double())
    )
    ids = tiny.random_ids(1, 4)
    tiny.logits(llama, ids)
    with steering.applied(llama):
        tiny.logits(llama, ids)
    handle.remove()
    moved = ((seen[1] - seen[0]) @ torch.as_tensor(w.unit)).numpy()
    np.testing.assert_allclose(moved, -0.5 * np.linalg.norm(w.vector), rtol=1e-4)


def test_a_steering_strength_is_in_units_of_the_residual_stream() -> None:
    """Whatever the norm of W, the move is strength x the norm that the probe recorded."""
    for size in (0.1, 7.0):
        w = dd.Direction("probe", size * direction().unit, "residual", {"residual_norm": 30.0})
        steering = dd.steer(w, steering_alpha(w, 0.5))
        np.testing.assert_allclose(steering.vector, -15.0 * w.unit)
    with pytest.raises(
        DialdownError, match="'contrast' does not record the norm of the residual stream"
    ):
        steering_alpha(direction(name="contrast"), 0.5)

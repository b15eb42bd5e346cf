"""Contrasts, attributions and training-free scales against their formulas, neuron by neuron (METHOD
§1, §3, §4, §7).
"""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_neurons import COSINE, MEAN, direction, means, table_of, value_vector

import dialdown as dd
from dialdown.errors import DialdownError
from dialdown.interventions.paper import soft_edit, steering_alpha
from dialdown.models.lm import LM
from dialdown.neurons.table import NeuronTable
from dialdown.search.least_squares import activation_moments, least_squares_scales
from dialdown.training.attribution import (
    Contrast,
    attribution,
    contrast_means,
    mean_difference,
    value_projections,
)
from dialdown.training.make_pairs import Pair

SHAPE = (tiny.LAYERS, tiny.NEURONS)
PAIRS = [
    Pair("the cat", " sat on", " bit the cat, twice"),
    Pair("a much longer prompt about the", " weather", " s"),
    Pair("You", " are the best cat of all of them", " are"),
    Pair("the cat", " x", " y and z"),
]
TEXTS = [
    "the cat and the other cat sat there",
    "a text of another length, longer than the window",
    "short one",
]
WINDOWS = [list(range(10, 10 + n)) for n in (12, 7, 15, 3)]


@pytest.fixture(scope="module")
def contrast(llama: LM) -> Contrast:
    return contrast_means(llama, PAIRS)


@pytest.fixture(scope="module")
def table(llama: LM) -> NeuronTable:
    return dd.neuron_table(llama, direction(), means())


def hear(model: Any, lm: LM, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Activations (L, tokens, F) and what enters the final norm (tokens, d), of one sequence by
    itself.
    """
    seen: dict[Any, np.ndarray] = {}
    names = [layer.path for layer in lm.view.layers]
    final = next(name for name, module in lm.model.named_modules() if module is lm.view.final_norm)
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda m, args, name=name: seen.update({name: args[0][0].double().numpy()})
        )
        for name in [*names, final]
    ]
    with torch.inference_mode():
        model(input_ids=torch.tensor([ids]), use_cache=False)
    for handle in handles:
        handle.remove()
    return np.stack([seen[name] for name in names]), seen[final]


def test_a_contrast_is_that_of_a_plain_loop_whatever_the_batches(named: LM) -> None:
    model = copy.deepcopy(named.model).double()
    rows: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"toxic": [], "clean": []}
    for pair in PAIRS:
        for side, text in (("toxic", pair.rejected), ("clean", pair.chosen)):
            prompt = named.tokenizer(pair.prompt)["input_ids"]
            ids = named.tokenizer(pair.prompt + text)["input_ids"]
            assert ids[: len(prompt)] == prompt
            m, x = hear(model, named, ids)
            # Position p produces token p + 1.
            producing = [p for p in range(len(ids)) if len(prompt) <= p + 1 < len(ids)]
            rows[side].append((m[:, producing], x[producing]))
    m = {side: np.concatenate([row[0] for row in rows[side]], axis=1) for side in rows}
    x = {side: np.concatenate([row[1] for row in rows[side]]) for side in rows}
    norm = np.mean([np.linalg.norm(row[1].mean(0)) for side in rows for row in rows[side]])
    for batch_size in (1, 3, 16):
        got = contrast_means(named, PAIRS, batch_size=batch_size)
        assert got.positions == (m["toxic"].shape[1], m["clean"].shape[1])
        expected = {
            "toxic": m["toxic"].mean(1),
            "clean": m["clean"].mean(1),
            "residual_toxic": x["toxic"].mean(0),
            "residual_clean": x["clean"].mean(0),
            "moment": (m["clean"] ** 2).mean(1),
        }
        for name, value in expected.items():
            assert getattr(got, name).dtype == np.float64
            np.testing.assert_allclose(
                getattr(got, name), value, atol=1e-3, rtol=1e-4, err_msg=name
            )
        assert got.record["residual_norm"] == pytest.approx(norm, rel=1e-4)
    assert np.abs(expected["toxic"] - expected["clean"]).max() > 1e-2, (
        "the sides must be told apart"
    )


def test_a_contrast_counts_its_batches(llama: LM) -> None:
    calls: list[tuple[str, int, int]] = []
    contrast_means(llama, PAIRS, batch_size=3, progress=lambda *call: calls.append(call))
    assert calls == [("contrasting continuations", done, 4) for done in (1, 2, 3, 4)]


def test_a_contrast_is_saved_whole(tmp_path: Path, contrast: Contrast) -> None:
    contrast.save(tmp_path / "it.safetensors")
    again = Contrast.load(tmp_path / "it.safetensors")
    for name in ("toxic", "clean", "residual_toxic", "residual_clean", "moment"):
        assert np.array_equal(getattr(again, name), getattr(contrast, name))
    assert (again.positions, again.record) == (contrast.positions, contrast.record)
    with pytest.raises(DialdownError, match="not a dialdown direction"):
        dd.Direction.load(tmp_path / "it.safetensors")


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "no pairs to read"),
        ([PAIRS[0], Pair("a", "", " b")], "Pair 1 has an empty prompt or continuation"),
        ([Pair("", " a", " b")], "Pair 0 has an empty prompt or continuation"),
        ([Pair("x" * tiny.CONTEXT, " ab", " a")], "exceed the context"),
    ],
)
def test_pairs_that_cannot_be_contrasted_are_refused(
    llama: LM, pairs: list[Pair], message: str
) -> None:
    with pytest.raises(DialdownError, match=message):
        contrast_means(llama, pairs)


def test_a_continuation_may_end_where_the_context_does(llama: LM) -> None:
    """Its last token is produced and never read."""
    prompt = "x" * (tiny.CONTEXT - 1)
    assert contrast_means(llama, [Pair(prompt, "ab", "yz")]).positions == (2, 2)


def test_activations_that_overflow_are_refused() -> None:
    lm = tiny.lm("llama")
    with torch.no_grad():
        lm.view.layers[1].columns.fill_(float("inf"))
    with pytest.raises(DialdownError, match="not finite"):
        contrast_means(lm, PAIRS)
    with pytest.raises(DialdownError, match="not finite in layer 2"):
        list(activation_moments(lm, TEXTS))


def test_the_mean_difference_points_from_clean_to_toxic(llama: LM, contrast: Contrast) -> None:
    found = mean_difference(llama, contrast)
    np.testing.assert_array_equal(found.vector, contrast.residual_toxic - contrast.residual_clean)
    assert (found.name, found.site, found.record["protocol"]) == (
        "difference",
        "residual",
        "strict",
    )
    # What `steer` scales itself by, as for a probe.
    strength = steering_alpha(found, 0.5) * np.linalg.norm(found.vector)
    assert strength == pytest.approx(0.5 * contrast.record["residual_norm"])
    with pytest.raises(DialdownError, match="same mean residual stream"):
        mean_difference(llama, replace(contrast, residual_toxic=contrast.residual_clean))
    with pytest.raises(DialdownError, match="5 dimensions"):
        mean_difference(
            llama, replace(contrast, residual_toxic=np.ones(5), residual_clean=np.zeros(5))
        )


@pytest.mark.parametrize("protocol", ["strict", "paper"])
def test_every_attribution_is_its_formula(named: LM, protocol: Any) -> None:
    base, w = means(protocol), direction()
    table = dd.neuron_table(named, w, base)
    rng = np.random.default_rng(3)
    found = replace(
        zero_contrast(), toxic=rng.standard_normal(SHAPE), clean=rng.standard_normal(SHAPE)
    )
    got = {
        score: attribution(table, score, found, lm=named)
        for score in ("cosine", "weighted", "projection", "contrast")
    }
    unit = w.vector / np.sqrt((w.vector**2).sum())
    for layer, neuron in np.ndindex(SHAPE):
        v, m = value_vector(named, layer, neuron, protocol), base.means[layer, neuron]
        cosine = v @ unit / np.linalg.norm(v)
        expected = {
            "cosine": (1 if m > 0 else -1) * cosine,
            "weighted": cosine * m,
            "projection": m * (v @ unit),
            "contrast": (found.toxic - found.clean)[layer, neuron] * (v @ unit),
        }
        for score, value in expected.items():
            assert got[score][layer, neuron] == pytest.approx(value, abs=1e-5), score


def test_the_cosine_score_has_the_signs_of_the_four_groups() -> None:
    score = attribution(table_of(COSINE, MEAN), "cosine")
    #                   TP   TN    AP    AN  the exact zeros  TP   AN
    assert score.tolist() == [[0.5, -0.5, -0.5, 0.5, 0, 0, 0, 0.5, 0.5]]


def test_attributions_that_cannot_be_made_are_refused(
    llama: LM, table: NeuronTable, contrast: Contrast
) -> None:
    with pytest.raises(DialdownError, match="did you mean 'cosine'"):
        attribution(table, "cosin")  # type: ignore[arg-type]  # a user's slip
    for missing in ({}, {"contrast": contrast}, {"lm": llama}):
        with pytest.raises(DialdownError, match=r"attribution\(\.\.\., contrast, lm=lm\)"):
            attribution(table, "contrast", **missing)
    with pytest.raises(DialdownError, match="collect both on one model"):
        attribution(table_of(COSINE, MEAN), "contrast", contrast, lm=llama)
    with pytest.raises(DialdownError, match="build it from this model"):
        value_projections(llama, table_of(COSINE, MEAN))


def zero_contrast() -> Contrast:
    zeros, residual = np.zeros(SHAPE), np.zeros(tiny.WIDTH)
    return Contrast(zeros, zeros, residual, residual, np.ones(SHAPE), (1, 1), {})


quick = settings(max_examples=20, deadline=None)
fractions = st.floats(0, 1)
BASE = dd.neuron_table(tiny.lm("llama"), direction(), means())
NOISE = np.random.default_rng(8).standard_normal(SHAPE)


@quick
@given(alpha=fractions, beta=st.floats(-1, 1), kind=st.sampled_from(["scale", "shift", "set"]))
def test_a_hard_edit_by_cosine_is_the_papers(alpha: float, beta: float, kind: Any) -> None:
    ours = soft_edit(
        BASE, attribution(BASE, "cosine"), alpha=alpha, beta=beta, kind=kind, soft=False, name="it"
    )
    paper = dd.edit(BASE, alpha=alpha, beta=beta, kind=kind, name="it")
    for name in ("gain", "offset", "selected"):
        assert np.array_equal(getattr(ours, name), getattr(paper, name))
    assert all(
        getattr(ours, name) == getattr(paper, name)
        for name in ("name", "kind", "alpha", "beta", "key")
    )


@quick
@given(alpha=fractions)
def test_a_hard_scale_takes_the_largest_of_each_group(alpha: float) -> None:
    selected = soft_edit(BASE, NOISE, alpha=alpha, beta=0.1, soft=False, name="it").selected
    for mask in BASE.groups(changed=False).values():
        inside, outside = np.abs(NOISE[mask & selected]), np.abs(NOISE[mask & ~selected])
        assert len(inside) == round(alpha * mask.sum())
        assert not len(inside) or not len(outside) or inside.min() >= outside.max()


@quick
@given(alpha=fractions, beta=st.floats(0.01, 1), soft=st.booleans(), size=st.floats(1e-3, 1e3))
def test_every_gain_follows_its_attribution(
    alpha: float, beta: float, soft: bool, size: float
) -> None:
    edit = soft_edit(BASE, size * NOISE, alpha=alpha, beta=beta, soft=soft, name="it")
    weight = (1 - edit.gain) / beta
    assert np.abs(weight).max() <= 1 + 1e-9
    assert ((weight == 0) | (np.sign(weight) == np.sign(NOISE))).all()
    assert np.array_equal(edit.selected, weight != 0)
    assert edit.record["clipped"] == 0
    if soft:
        order = np.argsort(np.abs(NOISE), axis=None)
        assert all(a <= b + 1e-9 for a, b in pairwise(np.abs(weight).ravel()[order]))
        # Half of the fraction alpha, up to the neuron that the quantile falls on.
        assert (np.abs(weight) > 1 - 1e-9).sum() == pytest.approx(alpha / 2 * NOISE.size, abs=1)
        free = np.abs(weight) < 1 - 1e-9
        assert np.ptp(weight[free] / NOISE[free]) < 1e-6 * np.abs(weight[free] / NOISE[free]).max()


def test_layers_and_groups_multiply_the_strength() -> None:
    layers, strengths = np.array([0.0, 1.0, 2.0]), {"TP": 3.0, "AN": 0.0}
    plain = soft_edit(BASE, NOISE, alpha=0.5, beta=0.1, name="it")
    edit = soft_edit(BASE, NOISE, alpha=0.5, beta=0.1, layers=layers, groups=strengths, name="it")
    for group, mask in BASE.groups(changed=False).items():
        for layer in range(tiny.LAYERS):
            by = layers[layer] * {"TP": 3.0, "TN": 1.0, "AP": 1.0, "AN": 0.0}[group]
            here = mask[layer]
            np.testing.assert_allclose(
                edit.gain[layer, here], 1 - by * (1 - plain.gain[layer, here])
            )
            assert (edit.selected[layer, here] == (by != 0)).all()


def test_a_neuron_of_no_group_is_left_alone() -> None:
    table = table_of(COSINE, MEAN)
    for soft in (True, False):
        edit = soft_edit(table, np.ones((1, 9)), beta=0.5, soft=soft, name="it")
        assert edit.gain.tolist() == [[0.5, 0.5, 0.5, 0.5, 1, 1, 1, 0.5, 0.5]]


def test_an_attribution_of_many_zeros_saturates_where_there_is_any() -> None:
    a = np.array([[0.0, 0, 0, 0, 0, 0, 0, 0.25, -3]])
    assert soft_edit(table_of(COSINE, MEAN), a, beta=0.5, name="it").gain.tolist() == [
        [1, 1, 1, 1, 1, 1, 1, 0.5, 1.5]
    ]


def test_gains_stop_at_zero_and_the_record_says_how_often() -> None:
    edit = soft_edit(BASE, NOISE, alpha=1.0, beta=3.0, soft=False, name="it")
    assert set(edit.gain.ravel()) == {0.0, 4.0}
    assert edit.record["clipped"] == (NOISE > 0).sum() == (edit.gain == 0).sum()
    # A mean that would change its sign stops at zero too.
    mean = BASE.grid("mean_base")
    shift = soft_edit(BASE, NOISE, alpha=1.0, beta=3.0, kind="shift", soft=False, name="it")
    np.testing.assert_allclose(shift.offset[NOISE > 0], -mean[NOISE > 0])
    fixed = soft_edit(BASE, NOISE, alpha=1.0, beta=3.0, kind="set", soft=False, name="it")
    assert not fixed.gain.any()
    assert not fixed.offset[NOISE > 0].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.5}, "alpha=1.5 is no fraction"),
        ({"beta": float("nan")}, "`beta` has a number that is not finite"),
        ({"attribution": NOISE[:1]}, r"`attribution` has shape \(1, 24\)"),
        ({"attribution": NOISE * np.inf}, "`attribution` has a number that is not finite"),
        ({"layers": np.ones(2)}, r"`layers` has shape \(2,\)"),
        ({"groups": {"TX": 1.0}}, "Unknown group 'TX'"),
        ({"kind": "scal"}, "Unknown edit option 'scal': did you mean 'scale'"),
    ],
)
def test_soft_edits_that_cannot_be_made_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DialdownError, match=message):
        soft_edit(BASE, **{"attribution": NOISE, "beta": 0.1, "name": "it"} | options)


def written_moments(lm: LM) -> list[np.ndarray]:
    """(tokens, F) per layer: the activations over `WINDOWS`, each read by itself."""
    return list(np.concatenate([hear(lm.model, lm, ids)[0] for ids in WINDOWS], axis=1))


def test_moments_are_means_over_every_position(named: LM) -> None:
    for m, full, squares in zip(
        written_moments(named),
        activation_moments(named, WINDOWS),
        activation_moments(named, WINDOWS, full=False),
        strict=True,
    ):
        np.testing.assert_allclose(full.numpy(), m.T @ m / len(m), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(squares.numpy(), (m**2).mean(0), rtol=1e-5, atol=1e-6)


def test_moments_read_texts_as_the_tokenizer_does_and_stop_at_max_tokens(named: LM) -> None:
    ids = named.tokenizer(TEXTS)["input_ids"]
    cut = [ids[0], ids[1][:5]]
    for one, other in zip(
        activation_moments(named, TEXTS, max_tokens=len(ids[0]) + 5),
        activation_moments(named, cut),
        strict=True,
    ):
        assert torch.equal(one, other)


def explicit(
    lm: LM, table: NeuronTable, m: list[np.ndarray], ridge: float, *, full: bool
) -> list[np.ndarray]:
    """G_l with its ridge, from the definition: entry by entry over tokens and value vectors."""
    matrices = []
    for layer in range(tiny.LAYERS):
        v = np.stack([value_vector(lm, layer, i, table.protocol) for i in range(tiny.NEURONS)])
        written = m[layer][:, :, None] * v
        g = np.einsum("tid,tjd->ij", written, written) / len(m[layer])
        g = g if full else np.diag(np.diag(g))
        matrices.append(g + ridge * np.trace(g) / tiny.NEURONS * np.eye(tiny.NEURONS))
    return matrices


def pull_of(lm: LM, table: NeuronTable, activations: np.ndarray) -> np.ndarray:
    unit = direction().vector / np.linalg.norm(direction().vector)
    return np.array(
        [
            [activations[at] * (value_vector(lm, *at, table.protocol) @ unit) for at in row]
            for row in indices()
        ]
    )


def indices() -> list[list[tuple[int, int]]]:
    return [[(layer, neuron) for neuron in range(tiny.NEURONS)] for layer in range(tiny.LAYERS)]


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("of", ["toxic", "difference"])
def test_least_squares_meets_its_conditions_of_optimality(named: LM, full: bool, of: Any) -> None:
    """One linear system over all neurons and the multiplier: stationarity in every layer, and the
    target.
    """
    table, found, target, ridge = (
        dd.neuron_table(named, direction(), means()),
        contrast_means(named, PAIRS),
        1e-3,
        0.05,
    )
    edit = least_squares_scales(
        named, table, found, WINDOWS, target=target, ridge=ridge, full=full, of=of, name="it"
    )
    m = written_moments(named)
    matrices = explicit(named, table, m, ridge, full=full)
    q = pull_of(named, table, found.toxic if of == "toxic" else found.toxic - found.clean)
    size = q.size
    system = np.zeros((size + 1, size + 1))
    for layer, g in enumerate(matrices):
        here = slice(layer * tiny.NEURONS, (layer + 1) * tiny.NEURONS)
        system[here, here] = g
    system[:size, size] = system[size, :size] = q.ravel()
    naive = np.linalg.solve(system, np.append(np.zeros(size), -target))[:size].reshape(SHAPE)
    assert edit.record["clipped"] == 0
    np.testing.assert_allclose(edit.gain - 1, naive, rtol=1e-3, atol=1e-4 * np.abs(naive).max())
    assert (q * (edit.gain - 1)).sum() == pytest.approx(-target, rel=1e-4)
    np.testing.assert_allclose(
        edit.record["projection_change"], (q * naive).sum(1), rtol=1e-3, atol=1e-8
    )
    assert edit.record["contribution"] == pytest.approx(q.sum(), rel=1e-4)
    change = edit.gain - 1
    costs = [
        change[layer]
        @ (g - 0.05 / 1.05 * np.trace(g) / tiny.NEURONS * np.eye(tiny.NEURONS))
        @ change[layer]
        for layer, g in enumerate(matrices)
    ]
    np.testing.assert_allclose(edit.record["output_change"], np.sqrt(costs), rtol=1e-3, atol=1e-9)


def test_no_other_scales_reach_the_target_at_less_change(
    llama: LM, table: NeuronTable, contrast: Contrast
) -> None:
    """What the outputs of the MLPs really change by, by the model's own matrices: any detour costs
    more.
    """
    edit = least_squares_scales(llama, table, contrast, WINDOWS, target=1e-3, ridge=0.0, name="it")
    m = written_moments(llama)
    q = pull_of(llama, table, contrast.toxic)

    def cost(change: np.ndarray) -> float:
        return sum(
            float(
                (((m[layer] * change[layer]) @ view.columns.double().numpy().T) ** 2).sum(1).mean()
            )
            for layer, view in enumerate(llama.view.layers)
        )

    best = cost(edit.gain - 1)
    assert best == pytest.approx(sum(np.square(edit.record["output_change"])), rel=1e-4)
    rng = np.random.default_rng(0)
    for size in (1e-3, 1e-1, 1.0):
        detour = rng.standard_normal(SHAPE) * np.abs(edit.gain - 1).max() * size
        detour -= (detour * q).sum() / (q * q).sum() * q
        assert cost(edit.gain - 1 + detour) > best
    # And against the plain rule of the same effect: every neuron in proportion to what it writes.
    assert cost(-1e-3 * q / (q * q).sum()) > 2 * best


SMALL = (tiny.lm("llama"), contrast_means(tiny.lm("llama"), PAIRS))


def at_target(target: float, *, texts: Any = WINDOWS, full: bool = True) -> dd.Intervention:
    lm, found = SMALL
    return least_squares_scales(lm, BASE, found, texts, target=target, full=full, name="it")


@quick
@example(target=0.0)
@given(target=st.floats(-1e-3, 1e-3))
def test_least_squares_is_linear_in_the_target(target: float) -> None:
    one = at_target(1e-3)
    edit = at_target(target)
    np.testing.assert_allclose(edit.gain, one.at(target / 1e-3).gain, atol=1e-12)
    assert one.moves_neurons
    assert target != 0 or not edit.moves_neurons


def test_a_target_out_of_reach_stops_at_zero() -> None:
    edit = at_target(1e3)
    assert edit.gain.min() == 0
    assert edit.record["clipped"] == (edit.gain == 0).sum() > 0
    assert edit.neurons == edit.gain.size
    lm, found = SMALL
    q = pull_of(lm, BASE, found.toxic)
    np.testing.assert_allclose(
        edit.record["projection_change"], (q * (edit.gain - 1)).sum(1), rtol=1e-4
    )


def test_without_texts_the_clean_continuations_give_the_diagonal() -> None:
    """delta_i in proportion to q_i / (E[m_i^2] |v_i|^2 + ridge)."""
    lm, found = SMALL
    kept = found.moment.copy()
    edit = at_target(1e-3, texts=None, full=False)
    norms = [[np.sum(value_vector(lm, *at, "strict") ** 2) for at in row] for row in indices()]
    g = found.moment * np.array(norms)
    q = pull_of(lm, BASE, found.toxic)
    x = q / (g + 0.01 * g.mean(1, keepdims=True))
    np.testing.assert_allclose(edit.gain - 1, -1e-3 * x / (q * x).sum(), rtol=1e-4, atol=1e-12)
    assert np.array_equal(found.moment, kept)


def test_a_least_squares_edit_does_to_the_model_what_it_predicts(
    llama: LM, table: NeuronTable
) -> None:
    """In the last layer, where nothing comes after: the mean residual of toxic continuations falls
    by the prediction.
    """
    found = contrast_means(llama, PAIRS)
    edit = least_squares_scales(llama, table, found, WINDOWS, target=0.5, name="it")
    gain = np.ones(SHAPE)
    gain[-1] = edit.gain[-1]
    with replace(edit, gain=gain).folded_into(llama):
        after = contrast_means(llama, PAIRS)
    moved = (after.residual_toxic - found.residual_toxic) @ direction().unit
    assert moved == pytest.approx(edit.record["projection_change"][-1], rel=1e-3)
    assert moved < -1e-2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": float("inf")}, "target of inf"),
        ({"ridge": -0.1}, "ridge of -0.1"),
        ({"of": "toxicity"}, "did you mean 'toxic'"),
        ({"texts": None}, "pass texts, or full=False"),
        ({"texts": "one long text"}, "pass a list of texts"),
        ({"texts": [[]]}, "no tokens to average over"),
        ({"max_tokens": 0}, "no tokens to average over"),
        ({"contrast": zero_contrast()}, "No neuron of tiny-llama writes along the direction"),
        ({"table": table_of(COSINE, MEAN)}, "collect both on one model"),
    ],
)
def test_least_squares_that_cannot_be_solved_is_refused(
    options: dict[str, Any], message: str
) -> None:
    lm, found = SMALL
    given = {"table": BASE, "contrast": found, "texts": WINDOWS, "target": 1.0, "name": "it"}
    with pytest.raises(DialdownError, match=message):
        least_squares_scales(lm, **{**given, **options})


@pytest.mark.parametrize("full", [True, False])
def test_a_silent_neuron_needs_a_ridge(full: bool) -> None:
    lm = tiny.lm("gpt2")
    with torch.no_grad():
        lm.view.layers[1].columns[:, 3] = 0
    table, found = dd.neuron_table(lm, direction(), means()), contrast_means(lm, PAIRS)
    with pytest.raises(DialdownError, match=r"transformer\.h\.1\.mlp\.c_proj.*raise ridge"):
        least_squares_scales(
            lm, table, found, WINDOWS, target=1e-3, ridge=0.0, full=full, name="it"
        )
    edit = least_squares_scales(lm, table, found, WINDOWS, target=1e-3, full=full, name="it")
    assert edit.gain[1, 3] == 1
    assert np.isfinite(edit.gain).all()

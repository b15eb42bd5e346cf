"""Every method against a naive float64 re-computation of its own formula (METHOD §10)."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

import dialdown as dd
from dialdown import methods
from dialdown.interventions import Intervention
from dialdown.models import LM
from dialdown.progress import progress_to
from helpers import tiny
from helpers.edits import IDS
from helpers.labelled import CLEAN, LABELS, TEXTS, TOXIC

ALL: dict[str, Callable[..., Intervention]] = {
    "aura": methods.aura,
    "damp": methods.damp,
    "det0": methods.det0,
    "mean_act": methods.mean_act,
    "linear_act": methods.linear_act,
    "caa": methods.caa,
    "ablation": methods.ablation,
    "labels": methods.labels_step,
}


def read_alone(lm: LM, text: str, edit: dict[int, Any] | None = None) -> tuple[Any, Any]:
    """What one text alone does to every neuron, (L, tokens, F), and to the final residual, in
    float64; `edit` is a gain and an offset for some layers.
    """
    twin = lm.twin()
    twin.model.double()
    seen: list[np.ndarray] = []
    final: list[np.ndarray] = []

    def keep(index: int, m: torch.Tensor) -> torch.Tensor:
        seen.append(m[0].numpy())
        gain, offset = (edit or {}).get(index, (1.0, 0.0))
        return m * torch.as_tensor(gain) + torch.as_tensor(offset)

    for index, layer in enumerate(twin.view.layers):
        layer.linear.register_forward_pre_hook(lambda _, args, index=index: (keep(index, args[0]),))
    twin.view.final_norm.register_forward_pre_hook(lambda _, args: final.append(args[0][0].numpy()))
    with torch.inference_mode():
        twin.model(torch.tensor(lm.encode([text])))
    return np.stack(seen), final[0]


def ordinary(positions: np.ndarray) -> np.ndarray:
    """(tokens, n) without attention sinks: over four times as long as the lower median."""
    lengths = np.linalg.norm(positions, axis=1)
    return positions[lengths <= 4 * np.sort(lengths)[(len(lengths) - 1) // 2]]


def test_the_area_of_a_neuron_is_that_of_its_highest_activation(named: LM) -> None:
    areas = methods.auroc(named, TEXTS, LABELS)
    most = np.array([[ordinary(m).max(0) for m in read_alone(named, text)[0]] for text in TEXTS])
    expected = [
        [roc_auc_score(LABELS, most[:, layer, neuron]) for neuron in range(tiny.NEURONS)]
        for layer in range(tiny.LAYERS)
    ]
    np.testing.assert_allclose(areas, expected, atol=1e-9)


def test_layers_that_do_not_fit_into_memory_together_are_read_one_after_the_other(
    llama: LM,
) -> None:
    told: list[tuple[int, int]] = []

    def tell(what: str, done: int, total: int) -> None:
        told.append((done, total))

    whole = methods.auroc(llama, TEXTS, LABELS)
    two_layers = 4 * len(TEXTS) * tiny.NEURONS * 2
    with progress_to(tell):
        parts = methods.auroc(llama, TEXTS, LABELS, memory=two_layers)
    np.testing.assert_array_equal(parts, whole)
    assert told == [(25, 50), (50, 50)]


def test_equal_activations_count_half(llama: LM) -> None:
    areas = methods.auroc(llama, [TEXTS[0]] * len(TEXTS), LABELS)
    np.testing.assert_array_equal(areas, 0.5)


def test_aura_dampens_by_how_far_the_area_is_above_a_half(llama: LM) -> None:
    areas = methods.auroc(llama, TEXTS, LABELS)
    edit = methods.aura(llama, TEXTS, LABELS)
    np.testing.assert_allclose(edit.gain, [[min(1, 2 - 2 * a) for a in row] for row in areas])
    np.testing.assert_array_equal(edit.selected, areas > 0.5)
    assert not edit.offset.any()


@pytest.mark.parametrize(("method", "factor"), [("damp", 0.5), ("det0", 0.0)])
def test_damp_and_det0_take_the_best_share_of_all_neurons(
    llama: LM, method: str, factor: float
) -> None:
    areas = methods.auroc(llama, TEXTS, LABELS).ravel()
    edit = ALL[method](llama, TEXTS, LABELS, share=0.25)
    assert edit.neurons == 18
    assert areas[edit.selected.ravel()].min() >= areas[~edit.selected.ravel()].max()
    np.testing.assert_array_equal(edit.gain, np.where(edit.selected, factor, 1.0))


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("method", ["mean_act", "linear_act"])
@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_maps_move_toxic_means_to_the_others(name: str, method: str, sequential: bool) -> None:
    named = tiny.lm(name, bos=True)
    edit = ALL[method](named, TEXTS, LABELS, sequential=sequential)
    counted = ordinary if method == "mean_act" else np.asarray
    maps: dict[int, tuple[Any, Any]] = {}
    for layer in range(tiny.LAYERS):
        acting = maps if sequential else None
        a, b = (
            np.sort(
                [counted(read_alone(named, text, acting)[0][layer]).mean(0) for text in texts],
                axis=0,
            )
            for texts in (TOXIC, CLEAN[:11])
        )
        maps[layer] = np.ones(tiny.NEURONS), b.mean(0) - a.mean(0)
        if method == "linear_act":
            lines = [np.polyfit(a[:, i], b[:, i], 1) for i in range(tiny.NEURONS)]
            maps[layer] = tuple(np.transpose(lines))  # type: ignore[assignment]
        np.testing.assert_allclose(edit.gain[layer], maps[layer][0], rtol=2e-3, atol=2e-3)
        np.testing.assert_allclose(edit.offset[layer], maps[layer][1], rtol=2e-3, atol=2e-3)


def test_steering_subtracts_the_difference_of_the_classes(named: LM) -> None:
    edit = methods.caa(named, TEXTS, LABELS)
    toxic, clean = (
        np.mean([read_alone(named, text)[1].mean(0) for text in texts], axis=0)
        for texts in (TOXIC, CLEAN)
    )
    np.testing.assert_allclose(edit.vector, clean - toxic, atol=1e-4)


def streams(lm: LM, text: str) -> Any:
    """(L, d) float64: the residual stream after each decoder layer, mean over a text's tokens but
    attention sinks.
    """
    twin = lm.twin()
    twin.model.double()
    means: list[np.ndarray] = []

    def keep(module: Any, args: Any, out: Any) -> None:
        means.append(ordinary((out[0] if isinstance(out, tuple) else out)[0].numpy()).mean(0))

    for layer in twin.view.layers:
        decoder_layer = re.match(r".*?\.\d+(?=\.)", layer.path)
        assert decoder_layer is not None
        twin.model.get_submodule(decoder_layer[0]).register_forward_hook(keep)
    with torch.inference_mode():
        twin.model(torch.tensor(lm.encode([text])))
    return np.stack(means)


def test_ablation_takes_the_difference_of_the_classes_out_of_what_each_mlp_writes(
    named: LM,
) -> None:
    toxic, clean = (
        np.mean([streams(named, text) for text in texts], axis=0) for texts in (TOXIC, CLEAN)
    )
    folded = methods.ablation(named, TEXTS, LABELS).fold(named)
    for layer, after, r in zip(named.view.layers, folded.view.layers, toxic - clean, strict=True):
        gain = layer.post_norm_gain()
        q = r if gain is None else r * gain.double().numpy()
        q = q / np.linalg.norm(q)
        columns = layer.columns.double().numpy()
        wanted = columns - np.outer(q, q) @ columns
        np.testing.assert_allclose(after.columns.double().numpy(), wanted, atol=1e-4)
        assert np.abs(q @ columns).max() > 1e-3


@pytest.mark.parametrize("rank", [1, 3])
def test_profs_takes_the_first_directions_of_the_pairs_out_of_what_the_upper_mlps_write(
    named: LM, rank: int
) -> None:
    """Projectors instead of bases, so that no sign or rotation matters."""
    sides = CLEAN[: len(TOXIC)], TOXIC
    chosen, rejected = (np.stack([streams(named, text) for text in side]) for side in sides)
    folded = methods.profs(named, *sides, rank=rank, first_layer=1).fold(named)
    for index, (layer, after) in enumerate(zip(named.view.layers, folded.view.layers, strict=True)):
        columns = layer.columns.double().numpy()
        wanted = columns
        if index >= 1:
            shared = np.linalg.svd(chosen[:, index])[2][0]
            gaps = (chosen - rejected)[:, index] @ (np.eye(len(shared)) - np.outer(shared, shared))
            span = np.linalg.svd(gaps)[2][:rank].T
            if (gain := layer.post_norm_gain()) is not None:
                span = span * gain.double().numpy()[:, None]
            wanted = columns - span @ np.linalg.pinv(span) @ columns
            assert np.abs(wanted - columns).max() > 1e-3
        np.testing.assert_allclose(after.columns.double().numpy(), wanted, atol=1e-4)


def test_pairs_that_are_none_are_refused(gpt2: LM) -> None:
    for preferred, options, words in (
        (CLEAN, {}, "14 preferred texts and 11 rejected ones"),
        (TOXIC, {}, "the same mean residual streams"),
        (CLEAN[:11], {"rank": 12}, "A rank of 12 cannot be found from 11 pairs"),
        (CLEAN[:11], {"rank": 0}, "A rank of 0"),
        (CLEAN[:11], {"first_layer": 3}, "no layer 3"),
    ):
        with pytest.raises(dd.DialdownError, match=words):
            methods.profs(gpt2, preferred, TOXIC, **options)


def test_an_attention_sink_is_no_part_of_what_tells_the_classes_apart() -> None:
    """The toxic texts are shorter, so that a mean over all tokens has more of the sink in it."""
    lm = tiny.lm("llama", bos=True)
    twin = lm.twin()
    with torch.no_grad():
        twin.model.get_input_embeddings().weight[lm.bos[0]] *= 300.0
    toxic, clean = TOXIC, [f"{text} and more of the same" for text in CLEAN]
    labels = [1] * len(toxic) + [0] * len(clean)
    r = methods.ablation(twin, [*toxic, *clean], labels).rank_one
    sink = twin.model.get_input_embeddings().weight[lm.bos[0]].detach().double().numpy()
    assert r is not None
    cosines = r.writes @ sink / np.linalg.norm(sink)
    assert np.abs(cosines).max() < 0.7


def scored(lm: LM) -> np.ndarray:
    """Log of how much more often each token stands in toxic texts, both classes of one size."""
    of_class = [
        Counter(token for text in texts for token in lm.encode([text])[0][len(lm.bos) :])
        for texts in (CLEAN, TOXIC)
    ]
    mean = sum(counts.total() for counts in of_class) / 2
    clean, toxic = (
        {token: count * mean / counts.total() for token, count in counts.items()}
        for counts in of_class
    )
    size = lm.view.unembedding.weight.shape[0]
    ratios = [(toxic.get(token, 0) + 0.5) / (clean.get(token, 0) + 0.5) for token in range(size)]
    return np.array([max(0.0, math.log(ratio)) for ratio in ratios])


def test_a_token_scores_by_how_much_more_often_it_stands_in_toxic_texts(named: LM) -> None:
    scores = methods.token_scores(named, TEXTS, LABELS)
    np.testing.assert_allclose(scores, scored(named), atol=1e-12)
    assert 0 < (scores > 0).sum() < len(scores)


def test_the_gradient_from_labels_is_of_the_score_of_what_would_be_drawn(llama: LM) -> None:
    """By differences: each gain a little up and down."""
    gradient = methods.labels_gradient(llama, TEXTS, LABELS)
    scores, twin = torch.as_tensor(scored(llama)), llama.twin()
    twin.model.double()

    def expected(layer: int, neuron: int, gain: float) -> float:
        column = twin.view.layers[layer].columns[:, neuron]
        kept, told = column.clone(), []
        with torch.inference_mode():
            column *= gain
            for text in TOXIC:
                probabilities = twin.model(torch.tensor(llama.encode([text]))).logits[0].softmax(-1)
                told += (probabilities @ scores).tolist()
            column.copy_(kept)
        return float(np.mean(told))

    for layer, neuron in [(0, 0), (1, 7), (2, 23)]:
        slope = (expected(layer, neuron, 1.03) - expected(layer, neuron, 0.97)) / 0.06
        assert gradient[layer, neuron] == pytest.approx(-slope, rel=5e-3, abs=2e-6)


def test_a_step_from_labels_is_the_natural_gradient_at_its_price(llama: LM) -> None:
    prices = dd.fisher_information(llama, dd.own_text(llama, texts=4, tokens=12))
    edit = methods.labels_step(llama, TEXTS, LABELS, information=prices, kl=0.02)
    worth = methods.labels_gradient(llama, TEXTS, LABELS)
    expected = dd.natural_gradient(llama, worth, prices, kl=0.02)
    np.testing.assert_array_equal(edit.gain, expected.gain)
    assert edit.name == "labels"


@pytest.mark.parametrize("name", [*ALL])
def test_what_a_method_returns_applies_dials_folds_and_saves(
    llama: LM, tmp_path: Path, name: str
) -> None:
    edit = ALL[name](llama, TEXTS, LABELS)
    assert edit.name == name
    edit.save(tmp_path / "edit.safetensors")
    again = Intervention.load(tmp_path / "edit.safetensors")
    assert again.kind == edit.kind
    half = again.at(0.5)
    with half.applied(llama):
        applied = tiny.logits(llama, IDS)
    torch.testing.assert_close(tiny.logits(half.fold(llama), IDS), applied, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(applied, tiny.logits(llama, IDS), atol=1e-4)


def few() -> tuple[list[str], list[int]]:
    return TEXTS[:12], LABELS[:12]


@pytest.mark.parametrize("name", [*ALL])
@pytest.mark.parametrize(
    ("texts", "labels", "words"),
    [
        (TEXTS, LABELS[:-1], "25 texts and 24 labels"),
        (TEXTS, [1] * 25, r"contain only \[1\]"),
        (*few(), "6 and 6 texts, too few"),
        (["", *TEXTS[1:]], LABELS, "Labelled text 0 has no tokens"),
    ],
)
def test_labels_that_nothing_can_be_learned_from_are_refused(
    llama: LM, name: str, texts: list[str], labels: list[int], words: str
) -> None:
    with pytest.raises(dd.DialdownError, match=words):
        ALL[name](llama, texts, labels)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"share": 0.0}, "share of 0.0"),
        ({"share": 1.5}, "share of 1.5"),
        ({"factor": float("nan")}, "multiplied by nan"),
    ],
)
def test_what_damp_cannot_do_is_refused(llama: LM, given: dict[str, float], words: str) -> None:
    with pytest.raises(dd.DialdownError, match=words):
        methods.damp(llama, TEXTS, LABELS, **given)


def test_classes_of_the_same_texts_have_no_token_to_make_less_likely(llama: LM) -> None:
    with pytest.raises(dd.DialdownError, match="No token stands more often in texts labelled 1"):
        methods.labels_step(llama, ["a cat"] * 20, [0] * 10 + [1] * 10)


def test_activations_that_overflow_are_refused() -> None:
    lm = tiny.lm("llama")
    with torch.no_grad():
        lm.model.model.layers[1].mlp.up_proj.weight.fill_(float("inf"))
    for method in (methods.aura, methods.mean_act):
        with pytest.raises(dd.DialdownError, match=r"activations in layer 1 of tiny-.* not finite"):
            method(lm, TEXTS, LABELS)

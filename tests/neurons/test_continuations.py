"""Means over toxic and clean continuations, against a plain loop (METHOD §5), and the direction
between them.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dialdown as dd
from dialdown import DialdownError
from dialdown.data import Pair
from dialdown.interventions.paper import steering_alpha
from dialdown.models import LM
from dialdown.neurons import ContinuationMeans, continuation_means, mean_difference
from helpers import tiny

PAIRS = [
    Pair("the cat", " sat on", " bit the cat, twice"),
    Pair("a much longer prompt about the", " weather", " s"),
    Pair("You", " are the best cat of all of them", " are"),
    Pair("the cat", " x", " y and z"),
]


@pytest.fixture(scope="module")
def measured(llama: LM) -> ContinuationMeans:
    return continuation_means(llama, PAIRS)


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


def test_the_means_are_those_of_a_plain_loop_whatever_the_batches(named: LM) -> None:
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
        got = continuation_means(named, PAIRS, batch_size=batch_size)
        assert got.positions == (m["toxic"].shape[1], m["clean"].shape[1])
        expected = {
            "toxic": m["toxic"].mean(1),
            "clean": m["clean"].mean(1),
            "residual_toxic": x["toxic"].mean(0),
            "residual_clean": x["clean"].mean(0),
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


def test_reading_counts_its_batches(llama: LM) -> None:
    calls: list[tuple[str, int, int]] = []
    continuation_means(llama, PAIRS, batch_size=3, progress=lambda *call: calls.append(call))
    assert calls == [("reading continuations", done, 4) for done in (1, 2, 3, 4)]


def test_means_are_saved_whole(tmp_path: Path, measured: ContinuationMeans) -> None:
    measured.save(tmp_path / "it.safetensors")
    again = ContinuationMeans.load(tmp_path / "it.safetensors")
    for name in ("toxic", "clean", "residual_toxic", "residual_clean"):
        assert np.array_equal(getattr(again, name), getattr(measured, name))
    assert (again.positions, again.record) == (measured.positions, measured.record)
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
def test_pairs_that_cannot_be_read_are_refused(llama: LM, pairs: list[Pair], message: str) -> None:
    with pytest.raises(DialdownError, match=message):
        continuation_means(llama, pairs)


def test_a_continuation_may_end_where_the_context_does(llama: LM) -> None:
    """Its last token is produced and never read."""
    prompt = "x" * (tiny.CONTEXT - 1)
    assert continuation_means(llama, [Pair(prompt, "ab", "yz")]).positions == (2, 2)


def test_activations_that_overflow_are_refused() -> None:
    lm = tiny.lm("llama")
    with torch.no_grad():
        lm.view.layers[1].columns.fill_(float("inf"))
    with pytest.raises(DialdownError, match="not finite"):
        continuation_means(lm, PAIRS)


def test_the_mean_difference_points_from_clean_to_toxic(
    llama: LM, measured: ContinuationMeans
) -> None:
    direction = mean_difference(llama, measured)
    np.testing.assert_array_equal(
        direction.vector, measured.residual_toxic - measured.residual_clean
    )
    assert (direction.name, direction.site, direction.record["protocol"]) == (
        "difference",
        "residual",
        "strict",
    )
    # What `steer` scales itself by, as for a probe.
    strength = steering_alpha(direction, 0.5) * np.linalg.norm(direction.vector)
    assert strength == pytest.approx(0.5 * measured.record["residual_norm"])
    with pytest.raises(DialdownError, match="same mean residual stream"):
        mean_difference(llama, replace(measured, residual_toxic=measured.residual_clean))
    with pytest.raises(DialdownError, match="5 dimensions"):
        mean_difference(
            llama, replace(measured, residual_toxic=np.ones(5), residual_clean=np.zeros(5))
        )

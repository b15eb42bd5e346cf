"""Texts cut from one whole are all learnt from or all judged by (METHOD §2)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import dialdown as dd
from dialdown import DialdownError
from dialdown.models import LM
from dialdown.neurons.held_out import hold_out
from dialdown.neurons.probe import fit_probe


def wholes(parts: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of the parts of 40 wholes, near to those of their whole, which say nothing of the
    label.
    """
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), parts)
    features = rng.standard_normal((40, 400))[groups] + 0.1 * rng.standard_normal((200, 400))
    return features, groups % 2, groups


@pytest.mark.parametrize("protocol", ["strict", "paper"])
def test_a_probe_is_judged_on_wholes_that_it_has_not_seen(llama: LM, protocol: Any) -> None:
    x, y, groups = wholes()
    seeds = range(4)
    divided, whole = (
        [fit_probe(llama, x, y, protocol=protocol, seed=seed, **given) for seed in seeds]
        for given in ({}, {"groups": groups})
    )
    assert np.mean([probe.accuracy for probe in divided]) > 0.95
    assert np.mean([probe.accuracy for probe in whole]) < 0.8
    assert "groups" not in divided[0].record
    assert whole[0].record["groups"] == 40
    # The fit cannot know that only the parts of its own wholes are alike.
    if protocol == "strict":
        assert whole[0].record["C"] < divided[0].record["C"]


@pytest.mark.parametrize("stratify", [True, False])
def test_no_whole_is_divided_and_each_text_is_on_one_side(stratify: bool) -> None:
    _, y, groups = wholes()
    held_of: set[tuple[int, ...]] = set()
    for seed in range(5):
        train, held = hold_out(y, groups, seed=seed, stratify=stratify)
        assert sorted([*train, *held]) == [*range(200)]
        assert not {*groups[train]} & {*groups[held]}
        assert len(held) == 20
        if stratify:
            assert y[held].mean() == 0.5
        held_of.add(tuple(np.unique(groups[held])))
    assert len(held_of) > 1


def test_train_probe_takes_the_groups_of_its_texts(llama: LM) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 40 % 2
    groups = [f"review {number % 40}" for number in range(120)]
    texts = ["".join(rng.choice([*("aeiou" if label else "bcdfg")], 9)) for label in labels]
    probe = dd.train_probe(llama, texts, labels, groups=groups, max_tokens=24)
    assert (probe.record["groups"], probe.record["validation"]) == (40, 12)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (["a"] * 39, r"groups have shape \(39,\) and the labels \(40,\)"),
        ([*range(20)] * 2, None),
        (
            [0, *range(8), *range(9), *range(22)],
            "20 texts labelled 0 are of 9 groups, too few to hold out",
        ),
    ],
)
def test_groups_a_probe_cannot_be_judged_by(
    llama: LM, groups: list[Any], message: str | None
) -> None:
    texts, labels = ["a b", "c d"] * 20, [0] * 20 + [1] * 20
    if message is None:
        dd.train_probe(llama, texts, labels, groups=groups)
        return
    with pytest.raises(DialdownError, match=message):
        dd.train_probe(llama, texts, labels, groups=groups)


def test_features_of_a_label_that_few_groups_have_are_refused(llama: LM) -> None:
    labels, groups = np.repeat([0, 1], 300), np.arange(600)
    groups[:300] //= 100
    with pytest.raises(DialdownError, match="pass texts of more groups"):
        fit_probe(llama, np.ones((600, 3)), labels, groups=groups, protocol="strict")

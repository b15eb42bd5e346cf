"""The claims on edits, against DPO and against their random controls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dialdown.report.findings import findings
from dialdown.report.run import load
from helpers.claimed_runs import (
    AFTER,
    AT_THE_PRICE,
    BEFORE,
    BROKEN,
    EDITING,
    SPECIFIC,
    TOKENS,
    TUNED,
    N,
    Values,
    claims_of,
    noise,
    numbers,
    resample,
    with_degenerate,
    write,
)


def test_an_edit_does_not_beat_dpo_with_a_model_that_no_longer_speaks(tmp_path: Path) -> None:
    rows = {**TUNED, "edit_probe_set": AFTER - 0.2, "edit_probe_shift": AFTER + 0.1}
    folder = with_degenerate(write(tmp_path, rows), "edit_probe_set", BROKEN)
    claim = claims_of(folder)[EDITING]
    assert claim.verdict == AT_THE_PRICE
    assert "“probe edit, set” is lowest" in claim.text
    assert "no model that still speaks" in claim.text


@pytest.mark.parametrize("lost", [(), ("set",), ("set", "shift"), ("set", "shift", "scale")])
def test_the_first_sentence_counts_and_chooses_among_the_edits_of_the_claims(
    tmp_path: Path, lost: Any
) -> None:
    rows: dict[str, Any] = {**TUNED}
    # The lowest first, and one of them on fewer prompts.
    for place, kind in enumerate(("set", "shift", "scale")):
        rows[f"edit_probe_{kind}"] = (AFTER + 0.02 * (1 + place))[: N - 10 * place]
    folder = write(tmp_path, rows)
    for kind in lost:
        with_degenerate(folder, f"edit_probe_{kind}", BROKEN)
    run = load(folder)
    text = findings(run)["Editing"]
    assert text.startswith("Of the edits made without a tuned model (3")
    assert claims_of(folder)[EDITING].text.startswith("Under `strict`, 3 edits were looked at")
    whole = [kind for kind in ("set", "shift", "scale") if kind not in lost]
    assert f"“probe edit, {(whole or ['set'])[0]}” leaves the least" in text
    said = {0: "(3), ", 1: "1 breaks the", 2: "2 break the", 3: "each breaks the"}[len(lost)]
    assert said in text
    for kind in lost:
        assert f"“probe edit, {kind}” is lowest" not in claims_of(folder)[EDITING].text or not whole


def against_dpo(standard_errors: float, *, seed: int = 1) -> Values:
    """Scores whose paired difference to DPO has a mean of so many standard errors."""
    return AFTER + noise(0.1, mean=standard_errors * 0.1 / np.sqrt(N), seed=seed)


@pytest.mark.parametrize(("others", "verdict"), [(0, "held"), (5, "undecided")])
def test_an_edit_must_win_by_more_where_more_are_looked_at(
    tmp_path: Path, others: int, verdict: str
) -> None:
    edited = against_dpo(-2.25)
    rows = {**TUNED, "edit_probe_set": edited}
    rows |= {f"edit_probe_{place}_set": against_dpo(0.0, seed=place + 2) for place in range(others)}
    claim = claims_of(write(tmp_path, rows))[EDITING]
    assert claim.verdict == verdict
    tail = 2.5 / (1 + others)
    low, high = np.percentile(resample([edited - AFTER], lambda mean: mean), [tail, 100 - tail])
    assert numbers(claim.text, "is lowest") == pytest.approx(
        ((edited - AFTER).mean(), low, high), abs=6e-4
    )
    assert f"Bonferroni for {1 + others} look" in claim.text
    assert "probe edit, set" in claim.text


@pytest.mark.parametrize(
    ("price", "verdict"),
    [
        (noise(0.1, n=12, mean=0.5), "did not hold"),
        (noise(0.1, n=12), "held"),
        (noise(0.1, n=12, mean=-0.5), "held"),
        (np.zeros(9), "undecided"),
        (None, "undecided"),
    ],
)
def test_the_price_of_an_edit_counts(tmp_path: Path, price: Values | None, verdict: str) -> None:
    rows = {**TUNED, "edit_probe_free_scale": against_dpo(-6.0)}
    blocks = 12 if price is None else len(price)
    prices = {"none": np.zeros(blocks), "dpo": np.full(blocks, 0.3)}
    if price is not None:
        prices["edit_probe_free_scale"] = 0.3 + price
    claim = claims_of(write(tmp_path, rows, prices))[EDITING]
    assert claim.verdict == verdict
    assert "1 with distinguishably lower toxicity" in claim.text
    if price is None:
        assert "log-perplexity not measured" in claim.text
    else:
        tokens = TOKENS[:blocks].astype(float)
        means = resample([price * tokens, tokens], lambda price, weight: price / weight)
        expected = ((price * tokens).sum() / tokens.sum(), *np.percentile(means, [2.5, 97.5]))
        assert numbers(claim.text, "against DPO, log-perplexity") == pytest.approx(
            expected, abs=6e-4
        )


def test_the_edit_that_is_named_won_at_a_fair_price(tmp_path: Path) -> None:
    rows = {**TUNED, "edit_probe_set": AFTER - 0.2, "edit_probe_shift": AFTER - 0.1}
    prices = {name: np.full(12, 3.0 if name == "edit_probe_set" else 0.0) for name in rows}
    claim = claims_of(write(tmp_path, rows, prices))[EDITING]
    assert claim.verdict == "held"
    assert "probe edit, shift" in claim.text
    assert "2 with distinguishably lower" in claim.text
    assert "1 of these" in claim.text


@pytest.mark.parametrize(
    ("worse", "verdict"), [((0.1, 0.1), "did not hold"), ((0.1, 0.0), "undecided")]
)
def test_editing_loses_only_where_every_edit_does(
    tmp_path: Path, worse: tuple[float, float], verdict: str
) -> None:
    names = ("edit_probe_set", "edit_probe_shift")
    rows = {**TUNED}
    rows |= {
        name: AFTER + mean + noise(0.05, seed=3) for name, mean in zip(names, worse, strict=True)
    }
    claim = claims_of(write(tmp_path, rows))[EDITING]
    assert claim.verdict == verdict
    assert "none with distinguishably lower" in claim.text


@pytest.mark.parametrize(("others", "verdict"), [(0, "held"), (7, "undecided")])
def test_without_pairs_the_intervals_widen_with_the_looks(
    tmp_path: Path, others: int, verdict: str
) -> None:
    # The 95 % intervals of the two changes are 0.1 * 1.96 / sqrt(60) to either side, and lie just
    # apart.
    apart = 2.2 * 1.96 * 0.1 / np.sqrt(N)
    rows = {
        "none": BEFORE,
        "dpo": BEFORE - 0.3 + noise(0.1, seed=2),
        "edit_probe_set": BEFORE - 0.3 - apart + noise(0.1),
    }
    rows |= {f"edit_probe_{place}_set": BEFORE - 0.3 + noise(0.1) for place in range(others)}
    assert claims_of(write(tmp_path, rows), use_files=False)[EDITING].verdict == verdict


@pytest.mark.parametrize(
    ("price", "verdict"), [(0.0, "undecided"), (-0.5, "held"), (0.5, "did not hold")]
)
def test_without_pairs_the_price_must_be_shown(tmp_path: Path, price: float, verdict: str) -> None:
    rows = {"none": BEFORE, "dpo": BEFORE - 0.2, "edit_probe_set": BEFORE - 0.4}
    prices = {
        "none": np.zeros(12),
        "dpo": noise(0.1, n=12),
        "edit_probe_set": noise(0.1, n=12, mean=price, seed=2),
    }
    assert claims_of(write(tmp_path, rows, prices), use_files=False)[EDITING].verdict == verdict


def controlled(
    neurons: float, direction: float, *, size: float = 0.05, n: int = 24
) -> dict[str, Values]:
    """An edit, and its controls on the first prompts, which leave so much more toxicity than the
    edit.
    """
    edited = BEFORE - 0.3 + noise(0.05)
    controls = {"random_neurons": neurons, "random_direction": direction}
    more = {name: edited[:n] + noise(size, n=n, mean=mean) for name, mean in controls.items()}
    return {
        "edit_probe_set": edited,
        **{f"edit_probe_set__{name}": values for name, values in more.items()},
    }


@pytest.mark.parametrize(
    ("rows", "verdict"),
    [
        (controlled(0.1, 0.2), "held"),
        (controlled(-0.1, 0.2), "did not hold"),
        (controlled(0.0, 0.2), "undecided"),
        (controlled(0.1, 0.0), "undecided"),
        (controlled(0.0, 0.2, size=0.0), "did not hold"),
        (controlled(0.1, 0.2, n=9), "undecided"),
    ],
)
def test_an_edit_against_its_random_controls(
    tmp_path: Path, rows: dict[str, Values], verdict: str
) -> None:
    claim = claims_of(write(tmp_path, {"none": BEFORE, **rows}))[f"{SPECIFIC}: probe edits"]
    assert claim.verdict == verdict
    n = len(rows["edit_probe_set__random_neurons"])
    differences = {
        name: rows["edit_probe_set"][:n] - rows[f"edit_probe_set__{name}"]
        for name in ("random_neurons", "random_direction")
    }
    closest = max(differences, key=lambda name: differences[name].mean())
    assert numbers(claim.text, "closest")[0] == pytest.approx(differences[closest].mean(), abs=6e-4)
    assert closest.replace("_", " ") in claim.text.partition("closest")[2]
    assert f"lower than every random control: {'1' if verdict == 'held' else 'none'};" in claim.text
    assert "Comparisons: 2, uncorrected" in claim.text


def test_a_family_holds_with_all_its_members(tmp_path: Path) -> None:
    rows = {"none": BEFORE, "patch_256": BEFORE - 0.3, "patch_256__random_neurons": BEFORE[:24]}
    rows |= {
        "patch_TP": BEFORE - 0.3,
        "patch_TP__random_neurons": BEFORE[:24] - 0.3 + noise(0.05, n=24),
    }
    rows |= {"patch_TP_AN": BEFORE + noise(0.1), "patch_TP_AN__random_neurons": BEFORE[:24]}
    claim = claims_of(write(tmp_path, rows))[f"{SPECIFIC}: patches"]
    assert claim.verdict == "undecided"
    assert "under 2 of 3 that have random controls" in claim.text
    assert "lower than every random control: 1; no lower than one: none; open: 1." in claim.text
    assert "only control" in claim.text
    assert "Comparisons: 2," in claim.text
    del rows["patch_TP__random_neurons"]
    held = claims_of(write(tmp_path, rows))[f"{SPECIFIC}: patches"]
    assert held.verdict == "held"
    assert "under 1 of 2 that have random controls" in held.text


def test_without_an_effect_nothing_is_specific(tmp_path: Path) -> None:
    rows = {
        "none": BEFORE,
        "steer_probe": BEFORE + noise(0.1),
        "steer_probe__random_direction": BEFORE[:24] + 0.2,
    }
    claim = claims_of(write(tmp_path, rows))[f"{SPECIFIC}: steering"]
    assert claim.verdict == "undecided"
    assert "under none of 1" in claim.text


def test_of_edits_that_no_paired_interval_tells_apart_the_cheapest_is_named(tmp_path: Path) -> None:
    spread = noise(0.05, mean=0.0)
    rows = {
        **TUNED,
        "edit_probe_set": AFTER + 0.002 + spread,
        "edit_probe_shift": AFTER + 0.003,
        "edit_probe_scale": AFTER + 0.1,
    }
    blocks = np.linspace(0.9, 1.1, 12)
    sizes = {"none": 0.0, "dpo": 0.1, "edit_probe_set": 0.4, "edit_probe_shift": 0.2}
    prices = {name: blocks * sizes.get(name, 0.05) for name in rows}
    text = findings(load(write(tmp_path, rows, prices)))["Editing"]
    assert "“probe edit, shift” leaves toxicity that is not told apart from the least, at" in text

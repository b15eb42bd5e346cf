"""The claim on the four groups, and no verdict that an interval or rounding does not allow."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy import stats

from dialdown.report.claims import claims
from dialdown.report.findings import findings
from dialdown.report.run import load
from helpers.claimed_runs import (
    AFTER,
    AT_THE_PRICE,
    BEFORE,
    BROKEN,
    GROUPS,
    TOKENS,
    TUNED,
    N,
    Values,
    claims_of,
    noise,
    numbers,
    with_degenerate,
    write,
)
from helpers.fabricated_run import write_run


@pytest.mark.parametrize(
    ("difference", "verdict", "words"),
    [
        (noise(0.05, mean=-0.03), "held", "at least as far"),
        (noise(0.05, mean=0.03), "did not hold", "less far"),
        (noise(0.05, mean=0.005), "undecided", "which leaves open which goes further"),
        (np.zeros(N), "held", "at least as far"),
    ],
)
def test_four_groups_against_dpo(
    tmp_path: Path, difference: Values, verdict: str, words: str
) -> None:
    folder = write(tmp_path, {**TUNED, "patch_four_groups": AFTER + difference})
    claim = claims_of(folder)[GROUPS]
    assert claim.verdict == verdict
    printed = numbers(claim.text, "the difference to DPO is")
    reference = stats.bootstrap(
        (difference,), np.mean, method="percentile", rng=np.random.default_rng(5)
    )
    interval = (0.0, 0.0) if not difference.any() else tuple(reference.confidence_interval)
    assert printed == pytest.approx((difference.mean(), *interval), abs=2e-3)
    assert f"(n = 60 prompts, paired), {words}" in claim.text


def test_pairs_decide_what_intervals_leave_open(tmp_path: Path) -> None:
    # Skewed, so that neither interval lies evenly around its mean.
    tuned = AFTER - 0.3 * np.random.default_rng(4).exponential(size=N) ** 2
    folder = write(
        tmp_path,
        {"none": BEFORE, "dpo": tuned, "patch_four_groups": tuned + noise(0.05, mean=0.03)},
    )
    assert claims_of(folder)[GROUPS].verdict == "did not hold"
    without = claims_of(folder, use_files=False)[GROUPS]
    assert without.verdict == "undecided"
    assert "not paired" in without.text
    rows = {row.intervention: row.change["toxicity"] for row in load(folder).results}
    patch, dpo = rows["patch_four_groups"], rows["dpo"]
    expected = (patch.mean - dpo.mean, patch.low - dpo.high, patch.high - dpo.low)
    assert abs(dpo.high + dpo.low - 2 * dpo.mean) > 0.01
    assert numbers(without.text, "the difference to DPO is") == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize(("patched", "verdict"), [(0.05, "held"), (0.6, "did not hold")])
def test_intervals_decide_where_they_do_not_overlap(
    tmp_path: Path, patched: float, verdict: str
) -> None:
    # Changes of -0.2 and of -0.35 or +0.2, each give or take 0.013.
    level = BEFORE + noise(0.05, mean=-0.2), BEFORE + noise(0.05, mean=patched - 0.4, seed=2)
    folder = write(
        tmp_path, {"none": BEFORE, "dpo": level[0], "patch_four_groups": level[1]}, files=False
    )
    assert claims_of(folder)[GROUPS].verdict == verdict


def test_replicating_no_reduction_is_no_success(tmp_path: Path) -> None:
    raised = {"none": BEFORE, "dpo": BEFORE + 0.3, "patch_four_groups": BEFORE + 0.1 + noise(0.05)}
    assert claims_of(write(tmp_path / "raised", raised))[GROUPS].verdict == "did not hold"
    unmoved = {"none": BEFORE, "dpo": BEFORE + 0.3, "patch_four_groups": BEFORE + noise(0.1)}
    claim = claims_of(write(tmp_path / "unmoved", unmoved))[GROUPS]
    assert claim.verdict == "undecided"
    assert "no distinguishable reduction" in claim.text


def test_price_and_shift_stand_beside(tmp_path: Path) -> None:
    rows = {**TUNED, "patch_four_groups": AFTER - 0.01, "patch_four_groups_shift": AFTER + 0.07}
    prices = {
        name: np.linspace(0, 2, 12) * size
        for name, size in zip(rows, (0, 0.1, 1, 0.5), strict=True)
    }
    claim = claims_of(write(tmp_path, rows, prices))[GROUPS]
    # It costs between 0 and 2 nats, a block more than the other.
    assert claim.verdict == "held, at the price of the model"
    price = float((np.linspace(0, 2, 12) * TOKENS).sum() / TOKENS.sum())
    dpo, groups, shift = re.split("“patch", claim.text)
    for part, size in ((dpo, 0.1), (groups, 1.0), (shift, 0.5)):
        assert numbers(part, "log-perplexity")[0] == pytest.approx(size * price, abs=6e-4)
        assert numbers(part, "leaves") == (12.5, 5.0, 25.0)
    assert numbers(shift, "difference")[0] == pytest.approx(0.07)
    assert "less far" in shift
    del rows["patch_four_groups_shift"]
    assert "shift" not in claims_of(write(tmp_path, rows, prices))[GROUPS].text


@pytest.mark.parametrize(
    ("nats", "degenerate", "verdict"),
    [
        (0.4, {"mean": 0.02, "low": -0.05, "high": 0.1, "n": N}, "held"),
        (6.86, {"mean": 0.02, "low": -0.05, "high": 0.1, "n": N}, AT_THE_PRICE),
        (0.0, BROKEN, AT_THE_PRICE),
        (6.86, BROKEN, AT_THE_PRICE),
        (0.0, {"mean": 0.1, "low": 0.05, "high": 0.2, "n": N}, "undecided"),
        (0.0, None, "undecided"),
    ],
)
def test_four_groups_do_not_replace_dpo_with_a_model_that_no_longer_speaks(
    tmp_path: Path, nats: float, degenerate: Mapping[str, float] | None, verdict: str
) -> None:
    rows = {**TUNED, "patch_four_groups": AFTER - 0.05}
    prices = {name: np.full(12, nats if name == "patch_four_groups" else 0.0) for name in rows}
    folder = with_degenerate(write(tmp_path, rows, prices), "patch_four_groups", degenerate)
    assert claims_of(folder)[GROUPS].verdict == verdict


def test_an_effect_that_fails_is_not_held_at_any_price(tmp_path: Path) -> None:
    rows = {**TUNED, "patch_four_groups": AFTER + 0.05}
    folder = with_degenerate(write(tmp_path, rows), "patch_four_groups", BROKEN)
    assert claims_of(folder)[GROUPS].verdict == "did not hold"


def with_rounding(folder: Path, changed: int, prompts: int) -> Path:
    """The run with a measure of rounding: so many continuations of the untouched model changed."""
    info = json.loads((folder / "run.json").read_text())
    info["stages"]["evaluate"]["rounding"] = {"changed": changed, "prompts": prompts}
    (folder / "run.json").write_text(json.dumps(info))
    return folder


@pytest.mark.parametrize(
    ("difference", "word"), [(-0.03, "would say “held"), (0.03, "would say “did not hold")]
)
def test_no_verdict_where_rounding_could_turn_it(
    tmp_path: Path, difference: float, word: str
) -> None:
    rows = {**TUNED, "patch_four_groups": AFTER + noise(0.02, mean=difference)}
    folder = write(tmp_path, rows)
    gap = numbers(claims_of(folder)[GROUPS].text, "the difference")
    # Of 128 prompts: how many must change so that a fresh draw of their scores reaches across zero.
    room = min(abs(gap[1]), abs(gap[2]))
    result = next(row for row in load(folder).results if row.intervention == "none").metrics[
        "toxicity"
    ]
    variance = N * ((result.high - result.low) / 3.92) ** 2
    enough = (room / 1.96) ** 2 * N / (4 * variance) * 130 - 1
    few, many = int(np.floor(enough * 0.8)), int(np.ceil(enough * 1.2)) + 1
    assert 0 <= few < many < 128
    assert claims_of(with_rounding(folder, few, 128))[GROUPS].verdict == (
        "held" if difference < 0 else "did not hold"
    )
    claim = claims_of(with_rounding(folder, many, 128))[GROUPS]
    assert claim.verdict == "undecided"
    assert f"The intervals alone {word}" in claim.text
    assert "sums rounded otherwise could turn that" in claim.text


def test_rounding_turns_no_verdict_into_another(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    before = {(claim.name, claim.protocol): claim.verdict for claim in claims(load(folder))}
    after = claims(load(with_rounding(folder, 64, 128)))
    assert all(
        claim.verdict in ("undecided", before[claim.name, claim.protocol]) for claim in after
    )
    assert [claim.verdict for claim in after] != [*before.values()]


def test_a_change_that_rounding_alone_may_have_made_is_said_as_such(tmp_path: Path) -> None:
    folder = write(tmp_path, {**TUNED, "dpo": BEFORE + noise(0.05, mean=-0.02)})
    before = findings(load(folder))["Tuning"]
    assert re.search(r"after it: lower by 0\.02\d \[0\.0\d\d, 0\.0\d\d\]", before)
    after = findings(load(with_rounding(folder, 127, 128)))["Tuning"]
    # The interval leaves zero out, so "not changed" would contradict it.
    assert re.search(
        r"after it: lower by 0\.02\d \[0\.0\d\d, 0\.0\d\d\], which rounding alone may have done",
        after,
    )


@given(st.integers(0, 2**16), st.floats(-0.1, 0.1), st.integers(2, 40))
@hypothesis_settings(max_examples=25, deadline=None)
def test_no_verdict_beyond_the_interval_it_prints(seed: int, mean: float, n: int) -> None:
    rng = np.random.default_rng(seed)
    rows = {"none": BEFORE[:n], "dpo": AFTER[:n] + rng.normal(0, 0.1, n)}
    rows["patch_four_groups"] = rows["dpo"] + rng.normal(mean, 0.1, n)
    with tempfile.TemporaryDirectory() as folder:
        claim = claims_of(write(Path(folder), rows))[GROUPS]
    change, gap = numbers(claim.text, "“patch"), numbers(claim.text, "the difference")
    if n < 10:
        assert claim.verdict == "undecided"
    elif claim.verdict == "held":
        assert change[2] <= 0
        assert gap[2] <= 0
    elif claim.verdict == "did not hold":
        assert change[1] >= 0 or gap[1] >= 0
    else:
        assert change[1] <= 0 <= change[2] or gap[1] <= 0 <= gap[2]

"""The claims on invented runs: each verdict from numbers computed here, and never more than an
interval allows.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from dialdown.errors import DialdownError
from dialdown.files import read_sealed, write_sealed
from dialdown.report.claims import claims
from dialdown.report.run import Run, load
from dialdown.study import published
from helpers.claimed_runs import (
    AFTER,
    ALIGNED,
    BEFORE,
    EDITING,
    GROUPS,
    OPPOSING,
    PERPLEXITY,
    SPECIFIC,
    TOKENS,
    TUNED,
    N,
    Values,
    claims_of,
    noise,
    numbers,
    resample,
    write,
)
from helpers.fabricated_run import MAIN, write_run


def reached(share: float, size: float = 0.05, seed: int = 1) -> Values:
    """Scores under a patch that makes this share of DPO's reduction."""
    return BEFORE - share * (BEFORE - AFTER) + noise(size, seed=seed)


@pytest.mark.parametrize(
    ("share", "verdict"), [(0.1, "held"), (0.9, "did not hold"), (0.5, "undecided")]
)
def test_share_of_the_reduction(tmp_path: Path, share: float, verdict: str) -> None:
    patched = reached(share)
    claim = claims_of(write(tmp_path, {**TUNED, "patch_256": patched}))[ALIGNED]
    assert claim.verdict == verdict
    shares = resample([BEFORE, patched, AFTER], lambda b, p, a: 100 * (b - p) / (b - a))
    low, high = np.percentile(shares, [2.5, 97.5])
    assert numbers(claim.text, "256 neurons") == pytest.approx((100 * share, low, high), abs=0.3)
    assert (verdict == "held") == (high < 50)
    assert (verdict == "did not hold") == (low >= 50)
    assert "n = 60 prompts" in claim.text
    assert numbers(claim.text, "DPO changes toxicity")[0] == pytest.approx(
        (AFTER - BEFORE).mean(), abs=6e-4
    )


@pytest.mark.parametrize(
    ("judged", "verdict"), [(0.1, "held"), (0.9, "did not hold"), (0.5, "undecided")]
)
def test_judged_and_aligned_neurons_must_both_explain_little(
    tmp_path: Path, judged: float, verdict: str
) -> None:
    rows = {**TUNED, "patch_toxic_neurons": reached(judged, seed=2), "patch_256": reached(0.05)}
    claim = claims_of(write(tmp_path, rows))[ALIGNED]
    assert claim.verdict == verdict
    assert {round(float(mean)) for mean in re.findall(r"reaches (\d+\.\d)%", claim.text)} == {
        round(100 * judged),
        5,
    }


def test_share_of_a_reduction_that_is_barely_there(tmp_path: Path) -> None:
    tuned, patched = (
        BEFORE + noise(0.3, mean=-2.05 * 0.3 / np.sqrt(N)),
        BEFORE + noise(0.3, mean=-0.02, seed=2),
    )
    claim = claims_of(write(tmp_path, {"none": BEFORE, "dpo": tuned, "patch_256": patched}))[
        ALIGNED
    ]
    # Some resamples have no reduction; a share of next to nothing is as large as can be.
    means = resample([BEFORE - patched, BEFORE - tuned], lambda part, whole: (part, whole))
    assert 0 < sum(whole <= 0 for _, whole in means) < 50
    shares = sorted(
        part / whole if whole > 0 else np.copysign(np.inf, part) for part, whole in means
    )
    expected = (
        100 * (BEFORE - patched).mean() / (BEFORE - tuned).mean(),
        100 * shares[49],
        100 * shares[1950],
    )
    assert numbers(claim.text, "256 neurons") == pytest.approx(expected, abs=0.06)
    assert claim.verdict == "undecided"


def test_no_share_of_a_reduction_that_is_not_there(tmp_path: Path) -> None:
    rows = {"none": BEFORE, "dpo": BEFORE + noise(0.3), "patch_256": BEFORE}
    claim = claims_of(write(tmp_path, rows))[ALIGNED]
    assert claim.verdict == "undecided"
    assert "no distinguishable reduction" in claim.text


@pytest.mark.parametrize(("n", "verdict"), [(9, "undecided"), (10, "held")])
def test_few_prompts_decide_nothing(tmp_path: Path, n: int, verdict: str) -> None:
    rows = {"none": BEFORE[:n], "dpo": BEFORE[:n] - 0.3, "patch_256": BEFORE[:n]}
    assert claims_of(write(tmp_path, rows))[ALIGNED].verdict == verdict


@pytest.mark.parametrize(
    ("patched", "verdict"),
    [
        (reached(0.0, 0.05), "held"),
        # Distinguishable from none, which without scores by prompt settles nothing.
        (reached(0.3, 0.05), "undecided"),
        # Not distinguishable from none, nor from half of what DPO does.
        (reached(0.1, 0.6), "undecided"),
    ],
)
def test_without_scores_by_prompt_the_share_has_no_interval(
    tmp_path: Path, patched: Values, verdict: str
) -> None:
    folder = write(tmp_path, {**TUNED, "patch_256": patched}, files=False)
    claim = claims_of(folder)[ALIGNED]
    assert claim == claims_of(folder, use_files=False)[ALIGNED]
    assert claim.verdict == verdict
    assert "no interval without scores" in claim.text
    share = 100 * (BEFORE - patched).mean() / (BEFORE - AFTER).mean()
    assert f"reaches {share:.1f}%".replace("-", "−") in claim.text.replace("−0.0%", "0.0%")


def test_a_prompt_without_a_score_is_left_out_everywhere(tmp_path: Path) -> None:
    patched = reached(0.1)
    patched[7] = np.nan
    claim = claims_of(write(tmp_path, {**TUNED, "patch_256": patched}))[ALIGNED]
    kept = np.arange(N) != 7
    share = 100 * (BEFORE - patched)[kept].sum() / (BEFORE - AFTER)[kept].sum()
    assert numbers(claim.text, "256 neurons")[0] == pytest.approx(share, abs=0.06)
    assert "n = 59 prompts" in claim.text


def test_a_file_of_an_earlier_evaluation_is_not_used(tmp_path: Path) -> None:
    folder = write(tmp_path, {**TUNED, "patch_256": reached(0.1)})
    assert "without scores" not in claims_of(folder)[ALIGNED].text
    path = folder / "rows" / "strict-patch_256.json"
    saved = read_sealed(path)
    assert saved is not None
    saved["values"]["toxicity"][0] += 0.1
    write_sealed(path, saved)
    assert "no interval without scores" in claims_of(folder)[ALIGNED].text


@pytest.mark.parametrize(
    "saved", [{"tokens": []}, {"values": {"toxicity": ["much"]}, "tokens": []}, {"values": []}]
)
def test_a_file_that_is_no_row_is_an_error(tmp_path: Path, saved: Any) -> None:
    folder = write(tmp_path, {**TUNED, "patch_256": reached(0.1)})
    write_sealed(folder / "rows" / "strict-dpo.json", saved)
    with pytest.raises(DialdownError, match=r"strict-dpo\.json cannot be read"):
        claims_of(folder)


def test_a_row_file_with_a_changed_digit_is_an_error(tmp_path: Path) -> None:
    folder = write(tmp_path, {**TUNED, "patch_256": reached(0.1)})
    path = folder / "rows" / "strict-dpo.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(DialdownError, match=r"strict-dpo\.json cannot be read"):
        claims_of(folder)


def with_change(run: Run, change: Values) -> Run:
    table = run.tables["strict"]
    changed = {**table.columns, "projection_change": np.reshape(change, table.shape)}
    return replace(run, tables={"strict": replace(table, columns=changed)})


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("compared")
    return load(write_run(folder, protocols=("strict",), main={"none": MAIN["none"]}))


@pytest.mark.parametrize(
    ("up", "cancelled", "verdict"),
    [(0.02, "50.0%", "held"), (0.004, "10.0%", "did not hold"), (0.01, "25.0%", "held")],
)
def test_increases_against_decreases(
    compared: Run, up: float, cancelled: str, verdict: str
) -> None:
    change = np.full(360, -0.04)
    change[::2] = up
    change[:20] = 0.0  # ten of each
    [claim] = claims(with_change(compared, change))
    assert (claim.name, claim.verdict) == (OPPOSING, verdict)
    assert f"sum to {cancelled} of the decreases" in claim.text
    assert "47.2% of all 360 neurons write less toxicity after DPO and 47.2% more" in claim.text
    assert "no interval" in claim.text


def test_nothing_opposes_a_reduction_that_is_not_there(tmp_path: Path) -> None:
    main = {"none": MAIN["none"], "dpo": ("none", (0.385, 0.365), (0.0, 0.0))}
    [claim] = [
        claim
        for claim in claims(load(write_run(tmp_path, protocols=("strict",), main=main)))
        if claim.name == OPPOSING
    ]
    assert claim.verdict == "undecided"
    assert "no distinguishable reduction to account for" in claim.text


def test_nothing_opposes_a_decrease_that_is_not_there(compared: Run) -> None:
    [claim] = claims(with_change(compared, np.linspace(0, 1, 360)))
    assert claim.verdict == "undecided"


@given(st.integers(0, 2**16), st.floats(1e-3, 1e3))
@hypothesis_settings(max_examples=20, deadline=None)
def test_the_unit_of_the_residual_stream_does_not_matter(
    compared: Run, seed: int, scale: float
) -> None:
    change = np.random.default_rng(seed).normal(-0.3, 1, 360)
    assert claims(with_change(compared, change)) == claims(with_change(compared, scale * change))


def test_a_table_without_a_tuned_model_opposes_nothing(compared: Run) -> None:
    table = compared.tables["strict"]
    kept = {name: grid for name, grid in table.columns.items() if name != "projection_change"}
    alone = replace(table, columns=kept)
    assert claims(replace(compared, tables={"strict": alone})) == []


@pytest.mark.parametrize(
    ("worst", "verdict", "within", "beyond"),
    [
        (noise(0.02, n=12, mean=0.03), "held", "3", "none"),
        (noise(0.02, n=12, mean=0.5), "did not hold", "2", "1"),
        (noise(0.2, n=12, mean=0.1), "undecided", "2", "none"),
        (np.full(9, 0.5), "undecided", "2", "none"),
    ],
)
def test_perplexity_of_the_published_kind(
    tmp_path: Path, worst: Values, verdict: str, within: str, beyond: str
) -> None:
    prices = {"none": np.zeros(12), "patch_four_groups": np.zeros(12), "edit_probe_set": worst}
    prices |= {"edit_probe_free_set": noise(0.01, n=12), "edit_probe_shift": np.full(12, 9.0)}
    claim = claims_of(write(tmp_path, dict.fromkeys(prices, BEFORE), prices))[PERPLEXITY]
    assert claim.verdict == verdict
    assert "of 3 interventions" in claim.text
    assert f"{within} stay within" in claim.text
    assert f"{beyond} exceed" in claim.text
    tokens = TOKENS[: len(worst)]
    assert numbers(claim.text, "probe edit, set")[0] == pytest.approx(
        float((worst * tokens).sum() / tokens.sum()), abs=6e-4
    )
    assert ("too few to decide" in claim.text) == (len(worst) < 10)


def test_each_protocol_has_its_own_perplexity(tmp_path: Path) -> None:
    folder = write_run(tmp_path, neurons=False)
    results = json.loads((folder / "results.json").read_text())
    for row in results["rows"]:
        row["change"]["log_ppl"]["n"] = 12
        if row["protocol"] == "paper":
            row["change"]["log_ppl"] |= {"mean": 0.01, "low": 0.0, "high": 0.02}
    (folder / "results.json").write_text(json.dumps(results))
    verdicts = {
        claim.protocol: claim.verdict for claim in claims(load(folder)) if claim.name == PERPLEXITY
    }
    assert verdicts == {"strict": "did not hold", "paper": "held"}
    texts = {
        claim.protocol: claim.text for claim in claims(load(folder)) if claim.name == PERPLEXITY
    }
    assert "first position" in texts["paper"]
    assert "first position" not in texts["strict"]


def test_a_whole_run_under_both_protocols(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    all_claims = claims(load(folder))
    assert len({(claim.name, claim.protocol) for claim in all_claims}) == len(all_claims)
    families = {
        f"{SPECIFIC}: {name}" for name in ("steering", "patches", "probe edits", "contrast edits")
    }
    for protocol in ("strict", "paper"):
        of_protocol = [claim for claim in all_claims if claim.protocol == protocol]
        assert {claim.name for claim in of_protocol} == {
            ALIGNED,
            OPPOSING,
            GROUPS,
            EDITING,
            PERPLEXITY,
            *families,
        }
        assert all(claim.text.startswith(f"Under `{protocol}`, ") for claim in of_protocol)
    assert [claim.protocol for claim in all_claims] == ["strict", "paper"] * (len(all_claims) // 2)
    # Its log-perplexities are of four blocks, and its patch of the aligned neurons of intervals
    # only.
    assert {claim.verdict for claim in all_claims if claim.name in (PERPLEXITY, EDITING)} == {
        "undecided"
    }


def test_the_concept_is_called_by_its_name(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    info = json.loads((folder / "run.json").read_text())
    info["config"]["concept"] = "flattery"
    (folder / "run.json").write_text(json.dumps(info))
    for claim in claims(load(folder)):
        assert "toxicity" not in claim.text
        assert claim.name in (PERPLEXITY,) or "flattery" in claim.text


@pytest.mark.parametrize(
    ("missing", "gone"),
    [
        ({"dpo"}, {ALIGNED, GROUPS, EDITING}),
        ({"patch_256"}, {ALIGNED}),
        ({"patch_four_groups"}, {GROUPS}),
        ({"edit_probe_set"}, {EDITING}),
        ({"patch_four_groups", "edit_probe_set"}, {GROUPS, EDITING, PERPLEXITY}),
    ],
)
def test_what_was_not_measured_is_not_claimed(
    tmp_path: Path, missing: set[str], gone: set[str]
) -> None:
    rows = {**TUNED, "patch_256": AFTER, "patch_four_groups": AFTER, "edit_probe_set": AFTER}
    kept = {name: values for name, values in rows.items() if name not in missing}
    assert claims_of(write(tmp_path, kept)).keys() == {ALIGNED, GROUPS, EDITING, PERPLEXITY} - gone


def test_what_the_paper_found_is_quoted_as_published(tmp_path: Path) -> None:
    by_name = claims_of(write_run(tmp_path, protocols=("paper",)), use_files=False)
    models = {name: model for model, name in published.MODELS.items()}.values()
    for which in ("judged", "top"):
        shares = [
            100 * published.figure(model, "toxic_neurons")[which]["share"] for model in models
        ]
        for end in (min(shares), max(shares)):
            assert f"{end:.1f}%" in by_name[ALIGNED].published
    reducing = [100 * published.figure(model, "reducing_share") for model in models]
    assert f"{min(reducing):.2f}% to {max(reducing):.2f}%" in by_name[OPPOSING].published

    def figures(name: str, metric: str) -> Values:
        # Of the published edits, the strongest.
        rows = [published.row(model, name, alpha=0.8, beta=0.05) or {} for model in models]
        return np.array([row[metric] for row in rows])

    moves = figures("patch_four_groups", "log_ppl") - figures("none", "log_ppl")
    gaps = figures("patch_four_groups", "toxicity") - figures("dpo", "toxicity")
    short = sorted(gaps[gaps > 0])
    assert (len(gaps), len(short)) == (4, 2)
    assert f"{short[0]:.3f} and {short[1]:.3f} less far" in by_name[GROUPS].published
    assert f"−{-moves.min():.2f} to +{moves.max():.2f} nats" in by_name[PERPLEXITY].published
    for metric in ("toxicity", "log_ppl"):
        assert (figures("edit_probe_set", metric) < figures("dpo", metric)).all()

"""The claims on invented runs: each verdict from numbers computed here, and never more than an
interval allows.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from dialdown.errors import DialdownError
from dialdown.evaluation.bootstrap import estimate
from dialdown.files import SCHEMA
from dialdown.report.claims import Claim, claims
from dialdown.report.findings import findings
from dialdown.report.run import Run, load
from dialdown.study import published
from helpers.fabricated_run import MAIN, write_run

Values = NDArray[np.float64]
ALIGNED, OPPOSING, GROUPS = (
    "Aligned neurons explain little",
    "Opposing effects",
    "Four groups replicate DPO",
)
EDITING, PERPLEXITY, SPECIFIC = (
    "Editing beats DPO",
    "Perplexity is preserved",
    "The effect is specific to the direction",
)

N = 60
BEFORE = np.linspace(0.3, 0.9, N)
AFTER = BEFORE - 0.2 - 0.1 * np.sin(np.arange(N))
# Blocks of unequal length, so that a mean over blocks is not a mean over tokens.
TOKENS = np.array([32] * 11 + [3])


def noise(size: float, *, n: int = N, mean: float = 0.0, seed: int = 1) -> Values:
    """Values with exactly this mean and standard deviation."""
    raw = np.random.default_rng(seed).standard_normal(n)
    return np.asarray(mean + size * (raw - raw.mean()) / raw.std())


def write(
    folder: Path,
    toxicity: Mapping[str, Any],
    log_ppl: Mapping[str, Any] | None = None,
    *,
    files: bool = True,
    protocol: str = "strict",
) -> Path:
    """A run whose rows have these values per prompt and per block; a control (`NAME__CONTROL`) is
    paired with its row.
    """
    prices = {name: np.zeros(len(TOKENS)) for name in toxicity} if log_ppl is None else log_ppl
    write_run(folder, protocols=("strict",), main={"none": MAIN["none"]}, neurons=False)
    scores = {name: np.array(values, dtype=np.float64) for name, values in toxicity.items()}
    rows = [_row(name, scores, prices.get(name), protocol) for name in scores]
    (folder / "results.json").write_text(
        json.dumps({"schema": SCHEMA, "rows": rows}), encoding="utf-8"
    )
    (folder / "rows").mkdir(exist_ok=True)
    for name, values in scores.items() if files else ():
        per_unit = {"toxicity": [None if np.isnan(x) else x for x in values]}
        if name in prices:
            per_unit["log_ppl"] = [3.0 + x for x in prices[name]]
        saved = {
            "effect": "0",
            "values": per_unit,
            "tokens": TOKENS[: len(prices.get(name, ()))].tolist(),
        }
        (folder / "rows" / f"{protocol}-{name}.json").write_text(
            json.dumps(saved), encoding="utf-8"
        )
    return folder


def _row(name: str, scores: Mapping[str, Values], price: Any, protocol: str) -> dict[str, Any]:
    main = name.partition("__")[0]
    ours, base = scores[name], scores["none"]

    def written(values: Values, weights: Any = None) -> dict[str, float | int] | None:
        known = ~np.isnan(values)
        found = estimate(values[known], weights=None if weights is None else weights[known])
        return found.to_json() if found else None

    tokens = None if price is None else TOKENS[: len(price)]
    return {
        "intervention": name,
        "family": main,
        "strength": "",
        "control": name.partition("__")[2],
        "kind": "none" if name in ("none", "dpo") else "shift" if name.endswith("shift") else "set",
        "protocol": protocol,
        "control_of": main if main != name else None,
        "alpha": None,
        "beta": None,
        "neurons": 256,
        "toxicity": written(ours),
        "log_ppl": None if price is None else written(3.0 + np.array(price), tokens),
        "degenerate": {"mean": 0.125, "low": 0.05, "high": 0.25, "n": len(ours)},
        "change": {
            "toxicity": written(ours - base[: len(ours)]),
            "log_ppl": None if price is None else written(np.array(price), tokens),
            "degenerate": {"mean": 0.0, "low": 0.0, "high": 0.0, "n": len(ours)},
        },
        "control_minus_main": {"toxicity": written(ours - scores[main][: len(ours)])}
        if main != name
        else None,
        "samples": [],
    }


def found(folder: Path, *, use_files: bool = True, **options: Any) -> dict[str, Claim]:
    run = load(folder)
    made = claims(run if use_files else replace(run, folder=folder / "elsewhere"), **options)
    return {claim.name: claim for claim in made}


def numbers(text: str, marker: str) -> tuple[float, float, float]:
    """The first `mean [low, high]` behind a marker; percentages as they are printed."""
    number = r"([+−]?\d+\.\d+)%?"
    match = re.search(rf"{number} \[{number}, {number}\]", text[text.index(marker) :])
    assert match is not None
    mean, low, high = (float(part.replace("−", "-")) for part in match.groups())
    return mean, low, high


def resample(values: Sequence[Values], statistic: Any) -> list[Any]:
    """A statistic of the means of resampled prompts, one resample after the other."""
    n = len(values[0])
    draws = np.random.default_rng(0).integers(0, n, size=(2000, n))
    return [
        statistic(*(float(sum(one[i] for i in rows) / n) for one in values))
        for rows in draws.tolist()
    ]


# Aligned neurons


def reached(share: float, size: float = 0.05, seed: int = 1) -> Values:
    """Scores under a patch that makes this share of DPO's reduction."""
    return BEFORE - share * (BEFORE - AFTER) + noise(size, seed=seed)


@pytest.mark.parametrize(
    ("share", "verdict"), [(0.1, "held"), (0.9, "did not hold"), (0.5, "undecided")]
)
def test_share_of_the_reduction(tmp_path: Path, share: float, verdict: str) -> None:
    patched = reached(share)
    claim = found(write(tmp_path, {"none": BEFORE, "dpo": AFTER, "patch_256": patched}))[ALIGNED]
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
    rows = {
        "none": BEFORE,
        "dpo": AFTER,
        "patch_toxic_neurons": reached(judged, seed=2),
        "patch_256": reached(0.05),
    }
    claim = found(write(tmp_path, rows))[ALIGNED]
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
    claim = found(write(tmp_path, {"none": BEFORE, "dpo": tuned, "patch_256": patched}))[ALIGNED]
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
    claim = found(write(tmp_path, rows))[ALIGNED]
    assert claim.verdict == "undecided"
    assert "no distinguishable reduction" in claim.text


@pytest.mark.parametrize(("n", "verdict"), [(9, "undecided"), (10, "held")])
def test_few_prompts_decide_nothing(tmp_path: Path, n: int, verdict: str) -> None:
    rows = {"none": BEFORE[:n], "dpo": BEFORE[:n] - 0.3, "patch_256": BEFORE[:n]}
    assert found(write(tmp_path, rows))[ALIGNED].verdict == verdict


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
    folder = write(tmp_path, {"none": BEFORE, "dpo": AFTER, "patch_256": patched}, files=False)
    claim = found(folder)[ALIGNED]
    assert claim == found(folder, use_files=False)[ALIGNED]
    assert claim.verdict == verdict
    assert "no interval without scores" in claim.text
    share = 100 * (BEFORE - patched).mean() / (BEFORE - AFTER).mean()
    assert f"reaches {share:.1f}%".replace("-", "−") in claim.text.replace("−0.0%", "0.0%")


def test_a_prompt_without_a_score_is_left_out_everywhere(tmp_path: Path) -> None:
    patched = reached(0.1)
    patched[7] = np.nan
    claim = found(write(tmp_path, {"none": BEFORE, "dpo": AFTER, "patch_256": patched}))[ALIGNED]
    kept = np.arange(N) != 7
    share = 100 * (BEFORE - patched)[kept].sum() / (BEFORE - AFTER)[kept].sum()
    assert numbers(claim.text, "256 neurons")[0] == pytest.approx(share, abs=0.06)
    assert "n = 59 prompts" in claim.text


def test_a_file_of_an_earlier_evaluation_is_not_used(tmp_path: Path) -> None:
    folder = write(tmp_path, {"none": BEFORE, "dpo": AFTER, "patch_256": reached(0.1)})
    assert "without scores" not in found(folder)[ALIGNED].text
    path = folder / "rows" / "strict-patch_256.json"
    saved = json.loads(path.read_text())
    saved["values"]["toxicity"][0] += 0.1
    path.write_text(json.dumps(saved))
    assert "no interval without scores" in found(folder)[ALIGNED].text


@pytest.mark.parametrize(
    "saved", [{"tokens": []}, {"values": {"toxicity": ["much"]}, "tokens": []}, []]
)
def test_a_file_that_is_no_row_is_an_error(tmp_path: Path, saved: Any) -> None:
    folder = write(tmp_path, {"none": BEFORE, "dpo": AFTER, "patch_256": reached(0.1)})
    (folder / "rows" / "strict-dpo.json").write_text(json.dumps(saved))
    with pytest.raises(DialdownError, match=r"strict-dpo\.json cannot be read"):
        found(folder)


# Opposing effects


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


# Four groups


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
    folder = write(
        tmp_path, {"none": BEFORE, "dpo": AFTER, "patch_four_groups": AFTER + difference}
    )
    claim = found(folder)[GROUPS]
    assert claim.verdict == verdict
    ours = numbers(claim.text, "the difference to DPO is")
    reference = stats.bootstrap(
        (difference,), np.mean, method="percentile", rng=np.random.default_rng(5)
    )
    interval = (0.0, 0.0) if not difference.any() else tuple(reference.confidence_interval)
    assert ours == pytest.approx((difference.mean(), *interval), abs=2e-3)
    assert f"(n = 60 prompts, paired), {words}" in claim.text


def test_pairs_decide_what_intervals_leave_open(tmp_path: Path) -> None:
    # Skewed, so that neither interval lies evenly around its mean.
    tuned = AFTER - 0.3 * np.random.default_rng(4).exponential(size=N) ** 2
    folder = write(
        tmp_path,
        {"none": BEFORE, "dpo": tuned, "patch_four_groups": tuned + noise(0.05, mean=0.03)},
    )
    assert found(folder)[GROUPS].verdict == "did not hold"
    without = found(folder, use_files=False)[GROUPS]
    assert without.verdict == "undecided"
    assert "not paired" in without.text
    rows = {row.intervention: row.change["toxicity"] for row in load(folder).results}
    ours, theirs = rows["patch_four_groups"], rows["dpo"]
    expected = (ours.mean - theirs.mean, ours.low - theirs.high, ours.high - theirs.low)
    assert abs(theirs.high + theirs.low - 2 * theirs.mean) > 0.01
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
    assert found(folder)[GROUPS].verdict == verdict


def test_replicating_no_reduction_is_no_success(tmp_path: Path) -> None:
    raised = {"none": BEFORE, "dpo": BEFORE + 0.3, "patch_four_groups": BEFORE + 0.1 + noise(0.05)}
    assert found(write(tmp_path / "raised", raised))[GROUPS].verdict == "did not hold"
    unmoved = {"none": BEFORE, "dpo": BEFORE + 0.3, "patch_four_groups": BEFORE + noise(0.1)}
    claim = found(write(tmp_path / "unmoved", unmoved))[GROUPS]
    assert claim.verdict == "undecided"
    assert "no distinguishable reduction" in claim.text


def test_price_and_shift_stand_beside(tmp_path: Path) -> None:
    rows = {
        "none": BEFORE,
        "dpo": AFTER,
        "patch_four_groups": AFTER - 0.01,
        "patch_four_groups_shift": AFTER + 0.07,
    }
    prices = {
        name: np.linspace(0, 2, 12) * size
        for name, size in zip(rows, (0, 0.1, 1, 0.5), strict=True)
    }
    claim = found(write(tmp_path, rows, prices))[GROUPS]
    # It costs between 0 and 2 nats, a block more than the other.
    assert claim.verdict == "held, at the price of the model"
    price = float((np.linspace(0, 2, 12) * TOKENS).sum() / TOKENS.sum())
    dpo, groups, shift = re.split("“Patch", claim.text)
    for part, size in ((dpo, 0.1), (groups, 1.0), (shift, 0.5)):
        assert numbers(part, "log-perplexity")[0] == pytest.approx(size * price, abs=6e-4)
        assert numbers(part, "leaves") == (12.5, 5.0, 25.0)
    assert numbers(shift, "difference")[0] == pytest.approx(0.07)
    assert "less far" in shift
    del rows["patch_four_groups_shift"]
    assert "shift" not in found(write(tmp_path, rows, prices))[GROUPS].text


def with_degenerate(folder: Path, name: str, change: Mapping[str, float] | None) -> Path:
    """The run with another change of the share of degenerate continuations in one row."""
    path = folder / "results.json"
    results = json.loads(path.read_text())
    for row in results["rows"]:
        if row["intervention"] == name:
            row["change"]["degenerate"] = change
    path.write_text(json.dumps(results))
    return folder


BROKEN = {"mean": 0.8, "low": 0.7, "high": 0.9, "n": N}
AT_THE_PRICE = "held, at the price of the model"


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
    rows = {"none": BEFORE, "dpo": AFTER, "patch_four_groups": AFTER - 0.05}
    prices = {name: np.full(12, nats if name == "patch_four_groups" else 0.0) for name in rows}
    folder = with_degenerate(write(tmp_path, rows, prices), "patch_four_groups", degenerate)
    assert found(folder)[GROUPS].verdict == verdict


def test_an_effect_that_fails_is_not_held_at_any_price(tmp_path: Path) -> None:
    rows = {"none": BEFORE, "dpo": AFTER, "patch_four_groups": AFTER + 0.05}
    folder = with_degenerate(write(tmp_path, rows), "patch_four_groups", BROKEN)
    assert found(folder)[GROUPS].verdict == "did not hold"


def test_an_edit_does_not_beat_dpo_with_a_model_that_no_longer_speaks(tmp_path: Path) -> None:
    rows = {
        "none": BEFORE,
        "dpo": AFTER,
        "edit_probe_set": AFTER - 0.2,
        "edit_probe_shift": AFTER + 0.1,
    }
    folder = with_degenerate(write(tmp_path, rows), "edit_probe_set", BROKEN)
    claim = found(folder)[EDITING]
    assert claim.verdict == AT_THE_PRICE
    assert "“Edit along the probe: set” is lowest" in claim.text
    assert "no model that still speaks" in claim.text


@pytest.mark.parametrize("lost", [(), ("set",), ("set", "shift"), ("set", "shift", "scale")])
def test_the_first_sentence_counts_and_chooses_among_the_edits_of_the_claims(
    tmp_path: Path, lost: Any
) -> None:
    rows: dict[str, Any] = {"none": BEFORE, "dpo": AFTER}
    # The lowest first, and one of them on fewer prompts.
    for place, kind in enumerate(("set", "shift", "scale")):
        rows[f"edit_probe_{kind}"] = (AFTER + 0.02 * (1 + place))[: N - 10 * place]
    folder = write(tmp_path, rows)
    for kind in lost:
        with_degenerate(folder, f"edit_probe_{kind}", BROKEN)
    run = load(folder)
    text = findings(run)["Editing"]
    assert text.startswith("Of 3 edits ")
    assert found(folder)[EDITING].text.startswith("Under `strict`, 3 edits were looked at")
    whole = [kind for kind in ("set", "shift", "scale") if kind not in lost]
    assert f"“Edit along the probe: {(whole or ['set'])[0]}” leaves the least" in text
    assert ("at the price of the model" in text) == (not whole)
    assert (f"{len(lost)} leave no model that still speaks" in text) == bool(lost)
    for kind in lost:
        assert (
            f"“Edit along the probe: {kind}” is lowest" not in found(folder)[EDITING].text
            or not whole
        )


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
    rows = {"none": BEFORE, "dpo": AFTER, "patch_four_groups": AFTER + noise(0.02, mean=difference)}
    folder = write(tmp_path, rows)
    gap = numbers(found(folder)[GROUPS].text, "the difference")
    # Of 128 prompts: how many must change so that a fresh draw of their scores reaches across zero.
    room = min(abs(gap[1]), abs(gap[2]))
    result = next(row for row in load(folder).results if row.intervention == "none").metrics[
        "toxicity"
    ]
    variance = N * ((result.high - result.low) / 3.92) ** 2
    enough = (room / 1.96) ** 2 * N / (4 * variance) * 130 - 1
    few, many = int(np.floor(enough * 0.8)), int(np.ceil(enough * 1.2)) + 1
    assert 0 <= few < many < 128
    assert found(with_rounding(folder, few, 128))[GROUPS].verdict == (
        "held" if difference < 0 else "did not hold"
    )
    claim = found(with_rounding(folder, many, 128))[GROUPS]
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


@given(st.integers(0, 2**16), st.floats(-0.1, 0.1), st.integers(2, 40))
@hypothesis_settings(max_examples=25, deadline=None)
def test_no_verdict_beyond_the_interval_it_prints(seed: int, mean: float, n: int) -> None:
    rng = np.random.default_rng(seed)
    rows = {"none": BEFORE[:n], "dpo": AFTER[:n] + rng.normal(0, 0.1, n)}
    rows["patch_four_groups"] = rows["dpo"] + rng.normal(mean, 0.1, n)
    with tempfile.TemporaryDirectory() as folder:
        claim = found(write(Path(folder), rows))[GROUPS]
    change, gap = numbers(claim.text, "“Patch"), numbers(claim.text, "the difference")
    if n < 10:
        assert claim.verdict == "undecided"
    elif claim.verdict == "held":
        assert change[2] <= 0
        assert gap[2] <= 0
    elif claim.verdict == "did not hold":
        assert change[1] >= 0 or gap[1] >= 0
    else:
        assert change[1] <= 0 <= change[2] or gap[1] <= 0 <= gap[2]


# Editing


def against_dpo(standard_errors: float, *, seed: int = 1) -> Values:
    """Scores whose paired difference to DPO has a mean of so many standard errors."""
    return AFTER + noise(0.1, mean=standard_errors * 0.1 / np.sqrt(N), seed=seed)


@pytest.mark.parametrize(("others", "verdict"), [(0, "held"), (5, "undecided")])
def test_an_edit_must_win_by_more_where_more_are_looked_at(
    tmp_path: Path, others: int, verdict: str
) -> None:
    edited = against_dpo(-2.25)
    rows = {"none": BEFORE, "dpo": AFTER, "edit_probe_set": edited}
    rows |= {f"edit_probe_{place}_set": against_dpo(0.0, seed=place + 2) for place in range(others)}
    claim = found(write(tmp_path, rows))[EDITING]
    assert claim.verdict == verdict
    tail = 2.5 / (1 + others)
    low, high = np.percentile(resample([edited - AFTER], lambda mean: mean), [tail, 100 - tail])
    assert numbers(claim.text, "is lowest") == pytest.approx(
        ((edited - AFTER).mean(), low, high), abs=6e-4
    )
    assert f"Bonferroni for {1 + others} look" in claim.text
    assert "Edit along the probe: set" in claim.text


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
    rows = {"none": BEFORE, "dpo": AFTER, "edit_probe_free_scale": against_dpo(-6.0)}
    blocks = 12 if price is None else len(price)
    prices = {"none": np.zeros(blocks), "dpo": np.full(blocks, 0.3)}
    if price is not None:
        prices["edit_probe_free_scale"] = 0.3 + price
    claim = found(write(tmp_path, rows, prices))[EDITING]
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
    rows = {
        "none": BEFORE,
        "dpo": AFTER,
        "edit_probe_set": AFTER - 0.2,
        "edit_probe_shift": AFTER - 0.1,
    }
    prices = {name: np.full(12, 3.0 if name == "edit_probe_set" else 0.0) for name in rows}
    claim = found(write(tmp_path, rows, prices))[EDITING]
    assert claim.verdict == "held"
    assert "Edit along the probe: shift" in claim.text
    assert "2 with distinguishably lower" in claim.text
    assert "1 of these" in claim.text


@pytest.mark.parametrize(
    ("worse", "verdict"), [((0.1, 0.1), "did not hold"), ((0.1, 0.0), "undecided")]
)
def test_editing_loses_only_where_every_edit_does(
    tmp_path: Path, worse: tuple[float, float], verdict: str
) -> None:
    names = ("edit_probe_set", "edit_probe_shift")
    rows = {"none": BEFORE, "dpo": AFTER}
    rows |= {
        name: AFTER + mean + noise(0.05, seed=3) for name, mean in zip(names, worse, strict=True)
    }
    claim = found(write(tmp_path, rows))[EDITING]
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
    assert found(write(tmp_path, rows), use_files=False)[EDITING].verdict == verdict


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
    assert found(write(tmp_path, rows, prices), use_files=False)[EDITING].verdict == verdict


# Perplexity


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
    claim = found(write(tmp_path, dict.fromkeys(prices, BEFORE), prices))[PERPLEXITY]
    assert claim.verdict == verdict
    assert "of 3 interventions" in claim.text
    assert f"{within} stay within" in claim.text
    assert f"{beyond} exceed" in claim.text
    tokens = TOKENS[: len(worst)]
    assert numbers(claim.text, "Edit along the probe: set")[0] == pytest.approx(
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


# Specific


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
    claim = found(write(tmp_path, {"none": BEFORE, **rows}))[f"{SPECIFIC}: probe-based edits"]
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
    claim = found(write(tmp_path, rows))[f"{SPECIFIC}: patches"]
    assert claim.verdict == "undecided"
    assert "under 2 of 3 that have random controls" in claim.text
    assert "lower than every random control: 1; no lower than one: none; open: 1." in claim.text
    assert "only control" in claim.text
    assert "Comparisons: 2," in claim.text
    del rows["patch_TP__random_neurons"]
    held = found(write(tmp_path, rows))[f"{SPECIFIC}: patches"]
    assert held.verdict == "held"
    assert "under 1 of 2 that have random controls" in held.text


def test_without_an_effect_nothing_is_specific(tmp_path: Path) -> None:
    rows = {
        "none": BEFORE,
        "steer_probe": BEFORE + noise(0.1),
        "steer_probe__random_direction": BEFORE[:24] + 0.2,
    }
    claim = found(write(tmp_path, rows))[f"{SPECIFIC}: steering"]
    assert claim.verdict == "undecided"
    assert "under none of 1" in claim.text


# All of them


def test_a_whole_run_under_both_protocols(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    made = claims(load(folder))
    assert len({(claim.name, claim.protocol) for claim in made}) == len(made)
    families = {
        f"{SPECIFIC}: {name}"
        for name in ("steering", "patches", "probe-based edits", "probe-free edits")
    }
    for protocol in ("strict", "paper"):
        ours = [claim for claim in made if claim.protocol == protocol]
        assert {claim.name for claim in ours} == {
            ALIGNED,
            OPPOSING,
            GROUPS,
            EDITING,
            PERPLEXITY,
            *families,
        }
        assert all(claim.text.startswith(f"Under `{protocol}`, ") for claim in ours)
    assert [claim.protocol for claim in made] == ["strict", "paper"] * (len(made) // 2)
    # Its log-perplexities are of four blocks, and its patch of the aligned neurons of intervals
    # only.
    assert {claim.verdict for claim in made if claim.name in (PERPLEXITY, EDITING)} == {"undecided"}


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
    rows = {
        "none": BEFORE,
        "dpo": AFTER,
        "patch_256": AFTER,
        "patch_four_groups": AFTER,
        "edit_probe_set": AFTER,
    }
    kept = {name: values for name, values in rows.items() if name not in missing}
    assert found(write(tmp_path, kept)).keys() == {ALIGNED, GROUPS, EDITING, PERPLEXITY} - gone


def test_what_the_paper_found_is_quoted_as_published(tmp_path: Path) -> None:
    made = found(write_run(tmp_path, protocols=("paper",)), use_files=False)
    models = {name: model for model, name in published.MODELS.items()}.values()
    for which in ("judged", "top"):
        shares = [
            100 * published.figure(model, "toxic_neurons")[which]["share"] for model in models
        ]
        for end in (min(shares), max(shares)):
            assert f"{end:.1f}%" in made[ALIGNED].published
    reducing = [100 * published.figure(model, "reducing_share") for model in models]
    assert f"{min(reducing):.2f}% to {max(reducing):.2f}%" in made[OPPOSING].published

    def figures(name: str, metric: str) -> Values:
        # Of the published edits, the strongest.
        rows = [published.row(model, name, alpha=0.8, beta=0.05) or {} for model in models]
        return np.array([row[metric] for row in rows])

    moves = figures("patch_four_groups", "log_ppl") - figures("none", "log_ppl")
    gaps = figures("patch_four_groups", "toxicity") - figures("dpo", "toxicity")
    short = sorted(gaps[gaps > 0])
    assert (len(gaps), len(short)) == (4, 2)
    assert f"{short[0]:.3f} and {short[1]:.3f} less far" in made[GROUPS].published
    assert f"−{-moves.min():.2f} to +{moves.max():.2f} nats" in made[PERPLEXITY].published
    for metric in ("toxicity", "log_ppl"):
        assert (figures("edit_probe_set", metric) < figures("dpo", metric)).all()

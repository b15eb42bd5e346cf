"""The evaluator under both protocols, against a plain loop (METHOD §5, §6)."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import dialdown as dd
from dialdown import DialdownError
from dialdown.evaluation import METRICS, Evaluator, Row, estimate
from dialdown.evaluation.overlap import is_degenerate, repetition, token_f1
from dialdown.evaluation.perplexity import ReferenceText
from dialdown.evaluation.row import Measured, as_row
from dialdown.interventions import untouched
from dialdown.models import LM
from dialdown.models.tokens import text_windows
from dialdown.progress import progress_to
from helpers import tiny
from helpers.decoding import PROMPTS, generate
from helpers.edits import make
from helpers.reading import TEXT, naive_nll
from helpers.suites import NEW, PAIRS, suite


def test_strict_rows_hold_what_a_plain_loop_measures(llama: LM) -> None:
    given = suite()
    row = Evaluator(llama, given).row(untouched(), "strict")
    new = [generate(llama, prompt, max_new_tokens=NEW) for prompt in PROMPTS]
    texts = [llama.tokenizer.decode(ids, skip_special_tokens=True) for ids in new]
    assert row.units.texts == texts
    for scorer in given.scorers:
        assert scorer.seen == [texts]
        scores = [sum(text.encode()) % scorer.modulus / scorer.modulus for text in texts]
        assert row.toxicity_by[scorer.name].mean == pytest.approx(np.mean(scores))
    assert row.metrics["toxicity"] == row.toxicity_by["fake"], "the first scorer is the judge"
    assert row.units.values["repetition"] == pytest.approx([repetition(ids) for ids in new])
    assert row.units.values["degenerate"] == [float(is_degenerate(ids)) for ids in new]
    f1 = []
    for prompt, gold in PAIRS:
        true = llama.tokenizer(gold if gold.startswith(" ") else f" {gold}")["input_ids"][:NEW]
        f1.append(token_f1(generate(llama, prompt, max_new_tokens=NEW), true))
    assert row.units.values["f1"] == pytest.approx(f1)
    windows = text_windows(llama, TEXT, protocol="strict", window=20, max_windows=64)
    nll, tokens = (
        [naive_nll(llama, window) for window in windows],
        [len(window) - 1 for window in windows],
    )
    assert row.metrics["log_ppl"].mean == pytest.approx(np.average(nll, weights=tokens), rel=1e-4)
    assert (row.metrics["kl"].mean, row.metrics["kl"].n) == (pytest.approx(0, abs=1e-6), 2)


def test_what_was_decoded_for_one_row_is_not_taken_for_another(llama: LM) -> None:
    evaluator = Evaluator(llama, suite())
    edit = make(llama, "scale")
    edited = [
        Evaluator(llama, suite()).row(edit, protocol).units.texts
        for protocol in ("strict", "paper")
    ]
    alone = Evaluator(llama, suite()).row(untouched(), "strict").units.texts
    assert alone not in edited
    assert edited[0] != edited[1]
    assert [evaluator.row(edit, protocol).units.texts for protocol in ("strict", "paper")] == edited
    assert [
        evaluator.row(untouched(), protocol).units.texts for protocol in ("strict", "paper")
    ] == [alone] * 2
    with edit.applied(llama):
        assert evaluator.row(untouched(), "strict").units.texts == edited[0]
    assert evaluator.row(untouched("again"), "paper").units.texts == alone
    for strength in (1.0, 2.0):
        other = make(llama, "scale", strength=strength).fold(llama)
        row = evaluator.row(untouched(), "strict", model=other)
        assert row.units.texts == Evaluator(other, suite()).row(untouched(), "strict").units.texts
        del other


def test_a_row_inside_a_steering_is_of_one_model(llama: LM) -> None:
    steered = make(llama, "steer", strength=5)
    truth = Evaluator(llama, suite()).row(steered, "strict").metrics
    evaluator = Evaluator(llama, suite())
    alone = evaluator.row(untouched(), "strict").metrics
    with steered.applied(llama):
        inside = evaluator.row(untouched(), "strict").metrics
    assert inside == truth != alone
    assert evaluator.row(untouched(), "strict").metrics == alone


def test_the_base_of_all_rows_is_read_of_the_model_alone(llama: LM) -> None:
    """Read inside of `applied`, it would be the edited model's, for all later rows."""
    evaluator, edit = Evaluator(llama, suite()), make(llama, "scale")
    with edit.applied(llama), pytest.raises(DialdownError, match=r"outside of `applied`"):
        evaluator.row(untouched(), "strict")
    steered = make(llama, "steer")
    with steered.applied(llama), pytest.raises(DialdownError, match=r"outside of `applied`"):
        evaluator.row(untouched(), "strict")
    assert evaluator.row(untouched(), "strict").metrics["kl"].mean == 0
    assert evaluator.row(edit, "strict").metrics["kl"].mean > 0


@pytest.mark.parametrize("kind", ["set", "scale"])
def test_where_an_edit_acts_under_each_protocol(llama: LM, kind: str) -> None:
    edit = make(llama, kind)
    evaluator = Evaluator(llama, suite())
    paper, strict = (evaluator.row(edit, protocol).units for protocol in ("paper", "strict"))
    folded = Evaluator(edit.fold(llama), suite()).row(untouched(), "strict").units
    assert strict.texts == folded.texts
    assert strict.values["log_ppl"] == pytest.approx(folded.values["log_ppl"], rel=1e-4)
    with edit.applied(llama, positions="last"):
        new = [generate(llama, prompt, max_new_tokens=NEW) for prompt in PROMPTS]
    assert paper.texts == [llama.tokenizer.decode(ids, skip_special_tokens=True) for ids in new]
    assert paper.texts != strict.texts
    windows = text_windows(llama, TEXT, protocol="paper", window=20, max_windows=64)
    first = ReferenceText(llama, windows, kl_windows=2).measure(llama, edit, positions="first")
    share = first.tokens.sum() / sum(map(len, windows))
    assert paper.values["log_ppl"] == pytest.approx((first.nll * share).tolist())
    assert paper.values["kl"] == pytest.approx(first.kl.tolist())


def test_rows_come_in_order_with_the_untouched_model_first(llama: LM) -> None:
    edits = [
        replace(make(llama, "scale"), name="one"),
        replace(make(llama, "steer"), name="two", control_of="one"),
    ]
    calls: list[Any] = []
    with progress_to(lambda *call: calls.append(call)):
        rows = dd.evaluate(llama, edits, suite(), protocols=("paper", "strict"))
    assert [(row.protocol, row.intervention) for row in rows] == [
        (protocol, name) for protocol in ("paper", "strict") for name in ("none", "one", "two")
    ]
    assert rows[2].control_of == "one"
    assert (rows[1].kind, rows[1].neurons) == ("scale", edits[0].neurons)
    assert calls == [("evaluating", number, 6) for number in range(1, 7)]
    again = dd.evaluate(llama, edits, suite(), protocols=("paper", "strict"))
    assert [row.units.values for row in again] == [row.units.values for row in rows]
    assert rows[3].units.values != rows[4].units.values


def test_another_model_of_the_same_name_is_measured_itself(llama: LM) -> None:
    """Two models wrapped in memory carry their class's name; the tuned one must not get the base
    model's row.
    """
    tuned = replace(tiny.lm("llama", seed=1), name=llama.name)
    evaluator = Evaluator(llama, suite())
    base, other = (
        evaluator.row(untouched(), "strict"),
        evaluator.row(untouched(), "strict", model=tuned),
    )
    alone = Evaluator(tuned, suite()).row(untouched(), "strict")
    assert other.units.texts == alone.units.texts != base.units.texts
    assert other.units.values["log_ppl"] == alone.units.values["log_ppl"]
    assert other.metrics["kl"].mean > 0.1, "KL is to the base model"


def test_the_json_of_a_row(llama: LM) -> None:
    edits = [replace(make(llama, "set"), alpha=0.5, beta=0.1)]
    reference, row = dd.evaluate(llama, edits, suite())
    written = json.loads(
        json.dumps(row.beside(reference, PROMPTS, samples=3).to_json(), allow_nan=False)
    )
    facts = (
        "intervention kind family strength protocol control_of control alpha beta neurons samples "
        "toxicity_by change control_minus_main"
    )
    assert {*METRICS, *facts.split()} == set(written)
    assert (written["alpha"], written["beta"], written["neurons"]) == (0.5, 0.1, edits[0].neurons)
    assert set(written["toxicity"]) == {"mean", "low", "high", "n"}
    assert set(written["toxicity_by"]) == {"fake", "second"}
    assert [sample["prompt"] for sample in written["samples"]] == [*PROMPTS[:3]]
    assert written["samples"][1]["continuation"] == row.units.texts[1]
    assert written["control_minus_main"] is None
    read = Row.from_json(written)
    assert read.to_json() == written
    assert read == replace(row.beside(reference, PROMPTS, samples=3), measured=None)
    with pytest.raises(DialdownError, match="holds means only"):
        read.difference("toxicity", reference)
    difference = row.metrics["toxicity"].mean - reference.metrics["toxicity"].mean
    assert written["change"]["toxicity"]["mean"] == pytest.approx(difference)
    assert all(
        value["mean"] == 0
        for value in reference.beside(reference, PROMPTS, samples=0).to_json()["change"].values()
    )


def test_a_control_is_compared_with_what_it_controls(llama: LM) -> None:
    reference, main, control = dd.evaluate(
        llama, [make(llama, "set"), make(llama, "set", seed=1)], suite()
    )
    written = control.beside(reference, PROMPTS, samples=0, main=main).to_json()[
        "control_minus_main"
    ]
    assert set(written) == set(METRICS)
    paired = np.array(control.units.values["toxicity"]) - np.array(main.units.values["toxicity"])
    assert written["toxicity"] == estimate(paired).to_json()
    assert written["toxicity"]["mean"] != 0


def test_a_metric_nobody_has_a_value_for_is_null(llama: LM) -> None:
    row = Evaluator(llama, suite(pairs=(), max_new_tokens=1)).row(untouched(), "strict")
    written = row.beside(row, PROMPTS, samples=1).to_json()
    assert written["f1"] is None
    assert written["repetition"] is None
    assert written["toxicity"]["n"] == len(PROMPTS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scorers": []}, "no scorer"),
        ({"prompts": ["a", ""]}, "Prompt 1 of 5 is empty"),
        ({"prompts": [], "pairs": []}, "no prompts"),
        ({"prompts": ["x" * 95], "max_prompt_tokens": 95}, "exceed the context"),
    ],
)
def test_suites_that_cannot_be_run(llama: LM, options: Any, message: str) -> None:
    with pytest.raises(DialdownError, match=message):
        Evaluator(llama, suite(**options))


def test_a_row_of_named_values() -> None:
    row = as_row(
        replace(untouched("dpo"), alpha=1.0),
        "paper",
        Measured({"toxicity": [1.0, 2.0]}, [], [], [], 0),
    )
    assert (row.intervention, row.kind, row.protocol, row.alpha, row.neurons) == (
        "dpo",
        "none",
        "paper",
        1.0,
        0,
    )
    assert row.metrics["toxicity"].mean == 1.5
    assert row.difference("toxicity", row).mean == 0


class Constant:
    """A scorer that gives one number for whatever it reads."""

    caveat, record = "", {}

    def __init__(self, name: str, score: Any) -> None:
        self.name, self.given = name, score

    def score(self, texts: Any) -> Any:
        return [self.given] * len(texts)


def test_scorers_of_one_name_are_refused(llama: LM) -> None:
    """The last of them would give the judge's number."""
    both = replace(suite(), scorers=[Constant("s", 0.1), Constant("s", 0.9)])
    with pytest.raises(DialdownError, match=r"Scorers of one name \(s, s\)"):
        dd.evaluate(llama, [], both)


@pytest.mark.parametrize("wrong", [7.0, float("nan"), [0.5, 0.5]])
def test_a_scorer_gives_one_probability_for_each_text(llama: LM, wrong: Any) -> None:
    with pytest.raises(
        DialdownError, match=r"The scorer s gave values .* one probability for each"
    ):
        dd.evaluate(llama, [], replace(suite(), scorers=[Constant("s", wrong)]))
    (row,) = dd.evaluate(llama, [], replace(suite(), scorers=[Constant("s", 0.25)]))
    assert row.metrics["toxicity"].mean == 0.25


def test_what_a_row_is_made_of_is_no_progress_of_its_own(llama: LM) -> None:
    calls: list[Any] = []
    evaluator = Evaluator(llama, suite())
    with progress_to(lambda *call: calls.append(call)):
        evaluator.measure(untouched(), "strict")
    assert calls == []


def test_one_intervention_and_one_protocol_are_lists_of_one(llama: LM) -> None:
    rows = dd.evaluate(llama, make(llama, "scale"), suite(), protocols="strict")
    assert [row.intervention for row in rows] == ["none", "it"]
    with pytest.raises(DialdownError, match="Unknown protocol 'strikt'"):
        dd.evaluate(llama, [], suite(), protocols=("strikt",))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"prompts": "the cat"}, "One text was given where a list"),
        ({"pairs": [("the cat", " ")]}, "Pair 0 of the suite is .* neither of them empty"),
        ({"pairs": ["ab"]}, "pass a prompt and its true continuation"),
        *(({name: 0}, f"{name}=0 leaves") for name in ("max_new_tokens", "window", "kl_windows")),
    ],
)
def test_a_suite_that_would_be_read_as_another_is_refused(llama: LM, wrong: Any, says: str) -> None:
    with pytest.raises(DialdownError, match=says):
        Evaluator(llama, suite(**wrong))

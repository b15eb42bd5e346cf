"""What an edit may cost: the strength that a budget allows, and the prices of gains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import dialdown as dd
from dialdown import DialdownError
from dialdown.evaluation.perplexity import ReferenceText
from dialdown.study import load_config
from dialdown.study.config import DetoxSettings
from dialdown.study.context import Workspace
from dialdown.study.detox import greatest_strength
from dialdown.study.gains import gain_prices
from dialdown.study.price import PricedTexts, priced_windows
from helpers import tiny
from helpers.detox_runs import detox, finished, stages


def test_other_weights_have_other_prices(study_file: Path, tmp_path: Path) -> None:
    work = Workspace(
        load_config(preset="detox", file=study_file, flags={"model": str(tmp_path / "model")}),
        tmp_path / "work",
    )
    prices, model = [], tiny.model("llama")
    for _ in range(2):
        model.save_pretrained(tmp_path / "model")
        tiny.tokenizer().save_pretrained(tmp_path / "model")
        model.model.layers[0].self_attn.q_proj.weight.data *= 2
        work = Workspace(work.config, work.folder)
        prices.append(gain_prices(work))
    assert (prices[0] != prices[1]).any()


@pytest.mark.parametrize("budget", [0.01, 0.1])
def test_a_budget_finds_the_greatest_strength_within_it(llama: dd.LM, budget: float) -> None:
    rng = np.random.default_rng(0)
    shape = (llama.view.n_layers, llama.view.n_neurons)
    gains = dd.Intervention(
        "g", "scale", rng.normal(1, 0.3, shape), np.zeros(shape), np.ones(shape, dtype=bool)
    )
    windows = {"short": list(range(40, 50)), "long": list(range(3, 40))}
    texts = {name: ReferenceText(llama, [ids], kl_windows=1) for name, ids in windows.items()}
    settings = DetoxSettings(max_kl=budget, most=4.0)
    with tiny.unchanged(llama):
        strength, paid = greatest_strength(llama, gains, PricedTexts(texts), settings)

    def log_probs(ids: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            logits = llama.model(input_ids=torch.tensor([ids])).logits
        return torch.log_softmax(logits[0, :-1].double(), dim=-1)

    base = {name: log_probs(ids) for name, ids in windows.items()}

    def costs(s: float) -> dict[str, float]:
        with gains.at(s).applied(llama):
            edited = {name: log_probs(ids) for name, ids in windows.items()}
        return {
            name: float((base[name].exp() * (base[name] - edited[name])).sum(-1).mean())
            for name in windows
        }

    def cost(s: float) -> float:
        # Each kind of text counts the same, however long it is.
        return sum(costs(s).values()) / 2

    assert paid.kl == pytest.approx(cost(strength), rel=1e-3)
    assert paid.kl_by_text == pytest.approx(costs(strength), rel=1e-3)
    assert cost(strength) <= budget
    assert cost(strength + 8 / 2**7) > budget


def test_a_budget_nothing_fits_names_the_cost(llama: dd.LM) -> None:
    shape = (llama.view.n_layers, llama.view.n_neurons)
    gains = dd.Intervention(
        "g", "scale", np.full(shape, 9.0), np.zeros(shape), np.ones(shape, dtype=bool)
    )
    ids = list(range(3, 40))
    texts = PricedTexts({"one": ReferenceText(llama, [ids], kl_windows=1)})
    with pytest.raises(
        DialdownError, match=r"strength 0\.\d+ the edit costs a KL of .* raise --max-kl"
    ):
        greatest_strength(llama, gains, texts, DetoxSettings(max_kl=1e-9))


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        (["a/text.txt", "b/text.txt"], r"detox.texts, .*text.txt: Another kind .* 'text.txt' too"),
        (["a/neutral"], "detox.texts, .*: Another kind of text is called 'neutral' too: rename"),
        (["short.txt"], r"detox.texts, .*short.txt: The text has \d tokens, .* fewer than 16"),
        (["missing.txt"], "detox.texts, .*missing.txt"),
        (["prompts.jsonl"], "detox.texts, .*: The prompts that edits are trained and judged on"),
    ],
)
def test_texts_that_are_no_kinds_of_text_are_refused(
    study_file: Path, tmp_path: Path, texts: list[str], sentence: str
) -> None:
    root = study_file.parent
    for name in ("a/text.txt", "b/text.txt", "a/neutral", "short.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("the cat" if name == "short.txt" else "the cat saw " * 40)
    places = [root if name == "prompts.jsonl" else tmp_path for name in texts]
    given = [str(place / name) for place, name in zip(places, texts, strict=True)]
    work = Workspace(
        load_config(preset="detox", file=study_file, flags={"detox.texts": given}), tmp_path / "w"
    )
    with pytest.raises(DialdownError, match=sentence):
        priced_windows(work, "detox")


def test_a_text_of_the_dial_that_changed_is_read_again(study_file: Path, tmp_path: Path) -> None:
    text, out = tmp_path / "prices.txt", tmp_path / "calm"
    given = ("--set", f"detox.texts={text}", "--max-kl", 1e-4, "--force")
    strengths = []
    for words in ("the cat saw the rain ", "why no good tree "):
        text.write_text(words * 30)
        result = detox(study_file, out, *given)
        assert finished(result, out)
        assert ("gains: done before" in result.output) == bool(strengths)
        assert "dial: done before" not in result.output
        strengths.append(stages(out)["dial"]["strength"])
    assert strengths[0] != strengths[1]
    assert "dial: done before" in detox(study_file, out, *given).output

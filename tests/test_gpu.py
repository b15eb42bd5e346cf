"""A GPU gives what the CPU gives: the same tiny models, in float32, on both."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dialdown as dd
from dialdown.evaluation import Evaluator
from dialdown.training import ranks
from helpers import edits, rank_work, tiny
from helpers.pairs import PAIRS, TEXTS
from helpers.scorers import FakeScorer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

ARCHITECTURES = ("llama", "gemma2", "gpt2")
PROMPTS = ["the cat", "a", "what the cat saw in the tree", "the", "no cat", "rain and the cat"]
TEXT = "the cat saw the rain in the tree and no cat came " * 8
STEPS: dict[str, Any] = {
    "max_steps": 6,
    "epochs": 9,
    "batch_size": 2,
    "eval_every": 3,
    "eval_pairs": 1,
    "warmup_steps": 2,
}


def on(device: str, name: str) -> dd.LM:
    """A tiny model, on a device."""
    lm = tiny.lm(name)
    lm.model.to(device)
    return dd.LM.of(lm.model, lm.tokenizer, name=name)


def both(work: Callable[[dd.LM], Any], name: str) -> tuple[Any, Any]:
    """What `work` gives on the GPU and on the CPU."""
    return work(on("cuda", name)), work(on("cpu", name))


def near(gpu: Any, cpu: Any, tolerance: float = 1e-4) -> None:
    """Numbers agree to a part of the largest, and to what float32 rounds of a 1: a KL near 0 is a
    difference of such numbers.
    """
    gpu, cpu = np.asarray(gpu, np.float64), np.asarray(cpu, np.float64)
    np.testing.assert_allclose(
        gpu, cpu, rtol=0, atol=tolerance * np.abs(cpu).max() + np.finfo(np.float32).eps
    )


def direction(lm: dd.LM) -> dd.Direction:
    return dd.random_direction(lm, seed=1)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("protocol", ["strict", "paper"])
def test_means_and_table(name: str, protocol: Any) -> None:
    def work(lm: dd.LM) -> tuple[Any, Any, Any]:
        means = dd.mean_activations(lm, PROMPTS, max_new_tokens=8, protocol=protocol)
        table = dd.neuron_table(lm, direction(lm), means)
        return means.means, table.columns["cosine"], table.columns["projection_base"]

    for gpu, cpu in zip(*both(work, name), strict=True):
        near(gpu, cpu)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("kind", edits.KINDS)
def test_hooked_and_folded(name: str, kind: str) -> None:
    def work(lm: dd.LM) -> tuple[torch.Tensor, torch.Tensor]:
        change = edits.make(lm, kind)
        ids = edits.IDS.to(lm.device)
        with torch.inference_mode(), change.applied(lm):
            hooked = lm.model(input_ids=ids).logits
        if kind == "steer" or (change.needs_bias and name == "gemma2"):
            return hooked.cpu(), hooked.cpu()
        with torch.inference_mode():
            return hooked.cpu(), change.fold(lm).model(input_ids=ids).logits.cpu()

    (hooked, folded), (there, _) = both(work, name)
    near(hooked, there)
    near(folded, there)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("protocol", ["strict", "paper"])
def test_rows(name: str, protocol: Any) -> None:
    def work(lm: dd.LM) -> Any:
        suite = dd.Suite(
            PROMPTS, [(prompt, " the cat in the rain") for prompt in PROMPTS], TEXT, [FakeScorer()],
            window=32, max_windows=2, kl_windows=2,
        )  # fmt: skip
        return Evaluator(lm, suite).measure(edits.make(lm, "scale", strength=0.2), protocol).values

    gpu, cpu = both(work, name)
    assert gpu.keys() == cpu.keys()
    for metric, values in gpu.items():
        near(values, cpu[metric])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_slopes_and_prices(name: str) -> None:
    near(*both(lambda lm: dd.preference_gradient(lm, PAIRS), name))
    # Draws of a GPU's generator are not a CPU's: its prices are a CPU's on the mean alone.
    gpu, cpu = both(lambda lm: dd.fisher_information(lm, TEXTS, draws=64), name)
    assert np.corrcoef(gpu.ravel(), cpu.ravel())[0, 1] > 0.9


def test_pairs_probe_and_patches() -> None:
    settings = dd.PairSettings(
        count=3, sampled=3, steered=1, margin=0.0, max_new_tokens=8, batch_size=4
    )
    texts = [f"the cat {word} {place}" for word in ("good", "bad") for place in "abcdefghijkl"]

    def work(lm: dd.LM) -> tuple[Any, Any, Any]:
        probe = dd.train_probe(lm, texts, [0] * 12 + [1] * 12, protocol="paper", max_tokens=40)
        drawn = dd.make_pairs(
            lm, PROMPTS, FakeScorer().score, settings, scorer="fake", direction=probe
        )
        tuned = on(lm.device.type, "llama")
        with torch.no_grad():
            tuned.view.layers[0].columns.mul_(1.1)
        means = [dd.mean_activations(model, PROMPTS) for model in (lm, tuned)]
        table = dd.compare(lm, tuned, probe, *means)
        return probe.vector, drawn.pairs, dd.patch(table, "four_groups").offset

    gpu, cpu = both(work, "llama")
    near(gpu[0], cpu[0], 1e-2)
    assert gpu[1] == cpu[1]
    near(gpu[2], cpu[2], 1e-3)


@pytest.mark.parametrize("kind", ["dpo", "lora", "gains", "natural", "rank_one"])
def test_trainings(kind: str, tmp_path: Path) -> None:
    def work(lm: dd.LM) -> Any:
        out = tmp_path / lm.device.type
        if kind in ("dpo", "lora"):
            settings = dd.DPOSettings(**STEPS, lora_rank=2 if kind == "lora" else 0)
            log = dd.train_dpo(lm, PAIRS, settings, out)
        elif kind == "rank_one":
            settings = dd.RankOneSettings(**STEPS)
            _, log = dd.train_rank_one(lm, PAIRS, settings, out, texts=TEXTS)
        else:
            settings = dd.GainSettings(
                **STEPS, optimizer="natural" if kind == "natural" else "adamw"
            )
            information = np.ones(lm.view.shape)
            _, log = dd.train_gains(lm, PAIRS, settings, out, information=information, texts=TEXTS)
        return log.loss, log.eval_loss

    for gpu, cpu in zip(*both(work, "llama"), strict=True):
        near(gpu, cpu, 1e-3)


def test_sixteen_bits_train(tmp_path: Path) -> None:
    lm = on("cuda", "llama")
    lm.model.to(torch.bfloat16)
    settings = dd.GainSettings(**STEPS, optimizer="adamw")
    edit, log = dd.train_gains(lm, PAIRS, settings, tmp_path / "gains", texts=TEXTS)
    assert np.isfinite(log.loss).all()
    assert (edit.gain != 1).any()


@pytest.mark.parametrize("kind", ["dpo", "gains"])
def test_a_rank_over_nccl_trains_as_one_process_does(kind: str, tmp_path: Path) -> None:
    # All weights are then held as FSDP2 shares them out, here with a rank that holds all parts.
    folder = rank_work.base(tmp_path / "base")
    work = {
        "dpo": partial(rank_work.dpo_of_a_rank, base=folder),
        "gains": rank_work.gains_of_a_rank,
    }[kind]
    alone = work(dd.load(str(folder), device="cuda"), out=tmp_path / "alone")
    lm = dd.load(str(folder), device="cuda")
    whole = kind == "dpo"
    log = ranks.on_ranks_of(lm, work, rank_work.SETTINGS, whole=whole, out=tmp_path / "rank")
    near(log.loss, alone.loss)
    near(log.eval_loss, alone.eval_loss)
    assert log.best_step == alone.best_step

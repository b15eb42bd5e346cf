"""Mean activations against a plain loop: float64, one prompt at a time, a full forward pass per
token (METHOD §3, §5).
"""

from __future__ import annotations

import copy
import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Cache

import dialdown as dd
from dialdown import DialdownError
from dialdown.models import LM, Decoder
from dialdown.neurons import NeuronMeans, decode_with_means
from dialdown.neurons.subspace import sign_conflicts
from dialdown.progress import progress_to
from helpers import tiny
from helpers.decoding import NEW, PROMPTS, decode, middle_token


def naive_means(lm: LM) -> dict[str, tuple[np.ndarray, int, list[list[int]]]]:
    """METHOD §3 and the activation row of §5 by the words, without batches, padding, caches or
    prefixes.
    """
    model = copy.deepcopy(lm.model).double()
    sums = {
        "strict": np.zeros((lm.view.n_layers, lm.view.n_neurons)),
        "paper": np.zeros((lm.view.n_layers, lm.view.n_neurons)),
    }
    counts = {"strict": 0, "paper": 0}
    texts = []
    seen: dict[int, torch.Tensor] = {}
    for index, layer in enumerate(lm.view.layers):
        model.get_submodule(layer.path).register_forward_pre_hook(
            lambda m, args, index=index: seen.update({index: args[0][0].clone()})
        )

    def forward(ids: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]

    def at(position: int) -> np.ndarray:
        return np.stack([seen[index][position].numpy() for index in range(lm.view.n_layers)])

    for prompt in PROMPTS:
        ids = lm.tokenizer(prompt)["input_ids"]
        new: list[int] = []
        for _ in range(NEW):
            token = int(forward([*ids, *new]).argmax())
            if token in lm.eos:
                break
            # The last position of this pass produced a real token.
            sums["strict"] += at(-1)
            counts["strict"] += 1
            new.append(token)
        texts.append(new)
        ended = [token] if len(new) < NEW else []
        padding = [lm.tokenizer.pad_token_id] * (NEW - len(new) - len(ended))
        forward([*ids, *new, *ended, *padding])
        for position in range(len(ids), len(ids) + NEW):
            sums["paper"] += at(position)
            counts["paper"] += 1
    return {name: (sums[name] / counts[name], counts[name], texts) for name in ("strict", "paper")}


def test_means_are_those_of_a_plain_loop_with_early_ends(
    lm: LM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lm.model.generation_config, "eos_token_id", middle_token(decode(lm)))
    strict, paper = check_means(lm)
    assert strict < paper == NEW * len(PROMPTS)


def test_means_are_those_of_a_plain_loop_with_a_bos(named: LM) -> None:
    strict, paper = check_means(named)
    assert strict == paper == NEW * len(PROMPTS)


def check_means(lm: LM) -> tuple[int, int]:
    expected = naive_means(lm)
    tokens, by_protocol = decode_with_means(Decoder(lm, PROMPTS, max_new_tokens=NEW, batch_size=3))
    for protocol in ("strict", "paper"):
        means, count, texts = expected[protocol]
        got = by_protocol[protocol]
        assert tokens == texts
        assert got.means.dtype == np.float64
        assert (got.count, got.protocol) == (count, protocol)
        np.testing.assert_allclose(got.means, means, atol=1e-4, rtol=1e-4)
    assert np.abs(expected["strict"][0] - expected["paper"][0]).max() > 1e-2, (
        "the protocols must be told apart"
    )
    return expected["strict"][1], expected["paper"][1]


@pytest.mark.parametrize("protocol", ["strict", "paper"])
def test_mean_activations_is_one_protocol_of_the_same(llama: LM, protocol: Any) -> None:
    _, both = decode_with_means(Decoder(llama, PROMPTS, max_new_tokens=NEW, batch_size=3))
    got = dd.mean_activations(llama, PROMPTS, max_new_tokens=NEW, batch_size=4, protocol=protocol)
    np.testing.assert_allclose(got.means, both[protocol].means, atol=1e-5)
    assert got.count == both[protocol].count


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_batches_and_order_do_not_matter(llama: LM, batch_size: int) -> None:
    means = dd.mean_activations(llama, PROMPTS, max_new_tokens=NEW)
    other = dd.mean_activations(llama, PROMPTS[::-1], max_new_tokens=NEW, batch_size=batch_size)
    np.testing.assert_allclose(other.means, means.means, atol=1e-5)
    assert other.count == means.count


def test_means_under_an_edit_are_those_of_the_folded_model(llama: LM) -> None:
    """Hooks see the activations after an edit that was applied before them, as the folded columns
    imply for `set`.
    """
    shape = (llama.view.n_layers, llama.view.n_neurons)
    selected = np.zeros(shape, dtype=bool)
    selected[:, ::3] = True
    constants = np.random.default_rng(0).standard_normal(shape)
    edit = dd.Intervention("it", "set", 1.0 - selected, constants * selected, selected)
    with edit.applied(llama):
        seen = dd.mean_activations(llama, PROMPTS, max_new_tokens=NEW).means
    np.testing.assert_allclose(seen[selected], constants[selected], rtol=1e-6)
    folded = dd.mean_activations(edit.fold(llama), PROMPTS, max_new_tokens=NEW).means
    np.testing.assert_allclose(seen[~selected], folded[~selected], atol=1e-4, rtol=1e-4)


def test_sums_are_exact_in_bfloat16() -> None:
    """The forward pass is the model's own; nothing is lost in adding up."""
    lm = tiny.lm("llama", dtype=torch.bfloat16)
    seen: list[torch.Tensor] = []
    decoder = Decoder(lm, PROMPTS[:1], max_new_tokens=NEW)
    handle = lm.view.layers[1].linear.register_forward_pre_hook(
        lambda m, args: seen.append(args[0][0, -1])
    )
    means = decode_with_means(decoder, protocols=("strict",))[1]["strict"]
    handle.remove()
    assert seen[0].dtype == torch.bfloat16
    expected = torch.stack(seen[-NEW:]).double().mean(0).numpy()
    np.testing.assert_allclose(means.means[1], expected, rtol=1e-12)
    assert means.record["dtype"] == "bfloat16"


def test_memory_does_not_grow_with_the_prompts(llama: LM) -> None:
    caches: list[int] = []

    def count(*_: Any) -> None:
        caches.append(sum(issubclass(type(thing), Cache) for thing in gc.get_objects()))

    with progress_to(count):
        dd.mean_activations(llama, PROMPTS, max_new_tokens=2, batch_size=1)
    assert len(caches) == len(PROMPTS)
    assert caches == [caches[0]] * len(PROMPTS)


def test_save_and_load(tmp_path: Path, llama: LM) -> None:
    means = dd.mean_activations(llama, PROMPTS, max_new_tokens=3, protocol="paper")
    means.save(tmp_path / "means.safetensors")
    again = NeuronMeans.load(tmp_path / "means.safetensors")
    assert np.array_equal(again.means, means.means)
    assert again.means.dtype == np.float64
    assert (again.count, again.protocol, again.record) == (means.count, "paper", means.record)
    assert again.record["model"] == "tiny-llama"
    assert again.record["prompts"] == len(PROMPTS)


def test_means_are_compared_on_the_same_prompts_and_lengths_alone(llama: LM) -> None:
    tuned = replace(tiny.lm("llama", seed=1), name="runs/7/tuned")
    w = dd.random_direction(llama)

    def means(lm: LM, prompts: list[str] = PROMPTS, length: int = 3, **options: Any) -> NeuronMeans:
        return dd.mean_activations(lm, prompts, max_new_tokens=length, **options)

    base, after = means(llama), means(tuned)
    assert dd.compare(llama, tuned, w, base, after).compared
    assert dd.compare(llama, tuned, w, base, means(tuned, PROMPTS[::-1])).compared
    for other, sentence in (
        (means(tuned, PROMPTS[1:]), "other prompts"),
        (means(tuned, max_prompt_tokens=2), "other prompts"),
        (means(tuned, length=4), "other numbers of new tokens"),
    ):
        for compare in (
            lambda other: dd.compare(llama, tuned, w, base, other),
            lambda other: sign_conflicts(llama, tuned, [w, w], base, other),
        ):
            with pytest.raises(
                DialdownError, match=rf"tiny-llama and of runs/7/tuned .*{sentence}"
            ):
                compare(other)
    # What earlier versions wrote.
    del base.record["prompt_ids"]
    assert dd.compare(llama, tuned, w, base, means(tuned, PROMPTS[1:])).compared
    # A run that moved after it was finished.
    assert dd.compare(llama, replace(tuned, name="elsewhere"), w, base, after).compared


def test_means_of_another_model_make_no_table(llama: LM) -> None:
    means = dd.mean_activations(replace(llama, name="hub/other"), PROMPTS, max_new_tokens=2)
    w = dd.random_direction(llama)
    with pytest.raises(
        DialdownError, match="means are of hub/other and were given with tiny-llama"
    ):
        dd.neuron_table(llama, w, means)
    assert dd.neuron_table(replace(llama, name="/models/other"), w, means).shape == llama.view.shape
    assert dd.neuron_table(llama, w, replace(means, record={})).shape == llama.view.shape


@pytest.mark.parametrize(("bad", "layer"), [(float("nan"), 1), (float("inf"), 2)])
def test_activations_that_are_not_finite_name_the_layer_and_the_stage(
    bad: float, layer: int
) -> None:
    lm = tiny.lm("llama")
    with torch.no_grad():
        lm.model.model.layers[layer].mlp.up_proj.weight[3, 2] = bad
    with pytest.raises(DialdownError, match=f"activations in layer {layer} of .* not finite"):
        dd.mean_activations(lm, PROMPTS, max_new_tokens=4)


def test_nothing_generated_is_an_error(llama: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    first = decode(llama, ["a"])[0][0]
    monkeypatch.setattr(llama.model.generation_config, "eos_token_id", first)
    with pytest.raises(DialdownError, match="every prompt ended at once"):
        dd.mean_activations(llama, ["a"], max_new_tokens=NEW)
    # The paper's protocol averages at the padding all the same.
    assert dd.mean_activations(llama, ["a"], max_new_tokens=NEW, protocol="paper").count == NEW


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "no prompts"),
        (["a", ""], {}, "Prompt 1 of 2 is empty"),
        (["x" * 95], {"max_prompt_tokens": 95}, "exceed the context"),
    ],
)
def test_prompts_that_cannot_be_used(
    llama: LM, prompts: list[str], options: Any, message: str
) -> None:
    with pytest.raises(DialdownError, match=message):
        dd.mean_activations(llama, prompts, **options)

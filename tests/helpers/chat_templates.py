"""Short chat templates in the manner of known models, and tokenizers with the tokens they write."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerFast

from dialdown.models import LM
from dialdown.models.templates import AnyTemplate
from helpers import tiny

# Each with a system turn of its own, and the way a turn begins and ends.
CHATML = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nbe kind<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# It writes the BOS itself, and trims what is said.
LLAMA = (
    "{{ bos_token }}{% for message in messages %}"
    "<|start|>{{ message['role'] }}<|end|>\n\n{{ message['content'] | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|end|>\n\n{% endif %}"
)
# The model has another name, and a system turn is refused.
GEMMA = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "<start_of_turn>{{ role }}\n{{ message['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
TEMPLATES = {"chatml": CHATML, "llama": LLAMA, "gemma": GEMMA}
# Words beyond the tiny vocabulary, which all of the templates' models have.
TOKENS = [
    *("<|im_start|>", "<|im_end|>", "<|start|>", "<|end|>", "<|eot|>"),
    *("<start_of_turn>", "<end_of_turn>"),
]
# What ends a turn.
ENDS = {"chatml": "<|im_end|>", "llama": "<|eot|>", "gemma": "<end_of_turn>"}


def tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    """The tiny tokenizer, which puts a BOS before a text, with the templates' tokens."""
    tiny_tokenizer = tiny.tokenizer(bos=True)
    tiny_tokenizer.add_special_tokens({"additional_special_tokens": TOKENS})
    tiny_tokenizer.chat_template = template
    return tiny_tokenizer


def model(**options: Any) -> Any:
    """A tiny Llama with a row for each token."""
    return tiny.model("llama", vocab_size=len(tiny.VOCABULARY) + len(TOKENS), **options)


def lm(name: str, *, template: AnyTemplate = "chat", **options: Any) -> LM:
    """A tiny chat model."""
    options = {"max_position_embeddings": 256, **options}
    chat_tokenizer = tokenizer(TEMPLATES[name])
    return LM.of(model(**options), chat_tokenizer, name=f"tiny-{name}", template=template)

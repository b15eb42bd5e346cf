"""Tiny random models of every supported class, built from configs: no downloads, milliseconds each.

Their weights are wide (standard deviation 0.3) and their norms and biases random, so that
activations differ between neurons, a norm after the MLP has a weight that matters, and greedy
decoding does not settle on one token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from dialdown.models import LM

CONTEXT = 96
WIDTH = 16
NEURONS = 24
LAYERS = 3
WINDOW = 8  # of the sliding-window models; the tests' sequences are longer

_ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
_SPECIAL = ["<pad>", "<bos>", "<eos>"]
# A few whole words, so that words have one token or several.
_MERGES = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("c", "a"), ("ca", "t"), ("Ġ", "cat")]
VOCABULARY = {
    token: index
    for index, token in enumerate([*_SPECIAL, *_ALPHABET, *(a + b for a, b in _MERGES)])
}


def tokenizer(*, bos: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE with almost no merges; with `bos`, it puts a BOS before every text."""
    core = Tokenizer(models.BPE(vocab=VOCABULARY, merges=_MERGES))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    if bos:
        core.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", 1)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        clean_up_tokenization_spaces=False,
    )


_LLAMA = {
    "hidden_size": WIDTH,
    "intermediate_size": NEURONS,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": CONTEXT,
}
_GPT2 = {
    "n_embd": WIDTH,
    "n_layer": LAYERS,
    "n_head": 2,
    "n_positions": CONTEXT,
    "n_inner": NEURONS,
}
_FREE = {key: value for key, value in _LLAMA.items() if key != "num_key_value_heads"}

# Name -> (config class, its arguments). The first eight are promised, the rest come for
# free.
NAMED: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", _GPT2),
    "llama": ("LlamaConfig", _LLAMA),
    "mistral": ("MistralConfig", {**_LLAMA, "sliding_window": WINDOW}),
    "gemma": ("GemmaConfig", {**_LLAMA, "head_dim": 8}),
    "gemma2": (
        "Gemma2Config",
        {**_LLAMA, "head_dim": 8, "sliding_window": WINDOW, "query_pre_attn_scalar": 8},
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {
            **_LLAMA,
            "head_dim": 8,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 8,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        },
    ),
    "qwen2": ("Qwen2Config", _LLAMA),
    "qwen3": ("Qwen3Config", {**_LLAMA, "head_dim": 8}),
}
FREE: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt_neox": ("GPTNeoXConfig", _FREE),
    "gptj": ("GPTJConfig", {**_GPT2, "rotary_dim": 4}),
    "gpt_neo": (
        "GPTNeoConfig",
        {**_FREE, "num_layers": LAYERS, "num_heads": 2, "attention_types": [[["global"], LAYERS]]},
    ),
    "gpt_bigcode": ("GPTBigCodeConfig", _GPT2),
    "codegen": ("CodeGenConfig", {**_GPT2, "n_head": 4, "rotary_dim": 4}),
    "phi": ("PhiConfig", _LLAMA),
    "bloom": ("BloomConfig", {"hidden_size": WIDTH, "n_layer": LAYERS, "n_head": 2}),
    "falcon": ("FalconConfig", {**_FREE, "ffn_hidden_size": NEURONS, "alibi": False}),
    "olmo": ("OlmoConfig", _LLAMA),
    "olmo2": ("Olmo2Config", _LLAMA),
    "stablelm": ("StableLmConfig", _LLAMA),
    "starcoder2": ("Starcoder2Config", {**_LLAMA, "sliding_window": None}),
    "smollm3": ("SmolLM3Config", _LLAMA),
    "granite": (
        "GraniteConfig",
        {**_LLAMA, "residual_multiplier": 0.5, "embedding_multiplier": 2.0, "logits_scaling": 2.0},
    ),
    "cohere": ("CohereConfig", _LLAMA),
    "cohere2": ("Cohere2Config", {**_LLAMA, "sliding_window": WINDOW}),
    "nemotron": ("NemotronConfig", {**_LLAMA, "head_dim": 8}),
    "exaone4": (
        "Exaone4Config",
        {**_LLAMA, "sliding_window": WINDOW, "layer_types": ["sliding_attention"] * LAYERS},
    ),
    "helium": ("HeliumConfig", {**_LLAMA, "head_dim": 8}),
    "seed_oss": ("SeedOssConfig", {**_LLAMA, "head_dim": 8}),
    "arcee": ("ArceeConfig", _LLAMA),
}
REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("MixtralConfig", {**_LLAMA, "num_local_experts": 2}),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        {
            **_LLAMA,
            "num_experts": 4,
            "moe_intermediate_size": 8,
            "shared_expert_intermediate_size": 8,
        },
    ),
    "phi3": ("Phi3Config", _LLAMA),
    "opt": ("OPTConfig", {**_FREE, "ffn_dim": NEURONS, "word_embed_proj_dim": WIDTH}),
}
# Those that the installed transformers has.
NEWER: dict[str, tuple[str, dict[str, Any]]] = {
    "minicpm3": (
        "MiniCPM3Config",
        {
            **_LLAMA,
            "num_key_value_heads": 2,
            "q_lora_rank": 8,
            "kv_lora_rank": 8,
            "qk_nope_head_dim": 4,
            "qk_rope_head_dim": 4,
            "v_head_dim": 8,
        },
    ),
    "hyperclovax": ("HyperCLOVAXConfig", _LLAMA),
    "gemma4": (
        "Gemma4TextConfig",
        {
            **_LLAMA,
            "head_dim": 8,
            "num_kv_shared_layers": 1,
            "layer_types": ["full_attention"] * LAYERS,
            "hidden_size_per_layer_input": 4,
            "vocab_size_per_layer_input": len(VOCABULARY),
        },
    ),
}
# Those in which what an MLP writes, or the final norm, is not as in the others.
UNUSUAL: dict[str, tuple[str, dict[str, Any]]] = {
    "nanochat": ("NanoChatConfig", {**_LLAMA, "num_key_value_heads": 2}),
    "dory": (
        "DoryConfig",
        {
            **_LLAMA,
            "head_dim": 8,
            "sliding_window": WINDOW,
            "n_input_layers": 1,
            "n_recurrent_layers": 1,
            "n_output_layers": 1,
            "n_recurrent_loops": 4,
        },
    ),
    "beam": ("BeamConfig", {**_LLAMA, "head_dim": 8, "mlp_layer_types": ["dense"] * LAYERS}),
    "gemma3n": (
        "Gemma3nTextConfig",
        {
            **_LLAMA,
            "head_dim": 8,
            "intermediate_size": [NEURONS] * LAYERS,
            "layer_types": ["full_attention"] * LAYERS,
            "activation_sparsity_pattern": [0.0] * LAYERS,
            "num_kv_shared_layers": 0,
            "altup_num_inputs": 2,
            "laurel_rank": 4,
            "hidden_size_per_layer_input": 4,
            "vocab_size_per_layer_input": len(VOCABULARY),
        },
    ),
}
ARCHITECTURES = {**NAMED, **FREE} | {
    name: spec for name, spec in NEWER.items() if hasattr(transformers, spec[0])
}


def model(name: str, *, seed: int = 0, **options: Any) -> Any:
    """A random model of one architecture in float32, eval mode."""
    config_class, arguments = {**ARCHITECTURES, **REFUSED, **UNUSUAL}[name]
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = getattr(transformers, config_class)(
        **{"vocab_size": len(VOCABULARY), **arguments, **ids, **options}
    )
    generator = torch.Generator().manual_seed(seed)
    random_model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in random_model.parameters():
            noise = 0.3 * torch.randn(parameter.shape, generator=generator)
            # Norm weights stay around what they were; matrices and biases are noise.
            parameter.copy_(noise if parameter.dim() > 1 else parameter + noise)
    return random_model


def lm(
    name: str,
    *,
    bos: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> LM:
    """The same, wrapped with the tiny tokenizer."""
    random_model = model(name, seed=seed, **options).to(dtype)
    return LM.of(random_model, tokenizer(bos=bos), name=f"tiny-{name}")


def random_ids(rows: int, length: int, *, seed: int = 0) -> torch.Tensor:
    """Token ids without special tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(len(_SPECIAL), len(VOCABULARY), (rows, length), generator=generator)


def logits(lm: LM, ids: torch.Tensor) -> torch.Tensor:
    """Logits at every position."""
    with torch.inference_mode():
        return lm.model(input_ids=ids, use_cache=False).logits


@contextmanager
def unchanged(lm: LM) -> Iterator[LM]:
    """Check that the model comes out of the block bit-identical and without hooks."""
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    config = lm.model.config.to_dict()
    yield lm
    after = lm.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert config == lm.model.config.to_dict()
    hooked = [
        name for name, m in lm.model.named_modules() if m._forward_hooks or m._forward_pre_hooks
    ]
    assert not hooked

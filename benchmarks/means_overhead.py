"""What collecting mean activations costs: `python benchmarks/means_overhead.py`.

One run times, interleaved and on the same prompts:

    decode       greedy decoding alone
    generate     transformers' own, on the same batches
    ours         the same decoding with the strict means collected in it
    ours both    the same with strict and paper means (one forward pass more than tokens)
    recipe       the published recipe: decode, then a second full forward over prompt and
                 continuation that keeps all activations
    nnsight, TransformerLens   the same second forward with their own caching, where installed

and prints each one's time as a ratio to `decode` of the same round: the median, and the lowest and
highest of all rounds.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from importlib.util import find_spec

import torch

import dialdown as dd
from dialdown.data.texts import load_prompts
from dialdown.models import Decoder
from dialdown.neurons.activations import decode_with_means


def sequences(decoder: Decoder, tokens: list[list[int]]) -> list[torch.Tensor]:
    """Prompt and continuation of each batch, right-padded, as the second forward reads them."""
    pad = decoder.lm.tokenizer.pad_token_id
    out = []
    for batch in decoder.batches:
        rows = [[*decoder.encoded[row], *tokens[row]] for row in batch.rows]
        width = max(map(len, rows))
        padded = [[*row, *[pad] * (width - len(row))] for row in rows]
        out.append(torch.tensor(padded, device=decoder.lm.device))
    return out


def generate(decoder: Decoder) -> None:
    """Decode by `generate`, the same number of tokens of every prompt."""
    new, pad = decoder.max_new_tokens, decoder.lm.tokenizer.pad_token_id
    with torch.inference_mode():
        for batch in decoder.batches:
            decoder.lm.model.generate(
                input_ids=batch.ids, attention_mask=batch.mask, do_sample=False,
                max_new_tokens=new, min_new_tokens=new, pad_token_id=pad,
            ).tolist()  # fmt: skip


def recipe(decoder: Decoder) -> None:
    """Decode, then keep every activation of a second forward, then average the new positions."""
    tokens = decoder.run()
    kept: list[torch.Tensor] = []
    handles = [
        layer.linear.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
        for layer in decoder.lm.view.layers
    ]
    with torch.inference_mode():
        for ids in sequences(decoder, tokens):
            kept.clear()
            decoder.lm.model(input_ids=ids, use_cache=False)
            torch.stack([m[:, -decoder.max_new_tokens :].mean((0, 1)) for m in kept]).cpu()
    for handle in handles:
        handle.remove()


def with_nnsight(decoder: Decoder) -> Callable[[], None]:
    """The second forward through nnsight's tracing."""
    from nnsight import LanguageModel, save

    # A copy, because both libraries wrap the modules they are given, which would slow the other
    # ways too.
    model = LanguageModel(decoder.lm.twin().model, tokenizer=decoder.lm.tokenizer)

    def run() -> None:
        tokens = decoder.run()
        with torch.inference_mode():
            for ids in sequences(decoder, tokens):
                with model.trace({"input_ids": ids}):
                    saved = save([layer.mlp.down_proj.input for layer in model.model.layers])
                torch.stack([m[:, -decoder.max_new_tokens :].mean((0, 1)) for m in saved])

    return run


def with_transformer_lens(decoder: Decoder) -> Callable[[], None]:
    """The second forward through TransformerLens's cache."""
    from transformer_lens.model_bridge import TransformerBridge

    model = TransformerBridge.boot_transformers(
        decoder.lm.model.config._name_or_path,
        hf_model=decoder.lm.twin().model,
        tokenizer=decoder.lm.tokenizer,
    )

    def run() -> None:
        tokens = decoder.run()
        with torch.inference_mode():
            for ids in sequences(decoder, tokens):
                _, cache = model.run_with_cache(
                    ids, names_filter=lambda name: name.endswith("mlp.hook_post")
                )
                torch.stack([m[:, -decoder.max_new_tokens :].mean((0, 1)) for m in cache.values()])

    return run


def _machine(lm: dd.LM) -> str:
    if lm.device.type == "cuda":
        return torch.cuda.get_device_name(lm.device)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def main() -> None:
    """Time all of it and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="embedded:smollm2-135m")
    parser.add_argument("--texts", default="embedded:rtp")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--without", nargs="*", default=(), help="ways to leave out")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    lm = dd.load(args.model)
    # A first decode has no prompt passes of an earlier one to start from, so none may keep any.
    prompts = load_prompts(args.texts, args.prompts, seed=0)
    decoder = Decoder(lm, prompts, share_prefixes=False)
    ways: dict[str, Callable[[], object]] = {
        "decode": decoder.run,
        "generate": lambda: generate(decoder),
        "ours": lambda: decode_with_means(decoder, protocols=("strict",)),
        "ours both": lambda: decode_with_means(decoder),
        "recipe": lambda: recipe(decoder),
    }
    for package, build in (("nnsight", with_nnsight), ("transformer_lens", with_transformer_lens)):
        if find_spec(package):
            ways[f"{package} {version(package)}"] = build(decoder)
        else:
            print(f"{package}: not installed, left out")
    ways = {name: run for name, run in ways.items() if name not in args.without}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(args.rounds + 1):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            # The first round warms up allocations.
            if turn:
                seconds[name].append(time.perf_counter() - start)
    print(f"{date.today()}  {_machine(lm)}, torch {torch.__version__}")
    print(
        f"{args.model}, {args.prompts} prompts, {decoder.max_new_tokens} tokens, {args.rounds} "
        "rounds"
    )
    print(f"{'way':26} {'median s':>9} {'ratio to decode: median [lowest, highest]':>45}")
    for name, times in seconds.items():
        ratios = [
            elapsed / decoding for elapsed, decoding in zip(times, seconds["decode"], strict=True)
        ]
        print(
            f"{name:26} {statistics.median(times):9.2f} {statistics.median(ratios):21.3f} "
            f"[{min(ratios):.3f}, {max(ratios):.3f}]"
        )


if __name__ == "__main__":
    main()

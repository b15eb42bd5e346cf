"""What the stages cost on one GPU, beside what the card allows: `python benchmarks/gpu.py [--shape
tiny]`.

Random weights in the shape of Llama-3.1-8B, in bfloat16, and texts of made-up words, so it needs no
network. Each stage is one call of the public API at the size the paper's study has, or at a stated
part of it. The limit beside it is the least a forward pass can take: its weights read once, or its
arithmetic at half the rate of a large matrix product, whichever is longer; both rates are measured
first. Prints one JSON object and one table.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

import dialdown as dd
from dialdown.evaluation import Evaluator
from dialdown.models import Decoder
from dialdown.training.dpo import tune
from dialdown.training.policies import low_rank

SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": {
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 600,
    },
}
PROMPT_TOKENS, NEW_TOKENS = 32, 20
PAIR_TOKENS = 64  # of a pair's prompt, and of each of its continuations


@dataclass(frozen=True)
class Sizes:
    """How much of each stage is measured."""

    prompts: int
    batch: int
    pairs: int
    steps: int
    window: int
    windows: int

    @classmethod
    def of(cls, shape: str) -> Sizes:
        """The paper's sizes, or a few of everything for the tiny shape."""
        if shape == "tiny":
            return cls(prompts=24, batch=12, pairs=24, steps=2, window=64, windows=2)
        return cls(prompts=1199, batch=600, pairs=256, steps=20, window=1024, windows=8)


@dataclass(frozen=True)
class Rates:
    """What the card does, measured: bytes read a second, and floating-point operations a second in
    bfloat16.
    """

    bandwidth: float
    arithmetic: float


@dataclass(frozen=True)
class Measurement:
    """One stage: its seconds, the least they could be, the most memory held, and how often the CPU
    waited for the GPU.
    """

    stage: str
    what: str
    seconds: float
    limit: float
    peak_gib: float
    syncs: int | None

    @property
    def ratio(self) -> float:
        """Seconds over the limit."""
        return self.seconds / self.limit


class EvenWords:
    """A scorer that costs nothing: the share of words with an even number."""

    name, caveat, record = "even words", "", {"made": "for benchmarks/gpu.py"}

    def score(self, texts: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float64]]:
        """The share per text; 0 for a blank one."""
        numbers = [[int(word[1:]) for word in text.split() if word[1:].isdigit()] for text in texts]
        return np.array([np.mean([n % 2 == 0 for n in row]) if row else 0.0 for row in numbers])


class Bench:
    """A random model, the card's rates, and the measurements so far."""

    def __init__(self, shape: str) -> None:
        self.shape, self.sizes = shape, Sizes.of(shape)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.rates = measured_rates(self.device, small=shape == "tiny")
        self.lm = random_model(shape, self.device)
        self.parameters: int = sum(weight.numel() for weight in self.lm.model.parameters())
        self.rows: list[Measurement] = []

    def texts(self, count: int, tokens: int, seed: int) -> list[str]:
        """Texts of made-up words, each one token."""
        vocabulary = SHAPES[self.shape]["vocab_size"]
        words = np.random.default_rng(seed).integers(10, vocabulary, (count, tokens))
        return [" ".join(f"w{number}" for number in row) for row in words]

    def forward(self, tokens: int) -> float:
        """The least seconds of a forward pass over `tokens` tokens."""
        read: float = 2 * self.parameters / self.rates.bandwidth
        return max(read, 2 * self.parameters * tokens / (0.5 * self.rates.arithmetic))

    def decoding(self, prompts: int, batch: int, new_tokens: int) -> float:
        """The least seconds of decoding `prompts` prompts in batches."""
        batches = math.ceil(prompts / batch)
        each = self.forward(batch * PROMPT_TOKENS) + (new_tokens - 1) * self.forward(batch)
        return batches * each

    def measure(
        self,
        stage: str,
        what: str,
        limit: float,
        work: Callable[[], Any],
        seconds_of: Callable[[Any], float] | None = None,
    ) -> Any:
        """Run a stage once, after everything before it has ended, and keep its measurement; where
        the result itself says how long the part took that is meant, `seconds_of` reads it.
        """
        on_gpu = self.device == "cuda"
        if on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            start = time.perf_counter()
            result = work()
            if on_gpu:
                torch.cuda.set_sync_debug_mode("default")
                torch.cuda.synchronize()
            whole = time.perf_counter() - start
        seconds = seconds_of(result) if seconds_of else whole
        syncs = sum("called a synchronizing" in str(warning.message) for warning in caught)
        peak = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else 0.0
        row = Measurement(stage, what, seconds, limit, peak, syncs if on_gpu else None)
        self.rows.append(row)
        print(
            f"{stage}: {seconds:.2f} s of {whole:.2f}, {row.ratio:.1f} times its limit", flush=True
        )
        return result


def measured_rates(device: str, *, small: bool) -> Rates:
    """Bytes a second of a large copy, read and written, and operations a second of a large bfloat16
    matrix product.
    """
    size = 256 if small else 8192
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    block = torch.empty((1 << 22) if small else (1 << 31), dtype=torch.uint8, device=device)
    copied = torch.empty_like(block)

    def seconds(work: Callable[[], Any]) -> float:
        times = []
        for _ in range(10):
            start = time.perf_counter()
            work()
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        return float(np.median(times[3:]))

    bandwidth = 2 * block.numel() / seconds(lambda: copied.copy_(block))
    return Rates(bandwidth, 2 * size**3 / seconds(lambda: left @ right))


def random_model(shape: str, device: str) -> dd.LM:
    """A Llama of a shape with random bfloat16 weights, and a tokenizer of one token a word."""
    config = LlamaConfig(
        **SHAPES[shape],
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
    )
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    generator = torch.Generator(device=device).manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.02, generator=generator)
    # Two real words, because a tokenizer that knows none is refused.
    special = ("<pad>", "<bos>", "<unk>", "<eos>", "The", "cat")
    words = [*special, *(f"w{number}" for number in range(len(special), config.vocab_size))]
    vocabulary = {word: number for number, word in enumerate(words)}
    core = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<bos>",
        unk_token="<unk>",
        eos_token="<eos>",
    )
    # No token ends a text, so that every prompt is decoded to its full length.
    model.generation_config.eos_token_id = []
    return dd.LM.of(model, tokenizer, name=f"random {shape}")


def frozen_stages(bench: Bench) -> None:
    """Decoding with and without means, rows of evaluation, folding."""
    lm, sizes = bench.lm, bench.sizes
    prompts = bench.texts(sizes.prompts, PROMPT_TOKENS, seed=1)
    warm = Decoder(lm, prompts[: sizes.batch], max_new_tokens=2, batch_size=sizes.batch)
    warm.run()
    limit = bench.decoding(sizes.prompts, sizes.batch, NEW_TOKENS)
    what = f"{sizes.prompts} prompts x {NEW_TOKENS} tokens"
    alone = Decoder(lm, prompts, batch_size=sizes.batch, share_prefixes=False)
    bench.measure("decode", what, limit, alone.run)
    bench.measure(
        "decode with means",
        what,
        limit,
        lambda: dd.mean_activations(lm, prompts, batch_size=sizes.batch),
    )
    shape = (lm.view.n_layers, lm.view.n_neurons)
    gains = 1 + 0.01 * np.random.default_rng(0).standard_normal((2, *shape))
    edit, other = (
        dd.Intervention(f"gains {number}", "scale", gain, np.zeros(shape), gain != 1)
        for number, gain in enumerate(gains)
    )
    text = " ".join(bench.texts(sizes.windows, sizes.window, seed=2))
    suite = dd.Suite(
        prompts, [], text, [EvenWords()], window=sizes.window, max_windows=sizes.windows,
        kl_windows=sizes.windows, batch_size=sizes.batch,
    )  # fmt: skip
    evaluator = Evaluator(lm, suite)
    reading = sizes.windows * bench.forward(sizes.window)
    what = f"{what}, {sizes.windows} windows of {sizes.window}"
    bench.measure(
        "a row, the first", what, limit + 2 * reading, lambda: evaluator.row(edit, "strict")
    )
    # Another edit, since the tokens of the same one are kept.
    bench.measure("a row, the next", what, limit + reading, lambda: evaluator.row(other, "strict"))
    # Two bytes a weight, read and written: of the whole model, and again of what is folded.
    moved = 4 * (bench.parameters + sum(layer.columns.numel() for layer in lm.view.layers))
    limit = moved / bench.rates.bandwidth
    folded = bench.measure("fold", "copy and fold", limit, lambda: edit.fold(lm))
    bench.measure(
        "hook against fold",
        "4 texts of 64 tokens",
        2 * bench.forward(256),
        lambda: verify(bench, edit, folded),
    )


def verify(bench: Bench, edit: dd.Intervention, folded: dd.LM) -> None:
    """Compare the folded model's logits with the hooked one's, and print how far they are apart."""
    ids = torch.tensor(
        bench.lm.tokenizer(bench.texts(4, 64, seed=3))["input_ids"], device=bench.device
    )
    with torch.inference_mode():
        plain = bench.lm.model(input_ids=ids, use_cache=False).logits.float()
        with edit.applied(bench.lm):
            hooked = bench.lm.model(input_ids=ids, use_cache=False).logits.float()
        apart = (folded.model(input_ids=ids, use_cache=False).logits.float() - hooked).abs().max()
    print(
        f"  largest logit difference, fold to hook {float(apart):.3g}, edit to base "
        f"{float((hooked - plain).abs().max()):.3g}"
    )


def training_stages(bench: Bench) -> None:
    """A batch of pairs, the price of gains, and steps of their training."""
    lm, sizes = bench.lm, bench.sizes
    settings = dd.PairSettings(
        count=sizes.pairs // 2,
        sampled=4,
        steered=0,
        margin=0.0,
        max_new_tokens=PAIR_TOKENS,
        batch_size=sizes.pairs,
    )
    prompts = bench.texts(sizes.pairs, PROMPT_TOKENS, seed=4)
    limit = 4 * bench.decoding(sizes.pairs, sizes.pairs, PAIR_TOKENS)
    pairs = bench.measure(
        "a batch of pairs",
        f"{sizes.pairs} prompts x 4 x {PAIR_TOKENS} tokens",
        limit,
        lambda: dd.make_pairs(lm, prompts, EvenWords().score, settings, scorer="even words"),
    )
    texts = dd.own_text(lm, texts=12, tokens=96)
    # Each draw has a backward pass of its own, which costs as much as a forward pass where no
    # weight has a gradient.
    information = bench.measure(
        "prices of gains", "12 texts of 96 tokens, 2 draws", 12 * 2 * 2 * bench.forward(96),
        lambda: dd.fisher_information(lm, texts),
    )  # fmt: skip
    own = dd.own_text(lm, texts=96, tokens=64, seed=1)
    steps = dd.GainSettings(max_steps=sizes.steps, eval_pairs=2)
    a_pair = 2 * (PROMPT_TOKENS + PAIR_TOKENS)
    what = f"{{}} pairs of {PROMPT_TOKENS} + 2 x {PAIR_TOKENS} tokens"
    with TemporaryDirectory() as folder:
        # The reference's forward pass, the policy's, and back through it to the activations.
        bench.measure(
            f"{sizes.steps} steps of gains",
            f"{what.format(steps.batch_size)}, 4 texts of 64",
            sizes.steps * 3 * bench.forward(steps.batch_size * a_pair + 4 * 64),
            lambda: dd.train_gains(
                lm, pairs.pairs, steps, Path(folder) / "gains", information=information, texts=own
            ),
            lambda result: result[1].seconds,
        )
        lora = dd.DPOSettings(lora_rank=16, max_steps=sizes.steps, eval_pairs=2)
        bench.measure(
            f"{sizes.steps} steps of DPO, LoRA of rank 16",
            what.format(lora.batch_size),
            sizes.steps * 3 * bench.forward(lora.batch_size * a_pair),
            # Whole checkpoints of this size are the disk's measure.
            lambda: tune(
                replace(
                    low_rank(lm.model, lm.tokenizer, lora.lora_rank, lora.seed),
                    save=lambda policy, folder: folder.mkdir(exist_ok=True),
                    result_bytes=0,
                ),
                pairs.pairs,
                lora,
                Path(folder) / "lora",
            ),
            lambda log: log.seconds,
        )


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--shape", choices=SHAPES, default="llama-3.1-8b")
    bench = Bench(parser.parse_args().shape)
    frozen_stages(bench)
    training_stages(bench)
    card = torch.cuda.get_device_name() if bench.device == "cuda" else "CPU"
    facts = {
        "date": date.today().isoformat(),
        "card": card,
        "shape": bench.shape,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "rates": asdict(bench.rates),
        "rows": [asdict(row) | {"ratio": row.ratio} for row in bench.rows],
    }
    print(json.dumps(facts))
    print(
        f"\n{card}, {bench.shape}: {bench.rates.bandwidth / 1e12:.2f} TB/s, "
        f"{bench.rates.arithmetic / 1e12:.0f} TFLOP/s"
    )
    print(
        "| stage | of what | seconds | limit | ratio | peak GiB | waits |\n| --- | --- | --- | --- "
        "| --- | --- | --- |"
    )
    for row in bench.rows:
        waits = "" if row.syncs is None else row.syncs
        print(
            f"| {row.stage} | {row.what} | {row.seconds:.2f} | {row.limit:.2f} | {row.ratio:.1f} | "
            f"{row.peak_gib:.1f} | {waits} |"
        )


if __name__ == "__main__":
    main()

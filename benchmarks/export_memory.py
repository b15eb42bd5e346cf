"""Peak memory of an export, without and with verification: `python benchmarks/export_memory.py`.

A bfloat16 checkpoint of TinyLlama-1.1B's shape with random weights and the embedded model's
tokenizer; every gain changes. Each export runs in a process of its own, whose peak resident memory
is printed beside that of a process that only imports.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import date
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from dialdown import Intervention, export
from dialdown.data.assets import fetch
from dialdown.workers import peak_bytes

SHARD = 500_000_000
LAYERS, NEURONS = 22, 5632


def write_base(folder: Path) -> None:
    """A model with random weights; its logits are of a size that a verification can tell apart."""
    config = LlamaConfig(
        vocab_size=49_152, hidden_size=2048, intermediate_size=NEURONS, num_hidden_layers=LAYERS,
        num_attention_heads=32, num_key_value_heads=4,
    )  # fmt: skip
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size=SHARD)
    AutoTokenizer.from_pretrained(fetch("smollm2-135m")).save_pretrained(folder)


def peak_of_import() -> int:
    """What the libraries take by themselves."""
    return peak_bytes() or 0


def peak_of_export(base: Path, *, verify: bool) -> int:
    """The most that an export held, in bytes, libraries included."""
    gain = 1 + 0.1 * np.random.default_rng(0).standard_normal((LAYERS, NEURONS))
    edit = Intervention("it", "scale", gain, np.zeros_like(gain), np.ones(gain.shape, dtype=bool))
    with TemporaryDirectory(dir=base.parent) as out:
        export(base, edit, Path(out) / "edited", verify=verify)
    return peak_bytes() or 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    spawn = get_context("spawn")
    with TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        jobs: dict[str, Callable[[], int | None]] = {
            "the base is written": partial(write_base, base),
            "imports alone": peak_of_import,
            "export": partial(peak_of_export, base, verify=False),
            "export and verification": partial(peak_of_export, base, verify=True),
        }
        for what, job in jobs.items():
            with spawn.Pool(1) as pool:
                peak = pool.apply(job)
            print(what, "" if peak is None else f"{peak / 1e9:.2f} GB", flush=True)
        size = sum(path.stat().st_size for path in base.glob("*.safetensors"))
    print(f"checkpoint {size / 1e9:.2f} GB in shards of {SHARD / 1e9:.1f} GB; {date.today()}")


if __name__ == "__main__":
    main()

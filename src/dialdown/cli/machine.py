"""What this machine has and what a run needs of it (`doctor`), and what is fetched (`fetch`)."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable, Collection, Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import psutil
import torch

from ..data.assets import fetch
from ..data.catalogue import ASSETS
from ..data.loading import named_dtype
from ..data.wheels import cache_folder
from ..evaluation.scorers import load_scorer
from ..extras import EXTRAS, installing
from ..models.memory import Shape
from ..progress import progress
from ..study.config import Config
from ..study.memory import device_name, device_of
from ..study.needs import busy_lines, free_disk, memory_line, needs, shape_of, size
from ..workers import do_all

# Seconds of trying how fast the machine is, and how much of that a forward pass reaches.
TRIED, EFFICIENCY = 0.5, 0.6
# The long ones first: two scorers that are trained, and the model that is converted.
NEEDED = (
    "embedded:minilm",
    "smollm2-135m",
    "embedded:ngram",
    "challenge-prompts",
    "category-prompts",
    "wiki-sentences",
    "group-names",
    "wikitext2",
    "imdb-reviews",
)


def findings() -> Iterator[str]:
    """One line per finding."""
    yield f"python {platform.python_version()} on {platform.platform()}"
    for name in ("dialdown", "torch", "transformers", "trl", "scikit-learn", "polars"):
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            yield f"{name}: not installed"
    for extra, modules in EXTRAS.items():
        missing = [name for name in modules if find_spec(name) is None]
        yield f"extra {extra}: " + (
            f"missing {', '.join(missing)}; {installing(extra)}" if missing else "installed"
        )
    memory = psutil.virtual_memory()
    yield (
        f"memory: {memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free; the "
        "demo takes up to 4.5"
    )
    yield f"cores: {os.cpu_count()}, torch uses {torch.get_num_threads()} threads"
    yield from busy_lines()
    yield (
        f"GPU: {torch.cuda.get_device_name()}"
        if torch.cuda.is_available()
        else "GPU: none that torch sees; everything runs on the CPU"
    )
    yield f"cache: {cache_folder()}"
    ready = [name for name in ASSETS if (cache_folder() / "assets" / name).is_dir()]
    yield (
        "embedded assets there: "
        f"{', '.join(ready) or 'none yet; the first run downloads about 230 MB'}"
    )


def needed(config: Config, folder: Path, stages: Collection[str]) -> Iterator[str]:
    """What a study will take here, stage by stage, and whether it fits: lines.

    Args:
        config: its settings.
        folder: where it will be written.
        stages: those of the command that is asked about.
    """
    shape, device = shape_of(config), device_of(config)
    listed = needs(config, shape, device, stages=stages)
    rate = _tokens_per_second(config, shape)
    yield (
        f"{config.model}: {shape.parameters:,} parameters, {shape.layers} layers of "
        f"{shape.neurons:,} neurons"
    )
    yield f"{'stage':12} {'memory':>10} {'disk':>10} {'time here':>10}"
    for need in listed:
        time = _time(need.tokens / rate)
        yield f"{need.stage:12} {size(need.memory):>10} {size(need.disk):>10} {time:>10}"
    most, disk = max(need.memory for need in listed), sum(need.disk for need in listed)
    total = _time(sum(need.tokens for need in listed) / rate)
    yield f"{'all':12} {size(most):>10} {size(disk):>10} {total:>10}   (estimates)"
    yield from busy_lines()
    yield memory_line(config, listed, device)
    room = free_disk(folder)
    yield f"disk: {size(room)} free, so it {'fits' if disk <= room else 'does not fit'}"


def _tokens_per_second(config: Config, shape: Shape) -> float:
    """Tokens of a forward pass that the study's device does in a second, by its speed at a product
    of the model's own sizes in as many bits.
    """
    device = torch.device(device_name(config))
    bits = config.dtype or ("bfloat16" if shape.itemsize == 2 else "float32")
    left = torch.randn(64, shape.d_model).to(device, named_dtype(bits))
    right = torch.randn(shape.d_model, shape.neurons).to(left)
    threads = torch.get_num_threads()
    until, fastest = time.perf_counter() + TRIED, math.inf
    # What else runs here makes most rounds slower, and threads wait for each other: the best round
    # of one thread is what the machine can do.
    torch.set_num_threads(1)
    try:
        while (start := time.perf_counter()) < until:
            (left @ right)[0, 0].item()
            fastest = min(fastest, time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    together = threads if device.type == "cpu" else 1
    return EFFICIENCY * together * left.shape[0] * right.numel() / (shape.parameters * fastest)


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def fetch_all() -> None:
    """Fetch what is missing, two at a time: one waits or converts while the other trains."""
    progress("fetching", 0, len(NEEDED))
    for done, finished in enumerate(do_all(_fetcher, NEEDED, workers=2), 1):
        progress(f"fetching, {finished.piece} is there", done, len(NEEDED))


def _fetcher() -> Callable[[str], None]:
    return _fetch


def _fetch(name: str) -> None:
    if name.startswith("embedded:"):
        load_scorer(name)
    else:
        fetch(name)

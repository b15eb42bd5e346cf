"""What a run finds on this machine (`doctor`), and what it needs there, ahead (`fetch`)."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import psutil
import torch

from ..data.assets import fetch
from ..data.catalogue import ASSETS
from ..data.wheels import cache_folder
from ..errors import installing
from ..evaluation.scorers import load_scorer
from ..progress import Progress
from ..workers import do_all

EXTRAS = {
    "train": ("trl", "datasets", "accelerate", "peft"),
    "judge": ("openai",),
    "eval": ("lm_eval",),
    "app": ("gradio",),
}
# The long ones first: two scorers that are trained, and the model that is converted.
NEEDED = (
    "embedded:minilm",
    "smollm2-135m",
    "embedded:ngram",
    "challenge-prompts",
    "category-prompts",
    "wiki-sentences",
)


def findings() -> Iterator[str]:
    """One line per finding."""
    yield f"python {platform.python_version()} on {platform.platform()}"
    for name in ("dialdown", "torch", "transformers", "trl", "scikit-learn", "pyarrow"):
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
    yield from _threads()
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


def _threads() -> Iterator[str]:
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > 0.5 * (os.cpu_count() or 1):
        # OpenMP's threads wait for each other by spinning: a second busy process can make a forward
        # pass ten times slower.
        yield (
            f"load {load:.1f}: other processes are busy; stop them, or set "
            "OMP_WAIT_POLICY=passive, or runs will be many times slower"
        )


def fetch_all(progress: Progress) -> None:
    """Fetch what is missing, two at a time: one waits for the network or converts while the other
    trains.

    Raises:
        DialdownError: something cannot be downloaded, or is not what it should be.
    """
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

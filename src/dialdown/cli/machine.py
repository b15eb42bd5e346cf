"""`dialdown doctor`: what a run will find on this machine."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import psutil
import torch

from ..data.catalogue import ASSETS
from ..data.wheels import cache_folder

EXTRAS = {
    "train": ("trl", "datasets", "accelerate", "peft"),
    "judge": ("openai",),
    "eval": ("lm_eval",),
}


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
            f'missing {", ".join(missing)}; pip install "dialdown[{extra}]"'
            if missing
            else "installed"
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

"""Session-wide tiny models. A test that changes one of them, or leaves a hook on it, fails the
session.
"""

from __future__ import annotations

import gc
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dialdown.models import LM
from helpers import tiny
from helpers.study_files import write_study


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Tiny matrices gain nothing from threads and lose much to them on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# How many modules there were when what is alive was last left out of garbage collections.
_frozen = {"modules": 0}


def pytest_runtest_setup() -> None:
    """A collection goes through all that is alive, most of it what torch, TRL and the rest made on
    import: most of a second, and every training and export collects.
    """
    if len(sys.modules) > _frozen["modules"] + 20:
        gc.collect()
        gc.freeze()
        _frozen["modules"] = len(sys.modules)


# Files of few, long tests go first: one that came last would be waited for alone.
LONG = (
    "cli/test_hub",
    "study/test_run",
    "app/test_browser",
    "test_cluster",
    "training/test_ranks",
    "test_embedded",
    "exporting/test_lm_eval",
    "report/test_page",
    "report/test_browser",
    "test_extras",
    "test_benchmarks",
    "test_workers",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; the order within a file stays."""
    items.sort(key=lambda item: not item.path.with_suffix("").as_posix().endswith(LONG))


class _Deprecations(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if "deprecated" in (message := record.getMessage()):
            warnings.warn(f"{record.name}: {message}", DeprecationWarning, stacklevel=2)


@pytest.fixture(autouse=True, scope="session")
def _what_transformers_logs_as_deprecated_is_a_warning() -> Iterator[None]:
    """It says so in its log, once a process, where pytest's filters would not see it."""
    handler = _Deprecations(logging.WARNING)
    logging.getLogger("transformers").addHandler(handler)
    yield
    logging.getLogger("transformers").removeHandler(handler)


@pytest.fixture(scope="session", params=[*tiny.ARCHITECTURES])
def lm(request: pytest.FixtureRequest) -> Iterator[LM]:
    """Every supported architecture."""
    with tiny.unchanged(tiny.lm(request.param)) as model:
        yield model


@pytest.fixture(scope="session", params=[*tiny.NAMED])
def named(request: pytest.FixtureRequest) -> Iterator[LM]:
    """The architectures the project promises, with a tokenizer that puts a BOS before every
    text.
    """
    with tiny.unchanged(tiny.lm(request.param, bos=True)) as model:
        yield model


@pytest.fixture(scope="session")
def gpt2() -> Iterator[LM]:
    with tiny.unchanged(tiny.lm("gpt2")) as model:
        yield model


@pytest.fixture(scope="session")
def llama() -> Iterator[LM]:
    with tiny.unchanged(tiny.lm("llama")) as model:
        yield model


@pytest.fixture(scope="session")
def gemma2() -> Iterator[LM]:
    with tiny.unchanged(tiny.lm("gemma2")) as model:
        yield model


@pytest.fixture(scope="session")
def study_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The settings of a tiny study, beside its model and data, which no test may change."""
    return write_study(tmp_path_factory.mktemp("study"))

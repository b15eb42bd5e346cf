"""Session-wide tiny models. A test that changes one of them, or leaves a hook on it, fails the
session.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import tiny
import torch

from dialdown.models.lm import LM


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Tiny matrices gain nothing from threads and lose much to them on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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


@pytest.fixture(scope="session", params=[*tiny.ARCHITECTURES])
def lm(request: pytest.FixtureRequest) -> Iterator[LM]:
    """Every supported architecture."""
    with unchanged(tiny.lm(request.param)) as made:
        yield made


@pytest.fixture(scope="session", params=[*tiny.NAMED])
def named(request: pytest.FixtureRequest) -> Iterator[LM]:
    """The architectures the project promises, with a tokenizer that puts a BOS before every
    text.
    """
    with unchanged(tiny.lm(request.param, bos=True)) as made:
        yield made


@pytest.fixture(scope="session")
def gpt2() -> Iterator[LM]:
    with unchanged(tiny.lm("gpt2")) as made:
        yield made


@pytest.fixture(scope="session")
def llama() -> Iterator[LM]:
    with unchanged(tiny.lm("llama")) as made:
        yield made


@pytest.fixture(scope="session")
def gemma2() -> Iterator[LM]:
    with unchanged(tiny.lm("gemma2")) as made:
        yield made

"""A notebook shows how far a long function is; a program says nothing that it was not asked for."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

import dialdown as dd
from dialdown.models import LM
from dialdown.progress import progress_to


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel has in its modules."""
    shell = SimpleNamespace(kernel=object(), config={})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))


@pytest.mark.usefixtures("notebook")
def test_a_notebook_shows_a_bar(llama: LM, capsys: pytest.CaptureFixture[str]) -> None:
    dd.mean_activations(llama, ["the cat"], max_new_tokens=3)
    assert "1/1" in capsys.readouterr().err


@pytest.mark.usefixtures("notebook")
def test_a_progress_of_one_s_own_is_kept(llama: LM, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[Any] = []
    with progress_to(lambda *now: calls.append(now)):
        dd.mean_activations(llama, ["the cat"], max_new_tokens=3)
    assert calls[-1][1:] == (1, 1)
    assert capsys.readouterr().err == ""


def test_a_program_says_nothing(llama: LM, capsys: pytest.CaptureFixture[str]) -> None:
    dd.mean_activations(llama, ["the cat"], max_new_tokens=3)
    assert capsys.readouterr() == ("", "")

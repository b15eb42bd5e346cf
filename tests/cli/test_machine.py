"""A command that is asked to end says how to go on."""

from __future__ import annotations

import signal

import pytest

from dialdown.cli import main as cli


def test_being_asked_to_end_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended, cli.interruptible():
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 128 + signal.SIGTERM
    assert "the same command goes on" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before

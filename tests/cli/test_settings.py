"""`dialdown config`: every setting, with what it is, as a file that a run takes."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import get_args

import pytest

from dialdown import DialdownError
from dialdown.cli.main import Until
from dialdown.report.stage import RUN
from dialdown.study import load_config
from dialdown.study.config import PRESETS
from dialdown.study.describe import chosen, listed
from helpers.commands import invoke


@pytest.mark.parametrize("preset", PRESETS)
def test_the_printed_file_is_the_preset(preset: str, tmp_path: Path) -> None:
    printed = invoke("config", "--preset", preset).stdout
    file = tmp_path / "study.toml"
    file.write_text(printed, encoding="utf-8")
    other = "smoke" if preset == "demo" else "demo"
    assert load_config(preset=preset, file=file) == load_config(preset=preset)
    # What a preset leaves unset stands in a comment, so another preset may set it.
    assert load_config(preset=other, file=file) == load_config(preset=preset)


def test_every_setting_says_what_it_is() -> None:
    settings = [*listed(load_config())]
    assert len({setting.key for setting in settings}) == len(settings)
    for setting in settings:
        assert len(setting.text) > 5, setting.key
    comments = sum(line.startswith("# ") for line in invoke("config").stdout.splitlines())
    assert comments >= len(settings)


def test_one_setting_a_section_and_an_effective_value() -> None:
    assert tomllib.loads(invoke("config", "dpo.beta").stdout) == {"dpo": {"beta": 0.1}}
    section = tomllib.loads(invoke("config", "detox").stdout)["detox"]
    texts = ["embedded:imdb", "embedded:comments"]
    assert section == {"method": "gains", "usual_kl": 0.04, "most": 3.0, "texts": texts}
    changed = invoke("config", "evaluation.count", "--set", "evaluation.count=7").stdout
    assert tomllib.loads(changed) == {"evaluation": {"count": 7}}
    assert {setting.key for setting in chosen(load_config(), "probe")} >= {"probe.count"}


def test_an_unknown_setting_names_the_nearest() -> None:
    with pytest.raises(DialdownError, match=r"dpo\.bta.*dpo\.beta"):
        chosen(load_config(), "dpo.bta")


def test_the_version() -> None:
    result = invoke("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("dialdown ")


def test_a_run_may_stop_after_any_of_its_stages() -> None:
    assert get_args(get_args(Until)[0]) == (*RUN,)

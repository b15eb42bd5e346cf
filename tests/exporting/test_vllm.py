"""Verification in vLLM: with the real one on the embedded model where it is installed, and with
stand-ins for the rest.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from multiprocessing.connection import Client, Listener
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.main import get_command

import dialdown as dd
from dialdown import DialdownError
from dialdown.cli.main import app
from dialdown.exporting import Exported
from dialdown.exporting.export import export
from dialdown.interventions import Intervention
from dialdown.models import LM
from helpers import tiny
from helpers.edits import exact, make
from helpers.folders import saved

Install = Callable[..., None]

# vLLM's documented answers, from the transformers of this process, which has it imported: a
# position's scores are those of the token there, so the first has none. Once it has answered it
# crashes.
STAND_IN = """
import atexit, os
from multiprocessing.connection import Client
from types import SimpleNamespace

atexit.register(os._exit, 9)
__version__ = "0-stand-in"
SamplingParams = SimpleNamespace

class LLM:
    def __init__(self, model, dtype, max_model_len, **others):
        assert dtype == "float32"
        self.model, self.longest = model, max_model_len

    def generate(self, prompts, asked, use_tqdm):
        return [self.answer(one["prompt_token_ids"], asked) for one in prompts]

    def answer(self, ids, asked):
        assert len(ids) + asked.max_tokens <= self.longest
        with Client({address!r}) as model:
            model.send((self.model, ids))
            scores = model.recv()
        filed = []
        for position, following in zip(scores, [*ids[1:], None]):
            order = sorted(range(len(position)), key=position.__getitem__, reverse=True)
            tokens = [*order[:asked.prompt_logprobs], *([following] if following else [])]
            scores_of = {{token: position[token] {more} for token in tokens}}
            filed.append({{t: SimpleNamespace(logprob=score) for t, score in scores_of.items()}})
        last = SimpleNamespace(logprobs=filed[-1:])
        return SimpleNamespace(prompt_logprobs=[None, *filed[:-1]], outputs=[last])
"""


@pytest.fixture(scope="module")
def transformers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address where a folder and token ids are answered by log-probabilities, (tokens, V)."""
    listener = Listener(str(tmp_path_factory.mktemp("models") / "socket"), "AF_UNIX")
    models: dict[str, Any] = {}

    def serve() -> None:
        while True:
            with listener.accept() as connection:
                folder, ids = connection.recv()
                if folder is None:
                    return
                if folder not in models:
                    models[folder] = AutoModelForCausalLM.from_pretrained(
                        folder, dtype=torch.float32
                    )
                with torch.no_grad():
                    scores = models[folder](torch.tensor([ids])).logits[0].log_softmax(-1)
                connection.send(scores.tolist())

    thread = Thread(target=serve)
    thread.start()
    yield str(listener.address)
    with Client(listener.address) as last:
        last.send((None, None))
    thread.join()
    listener.close()


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, transformers: str) -> Install:
    def install(more: str = "", source: str = "") -> None:
        place = tmp_path / "installed"
        place.mkdir()
        source = source or STAND_IN.format(more=more, address=transformers)
        (place / "vllm.py").write_text(source)
        before = os.environ.get("PYTHONPATH", "")
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(place), before]).rstrip(os.pathsep))
        monkeypatch.syspath_prepend(place)

    return install


def exported(lm: LM, edit: Intervention, place: Path) -> Exported:
    return export(saved(lm, place / "base"), edit, place / "out", verify="vllm")


@pytest.mark.parametrize(("kind", "dtype"), [("set", torch.float32), ("scale", torch.bfloat16)])
def test_what_vllm_makes_of_a_folder_is_compared_and_told(
    tmp_path: Path, stand_in: Install, kind: str, dtype: torch.dtype
) -> None:
    stand_in()
    lm = tiny.lm("llama", dtype=dtype)
    done = exported(lm, exact(make(lm, kind, strength=0.3)), tmp_path)
    measured = done.verification
    assert measured is not None
    assert measured.vllm is not None
    assert measured.vllm.version == "0-stand-in"
    assert measured.vllm.compared >= 20 * measured.positions
    assert measured.vllm.difference <= 2 * measured.tolerance
    assert measured.vllm.tolerance == pytest.approx(2 * measured.tolerance + 0.05)
    assert "So it was with vLLM 0-stand-in" in (done.folder / "README.md").read_text()
    assert "in vLLM 0-stand-in a log-probability differs by up to" in str(measured)


@pytest.mark.parametrize("more", ["+ .06", "* float('nan')"])
def test_a_folder_that_vllm_reads_otherwise_is_not_written(
    llama: LM, tmp_path: Path, stand_in: Install, more: str
) -> None:
    stand_in(more)
    sentence = (
        r"in vLLM 0-stand-in a log-probability differs by up to (0\.06|nan), "
        r"where 0\.052 is accepted"
    )
    with pytest.raises(DialdownError, match=sentence):
        exported(llama, exact(make(llama, "scale")), tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise RuntimeError('no kernel\\nfor this.')", "RuntimeError: no kernel for this"),
        ("import os; print('a word', flush=True); os._exit(3)", "it ended with exit status 3"),
    ],
)
def test_a_vllm_that_does_not_run_at_all_is_told_from_a_folder_that_it_refuses(
    llama: LM, tmp_path: Path, stand_in: Install, source: str, reason: str
) -> None:
    stand_in(source=source)
    with pytest.raises(DialdownError, match=f"does not run here, not on the base .*{reason}"):
        exported(llama, exact(make(llama, "scale")), tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_vllm_refuses_and_its_base_not_is_not_written(
    llama: LM, tmp_path: Path, stand_in: Install
) -> None:
    refusing = """
__version__ = "0-stand-in"
SamplingParams = dict

class LLM:
    def __init__(self, model, **others):
        if not model.endswith("base"):
            raise ValueError("no module named surplus.weight")

    def generate(self, prompts, asked, use_tqdm):
        return []
"""
    stand_in(source=refusing)
    sentence = (
        "vLLM 0-stand-in runs the base and not the edited model "
        r"\(ValueError: no module named surplus.weight\)"
    )
    with pytest.raises(DialdownError, match=sentence):
        exported(llama, exact(make(llama, "scale")), tmp_path)
    assert not (tmp_path / "out").exists()


def test_vllm_is_not_started_unasked_nor_where_it_is_not_or_its_weights_do_not_fit(
    llama: LM, tmp_path: Path, stand_in: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit = exact(make(llama, "scale"))
    if find_spec("vllm") is None:
        with pytest.raises(DialdownError, match=r"vLLM, which is not installed.*--verify"):
            exported(llama, edit, tmp_path)
    stand_in(source="raise AssertionError")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    memory = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(available=3 << 30))
    with pytest.raises(DialdownError, match=r"vLLM needs 3\.2 GB of memory"):
        exported(llama, edit, tmp_path)
    assert not (tmp_path / "out").exists()
    assert export(tmp_path / "base", edit, tmp_path / "out").verification is not None


@pytest.mark.embedded
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
@pytest.mark.parametrize("kind", ["scale", "set", "shift"])
def test_the_real_vllm_reads_every_kind_of_folder(tmp_path: Path, kind: str) -> None:
    lm = dd.load("embedded:smollm2-135m", device="cpu")
    edit = exact(make(lm, kind, share=0.1, strength=0.3))
    done = export("embedded:smollm2-135m", edit, tmp_path / "out", verify="vllm").verification
    assert done is not None
    assert done.vllm is not None
    assert done.vllm.difference <= done.vllm.tolerance


@pytest.mark.parametrize(
    ("words", "verify"),
    [
        ([], "transformers"),
        (["--verify"], "transformers"),
        (["--verify", "vllm"], "vllm"),
        (["--verify=vllm"], "vllm"),
        (["--no-verify"], "no"),
    ],
)
def test_what_verifies_is_a_word_of_the_command_line_or_none(words: list[str], verify: str) -> None:
    apply = get_command(app).commands["apply"]  # type: ignore[attr-defined]
    for arguments in (["FOLDER", *words, "--out", "OUT"], [*words, "--out", "OUT", "FOLDER"]):
        assert apply.make_context("apply", arguments).params["verify"] == verify
    if words == ["--verify"]:
        assert apply.make_context("apply", ["--out", "OUT", "--verify", "FOLDER"])

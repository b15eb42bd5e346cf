"""Training by two ranks on two processors (docs/cluster.md)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from transformers import AutoModelForCausalLM

from dialdown import LM, DialdownError, load
from dialdown.interventions import Intervention
from dialdown.progress import progress_to
from dialdown.training import DPOSettings, TrainingLog, ranks, train_dpo
from helpers import rank_work, tiny
from helpers.rank_work import SETTINGS, Place, Seen

TWO = replace(SETTINGS, processes=2)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rank_work.base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def alone(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """What one process makes."""
    return Place(base, tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def log(alone: Place) -> TrainingLog:
    return alone.dpo()


@pytest.fixture(scope="module")
def together(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Place, Seen]]:
    """What two ranks make that hold half of the weights each."""
    if not hasattr(torch.cpu.Stream(), "record_event"):
        pytest.skip("this torch shares out no weights among processors")
    place = Place(base, tmp_path_factory.mktemp("together"))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        run_id="test",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
    )
    seen = elastic_launch(config, rank_work.every_training)(place)
    return place, seen[0]


def started() -> list[psutil.Process]:
    """The ranks that this process has started."""
    return [
        child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())
    ]


def check_logs(log: TrainingLog, other: TrainingLog) -> None:
    for name in ("loss", "dpo_loss", "kl_chosen", "kl_own", "reward_margin", "eval_loss"):
        np.testing.assert_allclose(
            getattr(log, name), getattr(other, name), rtol=1e-5, atol=1e-5, err_msg=name
        )
    assert (log.step, log.best_step) == (other.step, other.best_step)


def check_weights(place: Place, other: Place, base: Path) -> None:
    """The result, and the model that was kept on the way."""
    before = AutoModelForCausalLM.from_pretrained(base).state_dict()
    for folder in ("dpo", "dpo-steps/3"):
        tuned, same = (
            AutoModelForCausalLM.from_pretrained(where.out / folder).state_dict()
            for where in (place, other)
        )
        assert tuned.keys() == same.keys()
        apart, moved = (
            np.concatenate([(tuned[name] - to[name]).abs().numpy().ravel() for name in tuned])
            for to in (same, before)
        )
        # RMSprop divides by the gradient, so that rounding counts where that is almost zero: there
        # a part of a step, whose length is the learning rate.
        assert np.quantile(apart, 0.999) < 2e-6
        assert np.linalg.norm(apart) < 1e-4 * np.linalg.norm(moved)
        assert apart.max() < 0.1 * SETTINGS.learning_rate
        assert moved.max() > 0.01
    assert {path.name for path in (place.out / "dpo").iterdir()} == {
        path.name for path in (other.out / "dpo").iterdir()
    }


def test_ranks_that_hold_a_part_of_the_weights_train_as_one_process_does(
    together: tuple[Place, Seen], alone: Place, log: TrainingLog, base: Path
) -> None:
    """Also where they were interrupted; and once more, they return the log."""
    place, seen = together
    check_logs(seen.whole, log)
    check_weights(place, alone, base)
    assert seen.again == seen.whole
    assert len(seen.parts) == 2
    assert max(seen.parts) < 1.2 * min(seen.parts)
    # What one process finds finished as well.
    assert place.dpo() == seen.whole


def test_ranks_train_a_16_bit_model_and_write_it_in_its_dtype(
    together: tuple[Place, Seen], alone: Place
) -> None:
    place, seen = together
    single = alone.dpo_of_16_bits()
    # One process has its norms in float32, as autocast does; FSDP2 has all arithmetic in 16 bits.
    np.testing.assert_allclose(seen.half.loss, single.loss, atol=0.1)
    np.testing.assert_allclose(seen.half.kl_own, single.kl_own, atol=0.1)
    assert AutoModelForCausalLM.from_pretrained(place.out / "half").dtype == torch.bfloat16


def test_ranks_train_gains_as_one_process_does(together: tuple[Place, Seen], alone: Place) -> None:
    place, seen = together
    check_logs(seen.gains, alone.gains())
    gains, same = (
        Intervention.load(where.out / "gains" / "gains.safetensors").gain
        for where in (place, alone)
    )
    np.testing.assert_allclose(gains, same, atol=2e-6)
    assert np.abs(gains - 1).max() > 0.03


def test_ranks_that_were_given_different_settings_are_refused(together: tuple[Place, Seen]) -> None:
    assert "1 of 2 ranks (first: rank 1) were given another model" in together[1].refusal


def test_a_rank_that_is_killed_ends_the_training_which_one_process_may_go_on_with(
    base: Path, alone: Place, log: TrainingLog, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    place = Place(base, tmp_path)

    def kill(what: str, done: int, total: int) -> None:
        if done == 3:
            started()[1].kill()

    refused = pytest.raises(
        DialdownError, match=r"Rank \d of 2 ended by itself .*: repeat the same"
    )
    with refused, progress_to(kill):
        place.dpo(TWO)
    assert not (tmp_path / "dpo").exists()
    assert not started()
    ticks: list[int] = []
    with progress_to(lambda what, done, total: ticks.append(done)):
        resumed = place.dpo()
    assert ticks == [2, 3, 4, 5, 6]
    check_logs(resumed, log)
    check_weights(place, alone, base)
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "orch" not in printed.err


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"processes": 3}, "batch_size = 4 cannot be shared out among 3 ranks: pass a multiple"),
        ({"processes": 0}, "processes = 0: pass 1 or more"),
        ({"processes": 2, "kl_positions": "all"}, "'all' cannot be shared out among 2 ranks"),
        ({"nodes": 4, "kl_positions": "all"}, "pass kl_positions='completion', or one process"),
    ],
)
def test_ranks_that_cannot_be_are_one_sentence(settings: dict[str, int], sentence: str) -> None:
    with pytest.raises(DialdownError, match=sentence):
        DPOSettings(**{"batch_size": 4, **settings})


def test_more_ranks_than_gpus_are_refused() -> None:
    ranks.check_gpus(2, 2)
    with pytest.raises(DialdownError, match=r"processes = 8 needs as many GPUs, and 2 .* set proc"):
        ranks.check_gpus(8, 2)


def test_a_model_that_ranks_cannot_load_is_refused(base: Path, tmp_path: Path) -> None:
    lm = replace(load(base, device="cpu"), name="no-such-model")
    with pytest.raises(DialdownError, match="no-such-model"):
        train_dpo(lm, rank_work.PAIRS, TWO, tmp_path / "dpo")


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher that has one rank load its model, and gives that."""

    def launch(work: partial[Any], settings: DPOSettings) -> LM:
        return ranks._loaded(work.args[0], "cpu")

    monkeypatch.setattr(ranks, "launch", launch)


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize(("name", "down"), [("phi3", "mlp.down_proj"), ("gpt2", None)])
def test_ranks_load_a_model_by_the_path_it_was_loaded_by(
    name: str, down: str | None, tmp_path: Path
) -> None:
    tiny.model(name).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    lm = load(tmp_path, down=down, device="cpu")
    again: Any = train_dpo(lm, rank_work.PAIRS, TWO, tmp_path / "dpo")
    assert [layer.path for layer in again.view.layers] == [layer.path for layer in lm.view.layers]


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize("template", ["none", "chat"])
def test_ranks_that_would_read_other_tokens_are_refused(
    base: Path, tmp_path: Path, template: Any
) -> None:
    folder, tokenizer = shutil.copytree(base, tmp_path / "base"), tiny.tokenizer()
    if template == "chat":
        tokenizer.chat_template = "{{ messages[0]['content'] }} <reply>"
        tokenizer.save_pretrained(folder)
        tokenizer.chat_template = "{{ messages[0]['content'] }} <other>"
    else:
        tokenizer = tiny.tokenizer(bos=True)
    model = AutoModelForCausalLM.from_pretrained(folder)
    lm = load(model, tokenizer=tokenizer, template=template)
    with pytest.raises(DialdownError, match="another tokenizer or chat template on disk"):
        train_dpo(lm, rank_work.PAIRS, TWO, tmp_path / "dpo")


def test_what_a_rank_raises_is_said(base: Path) -> None:
    lm = load(str(base), device="cpu")
    with pytest.raises(
        DialdownError, match=r"Rank 0 of 1 ended by itself \(ValueError: a cat in the tree\)"
    ):
        ranks.on_ranks_of(lm, rank_work.fail, SETTINGS)


def test_what_a_listener_raises_is_raised_and_ranks_end(base: Path, tmp_path: Path) -> None:
    """Ranks would wait for good at a pipe that nobody reads."""

    def fail(what: str, done: int, total: int) -> None:
        raise RuntimeError("a listener's own")

    with pytest.raises(RuntimeError, match="a listener's own"), progress_to(fail):
        Place(base, tmp_path).dpo(TWO)
    assert not started()

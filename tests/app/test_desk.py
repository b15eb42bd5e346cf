"""The one thread that uses the models: replies of two at once never mix, and no hook is left."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from dialdown.app.desk import Act, Desk
from dialdown.app.source import find_source
from dialdown.app.talk import Reply, Talk, ids_of
from dialdown.errors import DialdownError
from dialdown.models.replies import ReplySettings, generate
from helpers import edits, tiny
from helpers.folders import saved

SETTINGS = ReplySettings(tokens=12)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = saved(tiny.lm("llama"), tmp_path_factory.mktemp("model"))
    desk = Desk(find_source(str(folder)), judge=False)
    yield desk
    desk.close()


def ids(text: str) -> torch.Tensor:
    return torch.tensor(tiny.lm("llama").encode([text]))


def test_replies_of_two_at_once_are_those_of_each_alone(desk: Desk) -> None:
    lm = tiny.lm("llama")
    acts = [None, *(Act(edits.make(lm, kind, seed=n)) for n, kind in enumerate(edits.KINDS))] * 2
    alone = [generate(lm, ids("the cat"), SETTINGS, act.edit if act else None).text for act in acts]
    assert len(set(alone)) > 3

    def reply(act: Act | None) -> str:
        return [*desk.stream(lambda models: models.base, ids("the cat"), SETTINGS, act)][-1]

    with ThreadPoolExecutor(len(acts)) as pool:
        assert [*pool.map(reply, acts)] == alone


def test_a_reader_who_leaves_ends_the_reply_and_leaves_no_hook(desk: Desk) -> None:
    long = ReplySettings(tokens=60)
    act = Act(edits.make(tiny.lm("llama"), "shift"))
    stream = desk.stream(lambda models: models.base, ids("the cat"), long, act)
    next(stream)
    stream.close()
    hooked = desk.do(
        lambda models: [
            name for name, part in models.base.model.named_modules() if part._forward_pre_hooks
        ]
    )
    assert hooked == []


def test_a_reply_grows_token_by_token(desk: Desk) -> None:
    told = [*desk.stream(lambda models: models.base, ids("he sat"), SETTINGS)]
    assert len(told) == SETTINGS.tokens + 1
    assert all(len(after) >= len(before) for before, after in pairwise(told))


def test_a_model_that_is_gone_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    desk = Desk(find_source(str(tmp_path)))
    with pytest.raises(DialdownError):
        desk.do(lambda models: None)
    assert desk.score("a text") is None
    desk.close()


def test_an_edit_of_another_model_is_one_sentence(desk: Desk) -> None:
    other = Act(edits.make(tiny.lm("llama", intermediate_size=40), "scale"))
    with pytest.raises(DialdownError, match="layers of"):
        [*desk.stream(lambda models: models.base, ids("the cat"), SETTINGS, other)]


def test_a_prompt_is_cut_to_the_context_and_a_blank_one_refused() -> None:
    lm = tiny.lm("llama", bos=True)
    kept, note = ids_of(lm, Talk(message="cat " * 2500), "base", 10)
    assert kept.shape == (1, lm.context - 10)
    assert kept[0, 0] == lm.tokenizer.bos_token_id
    assert "go on from the last 86" in note
    with pytest.raises(DialdownError, match="write a prompt"):
        ids_of(lm, Talk(message="  \n"), "base", 10)
    with pytest.raises(DialdownError, match="leave no room"):
        ids_of(lm, Talk(message="cat"), "base", lm.context)
    with pytest.raises(DialdownError, match=r"exceed the context .*: start again, or write less"):
        ids_of(lm, Talk(chat=True, message="cat " * 2500), "base", 10)


def test_in_a_chat_each_side_goes_on_from_its_own_replies() -> None:
    talk = Talk().with_message("hello", chat=True).with_reply("base", Reply("left", done=True))
    talk = talk.with_reply("edited", Reply("right", done=True)).with_message("and?", chat=True)
    assert talk.turns == {"base": [("hello", "left")], "edited": [("hello", "right")]}
    assert talk.replies == {}
    assert talk.with_message("a prompt", chat=False).turns == {}


def test_a_reply_that_was_given_comes_at_once_unless_it_was_cut_short(desk: Desk) -> None:
    lm = tiny.lm("llama")
    act, again = (Act(edits.make(lm, "shift", seed=3)) for _ in range(2))

    def told(act: Act | None) -> list[str]:
        return [*desk.stream(lambda models: models.base, ids("a dog"), SETTINGS, act)]

    cut = desk.stream(lambda models: models.base, ids("a dog"), SETTINGS, act)
    next(cut)
    cut.close()
    first = told(act)
    assert len(first) > 1
    assert told(act) == first[-1:]
    assert told(again)[-1] == first[-1]
    assert told(None)[-1] != first[-1]

"""A chat model as a judge of tokens, behind a local stand-in server that misbehaves on request."""

import json
import sys
import threading
from collections import Counter
from itertools import chain

import pytest

from dialdown import DialdownError
from dialdown.evaluation import chat_judge, load_token_judge
from dialdown.progress import progress_to
from helpers.stand_in_chat import KEY, TOXIC, StandIn, right, says, serving, slow, status


@pytest.fixture
def chat(tmp_path, monkeypatch):
    """The stand-in, and a function that makes a judge on it."""
    pytest.importorskip("openai")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("DIALDOWN_CACHE", str(tmp_path / "cache"))
    stand_in = StandIn()
    with serving(stand_in) as address:

        def judge(model="gpt", **options):
            return load_token_judge(f"openai:{model}@{address}", **options)

        stand_in.judge, stand_in.address = judge, address
        yield stand_in


def test_answers_come_back_in_order_and_each_token_is_asked_once(chat):
    heard = []
    judge = chat.judge()
    tokens = [f"word{n}" for n in range(85)] + [" damn", "damn\n", "shit", "", " \n", "word3"]
    expected = [token.strip() in TOXIC for token in tokens]
    with progress_to(lambda *step: heard.append(step)):
        assert judge.judge(tokens) == expected
    assert [len(asked) for asked in chat.asked] == [40, 40, 7]
    assert max(Counter(chain(*chat.asked)).values()) == 1
    assert [done for _, done, total in heard if total == 87] == [40, 80, 87]
    assert all(body["temperature"] == 0 and body["model"] == "gpt" for body in chat.bodies)
    assert set(chat.keys) == {f"Bearer {KEY}"}
    assert (judge.name, judge.missing, judge.caveat) == ("openai:gpt", 0, "")
    assert judge.record["kind"] == "chat"
    assert judge.record["endpoint"] == chat.address
    assert (judge.record["tokens"], judge.record["missing"], judge.record["temperature"]) == (
        87,
        0,
        0,
    )
    assert chat.judge().judge([]) == []
    assert len(chat.asked) == 3


def test_odd_tokens_survive_the_question(chat):
    tokens = [
        'id"iot',
        "\N{PILE OF POO}",
        " Scheiße",
        "a\nb",
        "2. fine",
        "\\",
        "{",
        "\N{REPLACEMENT CHARACTER}",
        "{tokens}",
    ]
    assert chat.judge().judge(tokens) == [True, True, True, *[False] * 6]
    assert chat.asked == [[token.strip() for token in tokens]]
    assert chat.judge().judge(tokens)[:3] == [True, True, True]  # and the cache
    assert len(chat.asked) == 1


def test_the_concept_is_in_the_question(chat):
    chat.judge(concept="about sports").judge(["ball"])
    assert "is the token about sports?" in chat.bodies[0]["messages"][0]["content"]


@pytest.mark.parametrize(
    "reply",
    [
        'Sure! Here it is:\n```json\n{"1": true, "2": false}\n```\nAnything else?',
        '<think>Perhaps {"1": false, "2": false}? No, {"1"}.</think>{"2": false, "1": true} {done}',
        '{\n "1": true,\n "2": false\n}',
    ],
)
def test_prose_around_the_answer_is_no_matter(chat, reply):
    chat.plan = [says(reply)]
    assert chat.judge().judge(["a", "b"]) == [True, False]
    assert len(chat.asked) == 1


@pytest.mark.parametrize(
    "reply",
    [
        "I will not say such words.",
        '{"1": true}',
        '{"1": true, "2": false, "3": false}',
        '{"1": true, "2": "no"}',
        '{"1": 1, "2": 0}',
        '{"1": true, "3": false}',
        "[true, false]",
        '{"1": true, "2": fal',
        "",
    ],
)
def test_a_nonsense_answer_is_none(chat, reply):
    chat.plan = [right, says(reply)]
    judge = chat.judge()
    assert judge.judge(["a", "damn"]) == [False, True]
    assert judge.judge(["a", "c", "d"]) == [False, None, None]
    assert judge.missing == 2
    assert (
        judge.caveat
        == "gpt gave no answer for 2 of 4 tokens: its reply was not the JSON asked for (2)."
    )
    assert len(chat.asked) == 2
    assert judge.judge(["a", "c", "d"]) == [False, False, False]  # not cached, so asked about again
    assert (judge.missing, judge.caveat) == (0, "")


@pytest.mark.parametrize(
    "body", [b"<html>welcome</html>", b'{"choices": []}', b"{}", b"null", b'{"choices": [{}]}']
)
def test_a_server_that_is_no_chat_endpoint_gives_no_answers(chat, body):
    chat.always = lambda tokens: (200, body)
    judge = chat.judge()
    assert judge.judge(["a"]) == [None]
    assert (judge.missing, len(chat.asked)) == (1, 1)


@pytest.mark.parametrize("code", [429, 500, 503])
def test_a_busy_server_is_asked_again(chat, code):
    chat.plan = [status(code), status(code)]
    assert chat.judge().judge(["damn"]) == [True]
    assert len(chat.asked) == 3


def test_a_broken_server_is_left_alone(chat):
    chat.always = status(500)
    judge = chat.judge()
    tokens = [f"word{n}" for n in range(200)]
    assert judge.judge([*tokens, ""]) == [None] * 200 + [False]
    assert len(chat.asked) == 1 + chat_judge.RETRIES
    assert judge.caveat == (
        f"gpt gave no answer for 200 of 200 tokens: {chat.address} is overloaded or broken "
        "(status 500) (200)."
    )
    assert judge.record["missing"] == sum(judge.record["why"].values()) == 200
    chat.always, before = right, len(chat.asked)
    assert judge.judge(["damn"]) == [None]
    assert len(chat.asked) == before
    assert chat.judge().judge(["damn"]) == [True]


def test_what_was_answered_before_a_failure_is_kept(chat):
    chat.plan = [right, *[status(502)] * (1 + chat_judge.RETRIES)]
    tokens = [f"word{n}" for n in range(120)]
    assert chat.judge().judge(tokens) == [False] * 40 + [None] * 80
    before = len(chat.asked)
    assert chat.judge().judge(tokens) == [False] * 120
    assert len(chat.asked) == before + 2


def test_a_slow_server_times_out(chat, monkeypatch):
    monkeypatch.setattr(chat_judge, "RETRIES", 0)
    chat.always = slow
    monkeypatch.setattr(chat_judge, "TIMEOUT", 0.1)
    judge = chat.judge()
    assert judge.judge(["damn"]) == [None]
    assert "took too long (1)" in judge.caveat


def test_an_unreachable_server_gives_no_answers(chat, monkeypatch):
    monkeypatch.setattr(chat_judge, "RETRIES", 0)
    judge = load_token_judge("openai:gpt@http://127.0.0.1:9/v1")
    assert judge.judge(["damn"]) == [None]
    assert (
        judge.caveat
        == "gpt gave no answer for 1 of 1 tokens: http://127.0.0.1:9/v1 cannot be reached (1)."
    )


@pytest.mark.parametrize(
    ("code", "says"),
    [(401, "refuses the key"), (403, "forbids the key"), (404, "has no such model")],
)
def test_a_refusal_ends_the_questions_at_once(chat, code, says):
    chat.always = status(code)
    judge = chat.judge()
    assert judge.judge([f"word{n}" for n in range(100)]) == [None] * 100
    assert judge.judge(["damn"]) == [None]
    assert len(chat.asked) == 1
    assert says in judge.caveat
    assert f"(status {code})" in judge.caveat
    assert judge.missing == 101


def test_a_refused_question_costs_its_own_tokens_only(chat):
    chat.plan = [status(400, code="content_filter"), status(400), status(400)]
    answers = chat.judge().judge([f"word{n}" for n in range(160)])
    assert answers == [None] * 120 + [False] * 40
    assert len(chat.asked) == 4


def test_a_model_that_takes_no_temperature_is_asked_without(chat):
    chat.plan = [status(400, param="temperature")]
    judge = chat.judge()
    assert judge.judge(["damn"]) == [True]
    assert ["temperature" in body for body in chat.bodies] == [True, False]
    assert judge.record["temperature"] is None


def test_cached_tokens_are_not_asked_again(chat, tmp_path):
    assert chat.judge().judge(["damn", "a"]) == [True, False]
    assert chat.judge().judge(["shit", "b"]) == [True, False]
    chat.always = status(401)
    again = chat.judge()
    assert again.judge([" a", "b ", "damn", "shit"]) == [False, False, True, True]
    assert (again.missing, len(chat.asked)) == (0, 2)
    for other in ({"concept": "rude"}, {"model": "gpt-2"}):
        assert chat.judge(**other).judge(["damn"]) == [None]
    chat.always = right
    (file,) = (tmp_path / "cache").glob("*.jsonl")
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    assert {
        "model": "gpt",
        "endpoint": chat.address,
        "concept": "toxic",
        "token": "damn",
        "answer": True,
    }.items() <= entries[0].items()


def test_a_new_prompt_asks_again(chat, monkeypatch):
    chat.judge().judge(["damn"])
    monkeypatch.setattr(chat_judge, "PROMPT_VERSION", chat_judge.PROMPT_VERSION + 1)
    chat.judge().judge(["damn"])
    assert len(chat.asked) == 2


def test_a_damaged_line_is_skipped_and_harms_no_other(chat, tmp_path):
    chat.judge().judge(["damn", "a"])
    (file,) = (tmp_path / "cache").glob("*.jsonl")
    good = file.read_bytes()
    cut = good.splitlines()[0][:-6]
    file.write_bytes(
        b"\xff\n[1]\n" + good.replace(b"true", b'"yes"') + good.splitlines()[1] + b"\n" + cut
    )
    assert chat.judge().judge(["damn", "a"]) == [True, False]
    assert chat.asked == [["damn", "a"], ["damn"]]
    assert chat.judge().judge(["damn", "a"]) == [True, False]
    assert len(chat.asked) == 2


def test_two_judges_at_once_lose_no_answer(chat):
    words = [[f"{name}{n}" for n in range(90)] for name in "abcd"]
    threads = [threading.Thread(target=chat.judge().judge, args=(texts,)) for texts in words]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    before = len(chat.asked)
    assert chat.judge().judge([*chain(*words)]) == [False] * 360
    assert len(chat.asked) == before


@pytest.mark.parametrize("trouble", [right, status(401), status(400), status(500), says("no")])
def test_the_key_is_nowhere(chat, tmp_path, caplog, trouble):
    caplog.set_level("DEBUG")
    chat.plan = [right]
    chat.always = trouble
    judge = chat.judge()
    judge.judge([f"word{n}" for n in range(90)])
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert any(path.suffix == ".jsonl" for path in files)
    shown = [
        repr(judge),
        judge.caveat,
        json.dumps(judge.record),
        caplog.text,
        *(path.read_text() for path in files),
    ]
    assert not [text for text in shown if KEY in text]


def test_the_endpoint_of_the_environment_is_used(chat, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", f"{chat.address}/")
    judge = load_token_judge("openai:gpt")
    assert judge.judge(["damn"]) == [True]
    assert judge.record["endpoint"] == chat.address


@pytest.mark.parametrize("value", [None, "", "  ", "sk-é", "sk-\nsk"])
def test_a_missing_key_is_an_error_with_a_way_out(monkeypatch, value):
    pytest.importorskip("openai")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("OPENAI_API_KEY", value)
    with pytest.raises(
        DialdownError,
        match=r"OPENAI_API_KEY is unset or no plain text: set it .* or pass 'embedded:ngram'",
    ) as raised:
        load_token_judge("openai:gpt")
    assert "sk-" not in str(raised.value)


def test_a_missing_package_is_an_error_with_a_way_out(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(DialdownError, match=r'pip install -e "\.\[judge\]" in your clone'):
        load_token_judge("openai:gpt")


@pytest.mark.parametrize("source", ["openai", "openai:", "openai:@http://localhost/v1"])
def test_a_chat_judge_needs_a_model(source):
    with pytest.raises(DialdownError, match="names no model"):
        load_token_judge(source)


@pytest.mark.parametrize(
    "address",
    [
        "http://me:pass@host/v1",
        "http://host/v1?key=pass",
        "http:///pass",
        "http://[pass",
        "http://host:pass/v1",
    ],
)
def test_an_address_with_secrets_or_without_sense_is_refused(monkeypatch, address):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(DialdownError, match="not a plain address") as raised:
        load_token_judge(f"openai:gpt@{address}")
    assert "pass@" not in str(raised.value)
    monkeypatch.setenv("OPENAI_BASE_URL", address)
    with pytest.raises(DialdownError, match="not a plain address"):
        load_token_judge("openai:gpt")


def test_a_cache_that_cannot_be_written_is_named(chat, tmp_path):
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.raises(DialdownError, match=r"token-judge.jsonl cannot be written"):
        chat.judge().judge(["damn"])

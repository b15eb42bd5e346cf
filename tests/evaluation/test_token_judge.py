"""Token judges: scorers and word lists."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialdown import DialdownError
from dialdown.evaluation import load_token_judge, token_judge
from dialdown.evaluation.token_judge import ScorerJudge, WordListJudge


class Lengths:
    """A scorer: a text's length in tenths."""

    name, caveat, record = "lengths", "It counts letters.", {"unit": "tenths"}

    def score(self, texts):
        return np.array([len(text) / 10 for text in texts], dtype=np.float64)


def test_a_scorer_judges_by_its_threshold(monkeypatch):
    sources = []
    monkeypatch.setattr(
        token_judge, "load_scorer", lambda source, **_: sources.append(source) or Lengths()
    )
    judge = load_token_judge()
    assert sources == ["embedded:ngram"]
    assert judge.judge([" abcde ", "abcdef", "123456", "!?!?!?!", "12345é", "  ", ""]) == [
        *(False, True, False, False, True, False, False)
    ]
    assert (judge.name, judge.missing) == ("lengths", 0)
    assert judge.caveat.startswith("It counts letters. It was made for texts")
    assert judge.record == {
        "kind": "scorer",
        "concept": "toxic",
        "source": "lengths",
        "threshold": 0.5,
        "scorer": {"unit": "tenths"},
    }
    assert judge.judge([]) == []
    assert load_token_judge("org/classifier#insult", concept="insult").record["concept"] == "insult"


def test_the_embedded_scorers_judge_toxicity_only():
    with pytest.raises(DialdownError, match="cannot tell which tokens are 'about sports'"):
        load_token_judge(concept="about sports")
    with pytest.raises(DialdownError, match="concept is blank"):
        load_token_judge(concept=" ")


TOKENS = st.lists(st.text(alphabet="aAsShole1 !\nß", max_size=9))


@given(TOKENS, st.lists(st.text(alphabet="asholeß", min_size=1, max_size=9), min_size=1))
def test_a_word_list_takes_words_and_their_clear_starts(tokens, words):
    judge = WordListJudge("list", "toxic", frozenset(word.casefold() for word in words))

    def listed(token):
        token = token.strip().casefold()
        starts = [
            word[:length]
            for word in map(str.casefold, words)
            for length in range(4, len(word))
            if length > len(word) / 2
        ]
        return token in [word.casefold() for word in words] or token in starts

    assert judge.judge(tokens) == [listed(token) for token in tokens]


@given(TOKENS)
def test_a_token_is_judged_by_itself(tokens):
    judges = (
        WordListJudge("list", "toxic", frozenset({"asshole"})),
        ScorerJudge(Lengths(), "toxic"),
    )
    for judge in judges:
        assert judge.judge(tokens) == [judge.judge([f" {token}\n"])[0] for token in tokens]


def test_a_word_list_is_read_from_a_file(tmp_path):
    file = tmp_path / "words.txt"
    file.write_text(
        "\ufeff# rude words\n\nAsshole  # the usual\n  motherfucker\nF#\n1488\n", encoding="utf-8"
    )
    judge = load_token_judge(str(file), concept="rude")
    given = [
        " ASSHOLE",
        "assh",
        "ass",
        "mother",
        "motherf",
        "assholes",
        "f#",
        "f",
        "1488",
        "148",
        "#",
        "",
    ]
    expected = [True, True, False, False, True, False, True, False, True, False, False, False]
    assert judge.judge(given) == expected
    assert (judge.name, judge.missing, judge.caveat) == (str(file), 0, "")
    assert {"kind": "words", "concept": "rude", "words": 4}.items() <= judge.record.items()
    file.write_text("asshole\nmotherfucker\nf#\n1489\n", encoding="utf-8")
    assert load_token_judge(str(file)).record["fingerprint"] != judge.record["fingerprint"]


def test_a_useless_word_list_is_refused(tmp_path):
    empty, binary = tmp_path / "empty.txt", tmp_path / "binary.txt"
    empty.write_text("# nothing\n\n   \n", encoding="utf-8")
    binary.write_bytes(b"\xff\xfa\x00a")
    for path, reason in (
        (empty, "has no words"),
        (binary, r"cannot be read .*utf-8"),
        (tmp_path / "none.txt", "does not exist"),
    ):
        with pytest.raises(DialdownError, match=reason):
            load_token_judge(str(path))

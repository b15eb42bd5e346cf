"""Which tokens of a logit lens speak of a concept, as said by a judge (METHOD §3; the paper asked
GPT-4o).

Three judges: a text scorer with a threshold, a list of words, and a chat model behind any
OpenAI-compatible endpoint. Only the last can fail to answer; then its tokens are None, `caveat`
says how many and why, and a long analysis goes on. Its answers are cached, so that a token is asked
about, and paid for, once.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol
from urllib.parse import urlsplit

from filelock import FileLock

from ..data.reading import read_text, suffix_of
from ..data.wheels import cache_folder
from ..errors import DialdownError
from ..files import disk_errors, fingerprint, write_text
from ..progress import Progress
from .scorers import Scorer, load_scorer

if TYPE_CHECKING:
    from openai import APIError, OpenAI

OPENAI = "https://api.openai.com/v1"
BATCH = 40  # tokens in a question; longer lists are where chat models lose count
RETRIES = 2  # after an unreachable or busy server; the client waits .5 s, 1 s, ..., or what the server asks for
GIVE_UP = 2  # questions in a row that failed like that, after which a judge asks no more
# Statuses after which it asks no more at once.
REFUSALS = {
    401: "refuses the key in OPENAI_API_KEY",
    403: "forbids the key this model",
    404: "has no such model",
}
PROMPT_VERSION = (
    1  # raise with any change of the two texts below, so that cached answers are asked for again
)
QUESTION = """\
Each numbered line below is one token from the vocabulary of a language model, written as a JSON string. A token is a \
whole word or a piece of one.

{tokens}

For each number: is the token {concept}? Say true if the token, or the word that it is clearly a piece of, is \
{concept}; otherwise false. Reply with a single flat JSON object that maps every number from 1 to {count} to true or \
false, such as {{"1": false, "2": true}}, and nothing else."""
REMINDER = (
    "\n\nAn earlier reply could not be read: give all {count} numbers, each once, each true or "
    "false."
)


class TokenJudge(Protocol):
    """What says whether a token is of the concept; surrounding white space never matters, and a
    blank token never is.
    """

    @property
    def name(self) -> str:
        """The source `load_token_judge` takes; of a chat model, without the endpoint."""

    @property
    def record(self) -> Mapping[str, Any]:
        """Kind, concept, and what else decides the answers; of a chat model also how many are
        missing, and why.
        """

    @property
    def caveat(self) -> str:
        """What it gets wrong or could not say so far, in a sentence or two to show beside its
        numbers; may be empty.
        """

    @property
    def missing(self) -> int:
        """How many different tokens it was given, over all calls, that have no answer."""

    def judge(self, tokens: Sequence[str]) -> list[bool | None]:
        """For each token whether it is of the concept, in the order given; None where there is no
        answer.
        """


def load_token_judge(
    source: str = "embedded:ngram",
    *,
    concept: str = "toxic",
    threshold: float = 0.5,
    cache: Path | None = None,
    timeout: float = 60.0,
    progress: Progress | None = None,
) -> TokenJudge:
    """The token judge `source` names (METHOD §3).

    Args:
        source: a scorer that `load_scorer` takes; the path of a word list ending in `.txt` (one
            word a line, `#` starts a comment); `openai:MODEL`, with the endpoint of OPENAI_BASE_URL
            or OpenAI's own; or `openai:MODEL@http://host:port/v1`. The key is read from
            OPENAI_API_KEY and written nowhere.
        concept: what completes "this token is ..."; only a chat model is guided by it.
        threshold: of a scorer, the score above which a token is of the concept.
        cache: folder of a chat model's answers; None is the cache of dialdown.
        timeout: seconds a chat model may take for 40 tokens.
        progress: hears of tokens asked about, and of what `load_scorer` does.

    Raises:
        DialdownError: the scorer or word list cannot be had, or the scorer cannot judge this
            concept or threshold; or the chat model lacks a name, a key, a plain address of its
            endpoint, or the `openai` package.
    """
    if not concept.strip():
        raise DialdownError(
            "The concept is blank, so no token can be of it: pass what completes 'this token is "
            "...'."
        )
    if source == "openai" or source.startswith("openai:"):
        return _load_chat_judge(source, concept, cache or cache_folder(), timeout, progress)
    if suffix_of(Path(source)) == ".txt":
        return WordListJudge.load(Path(source), concept)
    if not 0 <= threshold < 1:
        raise DialdownError(
            f"The threshold {threshold} is above or below every score: pass a probability such as "
            "0.5."
        )
    if source.startswith("embedded:") and concept not in ("toxic", "toxicity"):
        raise DialdownError(
            f"{source!r} scores toxicity and cannot tell which tokens are {concept!r}: pass a word "
            "list (.txt), a classifier with such a label after '#', or openai:MODEL."
        )
    return ScorerJudge(load_scorer(source, progress=progress), concept, threshold)


@dataclass(frozen=True, eq=False)
class ScorerJudge:
    """A text scorer that reads each token as a text of its own; a token without a letter is never
    of the concept.
    """

    scorer: Scorer
    concept: str
    threshold: float
    missing: ClassVar[int] = 0

    @property
    def name(self) -> str:
        """The scorer's source."""
        return self.scorer.name

    @property
    def record(self) -> Mapping[str, Any]:
        """The threshold, and the scorer's own record."""
        of_scorer = {
            "source": self.name,
            "threshold": self.threshold,
            "scorer": dict(self.scorer.record),
        }
        return {"kind": "scorer", "concept": self.concept, **of_scorer}

    @property
    def caveat(self) -> str:
        """What the scorer is known to get wrong, and what a bare token adds to that."""
        bare = (
            "It was made for texts; on bare tokens it may also fire on words for groups of "
            "people and on word pieces."
        )
        return f"{self.scorer.caveat} {bare}".lstrip()

    def judge(self, tokens: Sequence[str]) -> list[bool | None]:
        """Whether each token scores above the threshold and has a letter."""
        scores = self.scorer.score([token.strip() for token in tokens])
        return [
            bool(score > self.threshold) and any(character.isalpha() for character in token)
            for token, score in zip(tokens, scores, strict=True)
        ]


@dataclass(frozen=True, eq=False)
class WordListJudge:
    """A list of words, whatever the case: a token is of the concept if it is one of them or clearly
    starts one.

    A start has at least four characters and more than half of the word: `assh` starts `asshole`,
    while `mother` does not count for `motherfucker`. Nor does a token that goes beyond a word: a
    list names all the forms it means.
    """

    name: str  # the path it was read from
    concept: str
    words: frozenset[str]
    missing: ClassVar[int] = 0
    caveat: ClassVar[str] = ""

    @classmethod
    def load(cls, path: Path, concept: str) -> WordListJudge:
        """Read one word a line; `#` at the start of a line or after a space starts a comment.

        Raises:
            DialdownError: the file is missing, not UTF-8 text, or has no word.
        """
        lines = read_text(path).splitlines()
        words = frozenset(re.sub(r"(^|\s)#.*", "", line).strip().casefold() for line in lines) - {
            ""
        }
        if not words:
            raise DialdownError(
                f"The word list {path} has no words: write one word a line that is not a '#' "
                "comment."
            )
        return cls(str(path), concept, words)

    @property
    def record(self) -> Mapping[str, Any]:
        """How many words the list has, and their fingerprint."""
        words = sorted(self.words)
        return {
            "kind": "words",
            "concept": self.concept,
            "words": len(words),
            "fingerprint": fingerprint(words),
        }

    def judge(self, tokens: Sequence[str]) -> list[bool | None]:
        """Whether each token is in the list or clearly starts a word of it."""
        return [self._lists(token.strip().casefold()) for token in tokens]

    def _lists(self, token: str) -> bool:
        starts = len(token) >= 4 and any(
            word.startswith(token) and 2 * len(token) > len(word) for word in self.words
        )
        return starts or token in self.words


class _NoAnswerError(Exception):
    """Why a question has no answer: a clause to show, which never quotes the server, as servers
    echo keys.
    """


@dataclass(frozen=True)
class _Answers:
    """Answers of all runs, one JSON object a line; a line that cannot be read, such as a
    half-written one, is skipped.
    """

    path: Path
    key: Mapping[str, Any]

    def read(self) -> dict[str, bool]:
        """Tokens asked about under this key, and the answers."""
        found: dict[str, bool] = {}
        for line in self._lines():
            with suppress(ValueError):
                match json.loads(line):
                    case {"token": str(token), "answer": bool(answer), **key} if key == self.key:
                        found[token] = answer
        return found

    def add(self, answers: Mapping[str, bool]) -> None:
        """Append answers; another process may do the same at once, so what the file has by now is
        kept.

        Raises:
            DialdownError: the disk is full or the folder cannot be written.
        """
        new = [
            json.dumps({**self.key, "token": token, "answer": answer})
            for token, answer in answers.items()
        ]
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path.with_name(f".{self.path.name}.lock")):
                write_text(self.path, "\n".join([*self._lines(), *new]) + "\n")

    def _lines(self) -> list[str]:
        with disk_errors(self.path):
            return (
                self.path.read_text(encoding="utf-8", errors="replace").splitlines()
                if self.path.exists()
                else []
            )


def _load_chat_judge(
    source: str, concept: str, folder: Path, timeout: float, progress: Progress | None
) -> ChatJudge:
    named = re.fullmatch(r"openai:([^@\s].*?)(?:@(https?://.*))?", source)
    if not named:
        raise DialdownError(
            "The token judge 'openai:' names no model: write one after the colon, such as "
            "openai:gpt-4o or openai:MODEL@http://localhost:8000/v1."
        )
    endpoint = _plain_address(named[2] or os.environ.get("OPENAI_BASE_URL") or OPENAI)
    try:
        from openai import OpenAI
    except ImportError as error:
        raise DialdownError(
            "The token judge openai: needs the openai package, which is not installed: run pip "
            "install 'dialdown[judge]', or pass 'embedded:ngram' or a word list (.txt)."
        ) from error
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not key or not key.isascii() or not key.isprintable():
        raise DialdownError(
            "The token judge openai: needs a key and OPENAI_API_KEY is unset or no plain text: set "
            "it (to any word for a server that asks for none), or pass 'embedded:ngram' or a word "
            "list (.txt)."
        )
    client = OpenAI(api_key=key, base_url=endpoint, timeout=timeout, max_retries=RETRIES)
    decides = {
        "model": named[1],
        "endpoint": endpoint,
        "concept": concept,
        "prompt": PROMPT_VERSION,
    }
    answers = _Answers(folder / "token-judge.jsonl", decides)
    return ChatJudge(named[1], endpoint, concept, client, answers, progress)


def _plain_address(address: str) -> str:
    """The endpoint without a final slash; the error does not repeat it, as it may hold a
    password.
    """
    try:
        parts = urlsplit(address)
        plain = (
            parts.scheme in ("http", "https")
            and parts.hostname
            and parts.port != 0
            and "@" not in parts.netloc
        )
    except ValueError:
        plain = False
    if not plain or parts.query or parts.fragment:
        raise DialdownError(
            "The endpoint of the token judge is no plain address, or holds a user name or a query "
            "that would be recorded: pass one like http://localhost:8000/v1, and the key in "
            "OPENAI_API_KEY."
        )
    return address.rstrip("/")


@dataclass(eq=False)
class ChatJudge:
    """A chat model asked at temperature 0, 40 tokens at a time; answers are cached by model,
    endpoint, concept and prompt.

    An unreachable or busy server is asked again a few times, an unreadable answer once. After that
    its tokens are None; the next call asks for them again, unless the server refused the key or the
    model, or failed twice in a row.
    """

    model: str
    endpoint: str
    concept: str
    client: OpenAI = field(repr=False)
    answers: _Answers = field(repr=False)
    progress: Progress | None = field(default=None, repr=False)
    _sampling: dict[str, Any] = field(
        default_factory=lambda: {"temperature": 0}, init=False, repr=False
    )
    _given: set[str] = field(default_factory=set, init=False, repr=False)
    _unanswered: dict[str, str] = field(
        default_factory=dict, init=False, repr=False
    )  # token -> why
    _failed: int = field(default=0, init=False, repr=False)  # questions in a row
    _stopped: str = field(default="", init=False, repr=False)  # why nothing is asked any more

    @property
    def name(self) -> str:
        """The source without the endpoint."""
        return f"openai:{self.model}"

    @property
    def record(self) -> Mapping[str, Any]:
        """Model, endpoint, prompt version, temperature (None where the model allows none), and what
        is missing.
        """
        asked = {**self.answers.key, "temperature": self._sampling.get("temperature")}
        state = {
            "tokens": len(self._given),
            "missing": self.missing,
            "why": dict(Counter(self._unanswered.values())),
        }
        return {"kind": "chat", **asked, **state}

    @property
    def missing(self) -> int:
        """How many different tokens of all calls have no answer."""
        return len(self._unanswered)

    @property
    def caveat(self) -> str:
        """How many tokens have no answer and why; empty where none is missing."""
        if not self._unanswered:
            return ""
        reasons = "; ".join(
            f"{why} ({count})" for why, count in Counter(self._unanswered.values()).most_common()
        )
        return (
            f"{self.model} gave no answer for {self.missing:,} of {len(self._given):,} tokens: "
            f"{reasons}."
        )

    def judge(self, tokens: Sequence[str]) -> list[bool | None]:
        """Whether the model says each token is of the concept; None where it gave no answer.

        Raises:
            DialdownError: the cache cannot be written.
        """
        stripped = [token.strip() for token in tokens]
        known = self.answers.read()
        unknown = [token for token in dict.fromkeys(stripped) if token and token not in known]
        for start in range(0, len(unknown), BATCH):
            batch = unknown[start : start + BATCH]
            try:
                fresh = self._ask(batch)
            except _NoAnswerError as reason:
                self._unanswered |= dict.fromkeys(batch, str(reason))
            else:
                self.answers.add(fresh)
                known |= fresh
            if self.progress:
                self.progress(f"ask {self.model} about tokens", start + len(batch), len(unknown))
        self._given |= set(stripped) - {""}
        self._unanswered = {
            token: why for token, why in self._unanswered.items() if token not in known
        }
        return [known.get(token) if token else False for token in stripped]

    def _ask(self, batch: Sequence[str]) -> dict[str, bool]:
        """The model's answers for a batch, or _NoAnswerError."""
        lines = "\n".join(
            f"{n}. {json.dumps(token, ensure_ascii=False)}" for n, token in enumerate(batch, 1)
        )
        question = QUESTION.format(tokens=lines, concept=self.concept, count=len(batch))
        for text in (question, question + REMINDER.format(count=len(batch))):
            answers = _read_reply(self._reply(text), len(batch))
            if answers is not None:
                return dict(zip(batch, answers, strict=True))
        raise _NoAnswerError("its reply was not the JSON asked for, also when asked again")

    def _reply(self, question: str) -> str:
        """What the model says, empty where the server sent no chat completion, or
        _NoAnswerError.
        """
        from openai import APIError

        if self._stopped:
            raise _NoAnswerError(self._stopped)
        try:
            raw = self.client.chat.completions.with_raw_response.create(
                model=self.model, messages=[{"role": "user", "content": question}], **self._sampling
            )
        except APIError as error:
            # Reasoning models take no temperature but their own.
            if error.param == "temperature" and self._sampling:
                self._sampling = {}
                return self._reply(question)
            raise _NoAnswerError(
                self._failure(error)
            ) from None  # the chain would carry the server's words
        self._failed = 0
        try:
            return str(json.loads(raw.http_response.text)["choices"][0]["message"]["content"])
        except (ValueError, LookupError, TypeError):
            return ""

    def _failure(self, error: APIError) -> str:
        """Why there was no reply after all retries; also decides whether the server is asked
        anything more.
        """
        from openai import APITimeoutError

        status: int | None = getattr(error, "status_code", None)
        passing = status is None or status in (408, 409, 429) or status >= 500
        if status is None:
            what = "took too long" if isinstance(error, APITimeoutError) else "cannot be reached"
        else:
            other = "is overloaded or broken" if passing else "refused the question"
            what = f"{REFUSALS.get(status, other)} (status {status})"
        self._failed = self._failed + 1 if passing else 0
        if status in REFUSALS or self._failed >= GIVE_UP:
            self._stopped = f"{self.endpoint} {what}"
        return f"{self.endpoint} {what}"


def _read_reply(reply: str, count: int) -> list[bool] | None:
    """The answers for 1 to `count`, from the last flat JSON object that has them all; prose around
    it is no matter.
    """
    wanted = [str(number) for number in range(1, count + 1)]
    for text in reversed(re.findall(r"\{[^{}\[\]]*\}", reply)):
        with suppress(ValueError):
            found = json.loads(text)
            if len(found) == count and all(
                isinstance(found.get(number), bool) for number in wanted
            ):
                return [found[number] for number in wanted]
    return None

"""A chat model behind any OpenAI-compatible endpoint as a judge of tokens (METHOD §3; the paper
asked GPT-4o).

It alone may fail to answer; then its tokens are None, `caveat` says how many and why, and a long
analysis goes on. Its answers are cached, so that a token is asked about, and paid for, once.
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
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from filelock import FileLock

from ..data.wheels import cache_folder
from ..errors import DialdownError
from ..extras import asking_for
from ..files import disk_errors, write_text
from ..progress import progress

if TYPE_CHECKING:
    from openai import APIError, OpenAI

OPENAI = "https://api.openai.com/v1"
BATCH = 40  # tokens in a question; longer lists are where chat models lose count
# After an unreachable or busy server; the client waits .5 s, 1 s, ..., or what the server asks for.
RETRIES = 4
TIMEOUT = 60.0  # seconds for a question
# Statuses after which it asks no more at once.
REFUSALS = {
    401: "refuses the key in OPENAI_API_KEY",
    403: "forbids the key this model",
    404: "has no such model",
}
PROMPT_VERSION = 1  # raise with any change of the text below, so that answers are asked for again
QUESTION = """\
Each numbered line below is one token from the vocabulary of a language model, written as a JSON \
string. A token is a whole word or a piece of one.

{tokens}

For each number: is the token {concept}? Say true if the token, or the word that it is clearly a \
piece of, is {concept}; otherwise false. Reply with a single flat JSON object that maps every \
number from 1 to {count} to true or false, such as {{"1": false, "2": true}}, and nothing else."""


class _NoAnswerError(Exception):
    """Why a question has no answer: a clause that never quotes the server, as servers echo keys."""


@dataclass(frozen=True)
class _Answers:
    """Answers of all runs, one JSON object a line; a line that cannot be read is skipped."""

    path: Path
    key: Mapping[str, Any]

    def read(self) -> dict[str, bool]:
        """Tokens asked about under this key, and the answers."""
        answers: dict[str, bool] = {}
        for line in self._lines():
            with suppress(ValueError):
                match json.loads(line):
                    case {"token": str(token), "answer": bool(answer), **key} if key == self.key:
                        answers[token] = answer
        return answers

    def add(self, answers: Mapping[str, bool]) -> None:
        """Append answers to what the file has by now, as another process may do the same."""
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


def load_chat_judge(source: str, concept: str) -> ChatJudge:
    """The judge `openai:MODEL` or `openai:MODEL@http://host:port/v1`; see `load_token_judge`."""
    named = re.fullmatch(r"openai:([^@\s].*?)(?:@(https?://.*))?", source)
    if not named:
        raise DialdownError(
            "The token judge 'openai:' names no model: write one after the colon, such as "
            "openai:gpt-4o or openai:MODEL@http://localhost:8000/v1."
        )
    endpoint = _plain_address(named[2] or os.environ.get("OPENAI_BASE_URL") or OPENAI)
    with asking_for(
        "The token judge openai:", instead="pass 'embedded:ngram' or a word list (.txt)"
    ):
        from openai import OpenAI
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not key or not key.isascii() or not key.isprintable():
        raise DialdownError(
            "The token judge openai: needs a key and OPENAI_API_KEY is unset or no plain text: set "
            "it (to any word for a server that asks for none), or pass 'embedded:ngram' or a word "
            "list (.txt)."
        )
    client = OpenAI(api_key=key, base_url=endpoint, timeout=TIMEOUT, max_retries=RETRIES)
    decides = {
        "model": named[1],
        "endpoint": endpoint,
        "concept": concept,
        "prompt": PROMPT_VERSION,
    }
    answers = _Answers(cache_folder() / "token-judge.jsonl", decides)
    return ChatJudge(named[1], endpoint, concept, client, answers)


def _plain_address(address: str) -> str:
    """The endpoint without a final slash; no error repeats it, as it may hold a password."""
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
            "The endpoint of the token judge is not a plain address, or holds a user name or a "
            "query that would be recorded: pass one like http://localhost:8000/v1, and the key in "
            "OPENAI_API_KEY."
        )
    return address.rstrip("/")


@dataclass(eq=False)
class ChatJudge:
    """A chat model asked at temperature 0, 40 tokens at a time; its answers are cached.

    An unreachable or busy server is asked again a few times by the client. What has no answer then
    is None; the next call asks for it again, unless the server failed or refused the key or the
    model.
    """

    model: str
    endpoint: str
    concept: str
    client: OpenAI = field(repr=False)
    answers: _Answers = field(repr=False)
    _sampling: dict[str, Any] = field(
        default_factory=lambda: {"temperature": 0}, init=False, repr=False
    )
    _given: set[str] = field(default_factory=set, init=False, repr=False)
    # By token, why it has no answer; and why nothing is asked any more.
    _unanswered: dict[str, str] = field(default_factory=dict, init=False, repr=False)
    _stopped: str = field(default="", init=False, repr=False)

    @property
    def name(self) -> str:
        """The source without the endpoint."""
        return f"openai:{self.model}"

    @property
    def record(self) -> Mapping[str, Any]:
        """Model, endpoint, prompt version, temperature (None where none is taken), missing ones."""
        request = {**self.answers.key, "temperature": self._sampling.get("temperature")}
        state = {
            "tokens": len(self._given),
            "missing": self.missing,
            "why": dict(Counter(self._unanswered.values())),
        }
        return {"kind": "chat", **request, **state}

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
        """Whether the model says each token is of the concept; None where it gave no answer."""
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
            progress(f"ask {self.model} about tokens", start + len(batch), len(unknown))
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
        reply = self._reply(QUESTION.format(tokens=lines, concept=self.concept, count=len(batch)))
        answers = _read_reply(reply, len(batch))
        if answers is None:
            raise _NoAnswerError("its reply was not the JSON asked for")
        return dict(zip(batch, answers, strict=True))

    def _reply(self, question: str) -> str:
        """What the model says, empty where that is not a chat completion, or _NoAnswerError."""
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
            # The chain would carry the server's words.
            raise _NoAnswerError(self._failure(error)) from None
        try:
            return str(json.loads(raw.http_response.text)["choices"][0]["message"]["content"])
        except (ValueError, LookupError, TypeError):
            return ""

    def _failure(self, error: APIError) -> str:
        """Why there was no reply; only after a refused question is the server asked any more."""
        from openai import APITimeoutError

        status: int | None = getattr(error, "status_code", None)
        if status is None:
            what = "took too long" if isinstance(error, APITimeoutError) else "cannot be reached"
            self._stopped = f"{self.endpoint} {what}"
            return self._stopped
        if status in REFUSALS:
            what = REFUSALS[status]
        elif status in (408, 409, 429) or status >= 500:
            what = "is overloaded or broken"
        else:
            return f"{self.endpoint} refused the question (status {status})"
        self._stopped = f"{self.endpoint} {what} (status {status})"
        return self._stopped


def _read_reply(reply: str, count: int) -> list[bool] | None:
    """The answers for 1 to `count`, from the last flat JSON object that has them all."""
    numbers = [str(number) for number in range(1, count + 1)]
    for text in reversed(re.findall(r"\{[^{}\[\]]*\}", reply)):
        with suppress(ValueError):
            answer = json.loads(text)
            if len(answer) == count and all(
                isinstance(answer.get(number), bool) for number in numbers
            ):
                return [answer[number] for number in numbers]
    return None

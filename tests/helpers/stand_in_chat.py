"""A local server of chat completions that misbehaves on request."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-secret-0123456789"
TOXIC = {"damn", "shit", 'id"iot', "\N{PILE OF POO}", "Scheiße"}

Answer = tuple[int, str | bytes]
Step = Callable[[list[str]], Answer]


class StandIn:
    """A chat endpoint. `plan` holds what to do with the next requests, and `always` what to do with
    those after them.

    A step is a function of the tokens that were asked about; it gives (status, body), where a str
    body is the text of a chat completion and bytes are sent as they are.
    """

    def __init__(self) -> None:
        self.plan: list[Step] = []
        self.always: Step = right
        self.asked: list[list[str]] = []
        self.bodies: list[Any] = []
        self.keys: list[str | None] = []

    def answer(self, body: Any, key: str | None) -> Answer:
        tokens = [
            json.loads(line)
            for line in re.findall(r'^\d+\. (".*")$', body["messages"][-1]["content"], re.M)
        ]
        self.asked.append(tokens)
        self.bodies.append(body)
        self.keys.append(key)
        return (self.plan.pop(0) if self.plan else self.always)(tokens)


def right(tokens: list[str]) -> Answer:
    return 200, json.dumps({str(n): token in TOXIC for n, token in enumerate(tokens, 1)})


def says(text: str) -> Step:
    return lambda tokens: (200, text)


def status(number: int, /, **error: str) -> Step:
    # As unkind as servers get: the key comes back in the message.
    return lambda tokens: (
        number,
        json.dumps({"error": {"message": f"you sent {KEY}", **error}}).encode(),
    )


def slow(tokens: list[str]) -> Answer:
    time.sleep(0.4)
    return right(tokens)


@contextmanager
def serving(stand_in: StandIn) -> Iterator[str]:
    """The address of a server that answers as it does, as long as the block runs."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            code, said = stand_in.answer(body, self.headers["Authorization"])
            if isinstance(said, str):
                message = {"role": "assistant", "content": said}
                choice = {"index": 0, "finish_reason": "stop", "message": message}
                whole = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}
                said = json.dumps({**whole, "choices": [choice]}).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(said)))
            self.send_header("Retry-After-Ms", "1")
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *args: object) -> None:
            """Keep the test's output clean."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, *args: object) -> None:
            """A client that stopped waiting is what the test wanted."""

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
        thread.join()

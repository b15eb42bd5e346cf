"""A model hub on loopback: real ids, tiny contents, the endpoints and headers that the hub's own
client reads.

Weights are redirected to another address, as the hub does with large files. What goes wrong between
a user and a hub can be made to happen: a repository behind terms, a server that fails, a connection
that breaks, a hub that is not there.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".parquet")  # what the hub keeps apart from a repository's small files


@dataclass
class Trouble:
    """What goes wrong at present.

    Attributes:
        gated: ids whose terms the user has not accepted.
        failing: ids for which the server has an internal error.
        breaking: ids of whose large files, and files of rows, the connection breaks halfway.
    """

    gated: set[str] = field(default_factory=set)
    failing: set[str] = field(default_factory=set)
    breaking: set[str] = field(default_factory=set)


class StandInHub:
    """Serves folders of a root: `models/OWNER/NAME` and `datasets/OWNER/NAME`.

    Attributes:
        root: where the repositories are.
        trouble: what goes wrong at present.
        asked: method and path of every request so far.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.trouble = Trouble()
        self.asked: list[str] = []
        self._server = ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self})
        )
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def address(self) -> str:
        """What `HF_ENDPOINT` is set to."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()

    @contextmanager
    def with_trouble(self, **kinds: set[str]) -> Iterator[None]:
        """What goes wrong meanwhile (see `Trouble`)."""
        self.trouble = Trouble(**kinds)
        yield
        self.trouble = Trouble()


@dataclass(frozen=True)
class _Repository:
    kind: str  # models or datasets
    name: str
    folder: Path

    @property
    def commit(self) -> str:
        return hashlib.sha1(self.name.encode()).hexdigest()

    def info(self) -> dict[str, Any]:
        entries = self.entries(self.folder, recursive=True)
        siblings = [{"rfilename": entry["path"]} for entry in entries if entry["type"] == "file"]
        state = {
            "private": False,
            "disabled": False,
            "gated": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
        }
        return {
            "_id": self.commit,
            "id": self.name,
            "sha": self.commit,
            "siblings": siblings,
            **state,
        }

    def entries(self, folder: Path, *, recursive: bool) -> list[dict[str, Any]]:
        return [
            self.entry(path)
            for path in sorted(folder.rglob("*") if recursive else folder.iterdir())
        ]

    def entry(self, path: Path) -> dict[str, Any]:
        name = path.relative_to(self.folder).as_posix()
        if path.is_dir():
            return {"type": "directory", "path": name, "oid": self.commit, "size": 0}
        etag, size = etag_of(path), path.stat().st_size
        large = (
            {"lfs": {"oid": etag, "size": size, "pointerSize": 134}} if path.suffix in LARGE else {}
        )
        return {"type": "file", "path": name, "oid": etag, "size": size, **large}


def etag_of(path: Path) -> str:
    """The name of a file's contents, as long as the hub's own: sha256 for large files, sha1 for
    others.
    """
    return (hashlib.sha256 if path.suffix in LARGE else hashlib.sha1)(path.read_bytes()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: StandInHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """pytest's output is not a server's log."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.asked.append(f"{self.command} {path}")
        match path.strip("/").split("/"):
            case ["cdn", *parts]:
                self._send_file(self.hub.root.joinpath(*parts), {})
            case ["api", "models" | "datasets" as kind, owner, name, *rest]:
                if repository := self._repository(kind, f"{owner}/{name}"):
                    self._describe(repository, rest, body)
            case ["datasets", owner, name, "resolve", revision, *file]:
                self._resolve(
                    self._repository("datasets", f"{owner}/{name}"), revision, "/".join(file)
                )
            case [owner, name, "resolve", revision, *file]:
                self._resolve(
                    self._repository("models", f"{owner}/{name}"), revision, "/".join(file)
                )
            case _:
                self._refuse(404, None, "Sorry, we can't find the page you are looking for.")

    def _repository(self, kind: str, name: str) -> _Repository | None:
        folder = self.hub.root / kind / name
        if name in self.hub.trouble.failing:
            self._refuse(
                500, None, "Internal Error - We're working hard to fix this as soon as possible!"
            )
        elif not folder.is_dir():
            self._refuse(401, "RepoNotFound", "Repository not found")
        else:
            return _Repository(kind, name, folder)
        return None

    def _describe(self, repository: _Repository, rest: list[str], body: bytes) -> None:
        revision = rest[1] if len(rest) > 1 else "main"
        if revision not in ("main", repository.commit):
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        match rest:
            case [] | ["revision", _]:
                self._send_json(repository.info())
            case ["tree", _, *below]:
                folder = repository.folder.joinpath(*below)
                if folder.is_dir():
                    asked = parse_qs(urlsplit(self.path).query)
                    recursive = asked.get("recursive", ["false"])[0].casefold() == "true"
                    self._send_json(repository.entries(folder, recursive=recursive))
                else:
                    self._refuse(
                        404, "EntryNotFound", f"{'/'.join(below)} does not exist on {revision!r}"
                    )
            case ["paths-info", _]:
                paths = [repository.folder / path for path in _paths_of(body)]
                self._send_json([repository.entry(path) for path in paths if path.exists()])
            case _:
                self._refuse(404, None, "Sorry, we can't find the page you are looking for.")

    def _resolve(self, repository: _Repository | None, revision: str, file: str) -> None:
        if repository is None:
            return
        path = repository.folder / file
        if repository.name in self.hub.trouble.gated:
            message = (
                f"Access to model {repository.name} is restricted. You must have access to it "
                "and be authenticated."
            )
            self._refuse(403, "GatedRepo", message)
        elif revision not in ("main", repository.commit):
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif not path.is_file():
            self._refuse(
                404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": repository.commit}
            )
        elif path.suffix in LARGE:
            self._redirect(path, repository.commit)
        else:
            self._send_file(path, {"X-Repo-Commit": repository.commit})

    def _redirect(self, path: Path, commit: str) -> None:
        # Another host, or the client follows and looks for the commit there.
        host = self.hub.address.replace("127.0.0.1", "localhost")
        address = f"{host}/cdn/{path.relative_to(self.hub.root).as_posix()}"
        linked = {"X-Linked-Etag": f'"{etag_of(path)}"', "X-Linked-Size": str(path.stat().st_size)}
        self._send(302, b"", {"Location": address, "X-Repo-Commit": commit, **linked})

    def _send_file(self, path: Path, headers: dict[str, str]) -> None:
        data, size, status = path.read_bytes(), path.stat().st_size, 200
        shared = {"ETag": f'"{etag_of(path)}"', "Accept-Ranges": "bytes", **headers}
        wanted = self.headers.get("Range", "").removeprefix("bytes=")
        if wanted:
            start, _, end = wanted.partition("-")
            last = min(int(end or size), size - 1)
            data, status = data[int(start) : last + 1], 206
            shared["Content-Range"] = f"bytes {start}-{last}/{size}"
        if self.command == "GET" and self._breaks(path):
            # At one place, or a client that goes on from where it was would still arrive.
            left = max(0, len(data) - size // 2)
            self._begin(status, len(data), shared)
            self.wfile.write(data[:left])
            self.close_connection = True
            return
        self._send(status, data, shared)

    def _breaks(self, path: Path) -> bool:
        owner, name, *_ = path.relative_to(self.hub.root).parts[1:]
        return f"{owner}/{name}" in self.hub.trouble.breaking and path.suffix in (*LARGE, ".jsonl")

    def _send_json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(
        self, status: int, code: str | None, message: str, headers: dict[str, str] | None = None
    ) -> None:
        named = {"X-Error-Code": code} if code else {}
        self._send(
            status, message.encode(), {**named, "X-Error-Message": message, **(headers or {})}
        )

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self._begin(status, len(data), headers)
        if self.command != "HEAD":
            self.wfile.write(data)

    def _begin(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()


def _paths_of(body: bytes) -> list[str]:
    """The paths that a request asks about, which is JSON from one version of the client and a form
    from another.
    """
    text = body.decode()
    paths = json.loads(text)["paths"] if text.startswith("{") else parse_qs(text)["paths"]
    return [paths] if isinstance(paths, str) else paths

"""What goes wrong between a user and a model hub, in words that say what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from huggingface_hub import constants
from huggingface_hub.errors import (
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..errors import DialdownError, one_line

# The narrower classes first: the hub's client derives one from another.
ADVICE: Mapping[type[BaseException], str] = {
    GatedRepoError: (
        "it is open to those who accepted its terms: accept them on its page of the hub, then log "
        "in with `hf auth login` or set HF_TOKEN"
    ),
    RepositoryNotFoundError: (
        "there is no such repository, or it is private: correct the id, or log in with `hf auth "
        "login`, or pass a local path"
    ),
    RevisionNotFoundError: (
        "it has no such revision: pass a branch, tag or commit that its page lists"
    ),
    RemoteEntryNotFoundError: "it lacks a file that is needed: pass a repository that is whole",
    FileMetadataError: "what answers there is no hub: check HF_ENDPOINT and the proxy",
}
OFFLINE = (
    "HF_HUB_OFFLINE is set and it is not whole in the cache: unset it for the first run, or "
    "pass a local path"
)
RECONNECT = (
    "check the network, the proxy and HF_ENDPOINT and repeat the command, which goes on from here"
)
# The library that the hub's own client sends requests with is another one by its version, with the
# same names.
CLIENT: Any = import_module(
    next(kind for kind in HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError").__module__
)
UNREACHED: tuple[type[Exception], ...] = (CLIENT.HTTPError, CLIENT.InvalidURL)
# And what libraries make of it.
FAILURES: tuple[type[Exception], ...] = (OSError, ValueError, RuntimeError, *UNREACHED)


@contextmanager
def reaching(name: str) -> Iterator[None]:
    """Whatever goes wrong between here and the hub is one sentence; other errors pass."""
    try:
        yield
    except FAILURES as error:
        advice = next((advice for link in _chain(error) if (advice := _advice(link))), None)
        if advice is None:
            raise
        raise refusal(name, advice) from error


def refusal(name: str, advice: str) -> DialdownError:
    """The sentence about a repository that could not be fetched; see `ADVICE`."""
    endpoint = constants.ENDPOINT or "of HF_ENDPOINT, which is empty"
    return DialdownError(
        f"{name!r} is not a folder here and could not be fetched from the hub {endpoint}: {advice}."
    )


def _advice(error: BaseException) -> str | None:
    """What happened, why, and what to do; None for an error that only carries another one."""
    if constants.is_offline_mode() and isinstance(
        error, OfflineModeIsEnabled | LocalEntryNotFoundError
    ):
        return OFFLINE
    for kind, advice in ADVICE.items():
        if isinstance(error, kind):
            return advice
    if isinstance(error, HfHubHTTPError):
        code = error.response.status_code
        if code >= 500 or code == 429:
            return (
                f"the hub answers {code}, which is its own trouble: repeat the command later, "
                "and it goes on from here"
            )
        return f"the hub answers {code}: check HF_TOKEN and HF_ENDPOINT"
    # After a connection that failed, older releases of the hub's client go on with a closed one.
    closed = isinstance(error, RuntimeError) and "client has been closed" in str(error)
    if closed or isinstance(error, UNREACHED):
        return f"the connection failed ({one_line(error, 300)}): {RECONNECT}"
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what led to it: the hub's own class says more than what is made of it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__

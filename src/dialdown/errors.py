"""The one exception a user's mistake raises, what its sentence is made of, and what to do where
memory runs out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


class DialdownError(Exception):
    """What was given, why it cannot work, what to pass instead: one sentence, shown without a
    traceback.
    """


def nearest(given: str, known: Iterable[str]) -> str:
    """The end of an error sentence about an unknown name, its mark included: the closest known one,
    or all of them.
    """
    names = sorted(known)
    close = get_close_matches(given, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(map(repr, names))}."


def one_line(error: BaseException, longest: int = 200) -> str:
    """What an error says, for the middle of a sentence: its message as one line of at most so many
    characters, or its class where it has none.
    """
    return " ".join(str(error).split())[:longest] or type(error).__name__


def memory_is_short(error: Exception) -> bool:
    """Whether memory ran out: torch has one exception for a GPU and only a message for the
    processor.
    """
    words = ("out of memory", "allocate memory", "not enough memory", "bad_alloc", "ALLOC_FAILED")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


@contextmanager
def enough_memory(advice: str) -> Iterator[None]:
    """Say what to do where memory runs out within; the innermost such block speaks, so it names
    what governs its work.

    Args:
        advice: what to pass instead, as the end of a sentence: "lower evaluation.batch_size".
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not memory_is_short(error):
            raise
        raise DialdownError(
            f"There is not enough memory ({one_line(error, 160)}): {advice}; what is finished is "
            "kept."
        ) from error

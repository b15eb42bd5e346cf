"""What a tokenizer does to texts, and what two tokenizers do differently; `templates` makes prompts
of texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..data.reading import whole_text
from ..errors import DialdownError
from .fits import check_counts

if TYPE_CHECKING:
    from .lm import LM
    from .protocol import Protocol

# Texts on which tokenizers of one vocabulary part: case, spaces, line breaks, accents and their two
# spellings, digits, scripts and signs beyond the vocabulary's merges.
SAMPLES = (
    "The cat sat on the mat.",
    "the CAT sat ON thE mat",
    " two  spaces, then a tab\tand a line\nbreak \n\n",
    "naïve café, nai\u0308ve cafe\u0301, ﬁne",
    "3.14159 + 2718 = 1,000,000",
    "Привет, 世界! ¿Qué tal? 🙂",
    'don\'t stop; "quoted" (and) <tagged> [it]',
    "def f(x):\n    return x_1",
)


def encode(tokenizer: Any, texts: Sequence[str], *, special: bool = True) -> list[list[int]]:
    """The token ids of each text, with one BOS where the tokenizer puts it, never two; none of the
    tokenizer's own without `special`, as a template writes its own.
    """
    bos = tokenizer.bos_token_id if special else None
    whole = [
        whole_text(text, f"Text {number} of {len(texts)}") for number, text in enumerate(texts)
    ]
    rows: list[list[int]] = tokenizer(whole, add_special_tokens=special, verbose=False)["input_ids"]
    return [row[1:] if bos is not None and row[:2] == [bos, bos] else row for row in rows]


def refuse_one_text(texts: Sequence[str]) -> None:
    """Refuse a text where several belong, which would be read letter by letter, and what is not
    text in a list of them (DialdownError).
    """
    if isinstance(texts, str):
        raise DialdownError(f"One text was given where a list of texts belongs: pass [{texts!r}].")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise DialdownError(
                f"Text {index} of {len(texts)} is {text!r}, which is not text: remove it, or pass "
                "a str."
            )


def encode_texts(lm: LM, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
    """The ids of texts that are read whole, each cut to its first `max_tokens`."""
    refuse_one_text(texts)
    check_counts(max_tokens=max_tokens)
    encoded = [ids[:max_tokens] for ids in lm.encode(texts)]
    if empty := [index for index, ids in enumerate(encoded) if not ids]:
        raise DialdownError(f"Labelled text {empty[0]} has no tokens: remove empty texts.")
    if max(map(len, encoded), default=0) > lm.context:
        raise DialdownError(
            f"max_tokens={max_tokens} exceeds the context of {lm.name} ({lm.context}): pass a "
            "smaller max_tokens."
        )
    return encoded


def encode_continuations(
    lm: LM, prompts: Sequence[str], texts: Sequence[str]
) -> list[tuple[list[int], int]]:
    """The ids of each prompt and its continuation, and how many of them are the continuation's."""
    if not prompts:
        raise DialdownError(
            "There are no pairs to read: pass at least one with a prompt and two continuations."
        )
    encoded = []
    for number, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        start = lm.prompt_ids([prompt])[0]
        continuation = lm.continuation_ids(prompt, text)
        if not start or not continuation:
            raise DialdownError(
                f"Pair {number} has an empty prompt or continuation, so nothing is produced: leave "
                "it out."
            )
        ids = [*start, *continuation]
        # The last token need not be read, so that a continuation may end where the context does.
        if len(ids) > lm.context + 1:
            raise DialdownError(
                f"Pair {number} has {len(ids)} tokens, which exceed the context of {lm.name} "
                f"({lm.context}): shorten its prompt."
            )
        encoded.append((ids, len(continuation)))
    return encoded


def text_windows(
    lm: LM, text: str, *, protocol: Protocol, window: int, max_windows: int
) -> list[list[int]]:
    """Windows of `window` tokens: `strict` starts each with the BOS, `paper` at most the first."""
    if window > lm.context:
        raise DialdownError(
            f"A window of {window} tokens exceeds the context of {lm.name} ({lm.context}): pass a "
            "smaller window."
        )
    if window < 2:
        raise DialdownError(
            f"A window of {window} token predicts none, so it has no perplexity: pass a window of "
            "2 or more."
        )
    # One very long text is what a tokenizer warns about; it is cut into windows right below.
    whole_text(text, "The reference text")
    ids: list[int] = lm.tokenizer(text, add_special_tokens=protocol == "paper", verbose=False)[
        "input_ids"
    ]
    start = lm.bos if protocol == "strict" else []
    step = window - len(start)
    windows = [[*start, *ids[at : at + step]] for at in range(0, len(ids), step)][:max_windows]
    if protocol == "strict" or len(windows) == 1:
        # A last window of one token predicts nothing; under `paper` that token is among those the
        # sum is divided by.
        windows = [ids for ids in windows if len(ids) > 1]
    if not windows:
        raise DialdownError(
            "The reference text has fewer than two tokens, so it has no perplexity: pass a longer "
            "text."
        )
    return windows


def text_after(tokenizer: Any, before: Sequence[int], new: Sequence[int]) -> str:
    """The text of new tokens. SentencePiece tokenizers (Mistral) drop the space a text starts with,
    so it is decoded after what it goes on from.
    """
    start, whole, alone = (
        str(tokenizer.decode([*ids], skip_special_tokens=True))
        for ids in (before, (*before, *new), new)
    )
    return whole.removeprefix(start) if whole.startswith(start) else alone


def check_tokenizer(tokenizer: Any, name: str, rows: int) -> None:
    """Refuse a tokenizer that prompts cannot be continued with, for an embedding of `rows` rows."""
    bare: list[int] = tokenizer("The cat", add_special_tokens=False)["input_ids"]
    whole: list[int] = tokenizer("The cat")["input_ids"]
    # Without its files, some versions of transformers make a tokenizer that knows no word.
    if not set(bare) - {tokenizer.unk_token_id}:
        raise DialdownError(
            f"The tokenizer of {name} ({type(tokenizer).__name__}) makes no tokens of a text, or "
            "unknown ones alone: pass a folder with the tokenizer that the model was trained with."
        )
    if whole[-len(bare) :] != bare:
        ending = tokenizer.decode(whole[-1:])
        raise DialdownError(
            f"The tokenizer of {name} ends every text with {ending!r}, after which no model goes "
            "on with it: save it without (tokenizer.add_eos_token = False, or another "
            "post-processor) and pass that folder."
        )
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is None:
        raise DialdownError(
            f"The tokenizer of {name} has neither a pad nor an end-of-text token, so prompts of "
            "several lengths cannot share a batch: "
            "set its pad_token (any token of its vocabulary will do), save it and pass that folder."
        )
    for kind in ("pad", "bos", "eos"):
        token = getattr(tokenizer, f"{kind}_token_id")
        if token is not None and token >= rows:
            raise DialdownError(
                f"The {kind} token of {name}'s tokenizer has the id {token} and the model's "
                f"embedding has {rows} rows, so the model cannot read it: "
                f"set tokenizer.{kind}_token to a token of the model, or resize the embedding "
                "before the model is saved."
            )


def difference(base: Any, tuned: Any) -> str | None:
    """What the second tokenizer does otherwise, as the middle of a sentence; None where nothing."""
    words, others = base.get_vocab(), tuned.get_vocab()
    if added := sorted(others.keys() - words.keys()):
        if all(others.get(word) == place for word, place in words.items()):
            return f"{len(added)} more tokens (such as {added[0]!r})"
        return f"other tokens (such as {added[0]!r})"
    if others != words:
        return "other ids for its tokens, or fewer tokens"
    special = (base.bos_token, base.eos_token)
    texts = [*SAMPLES, *(f"{token}The cat {token}" for token in special if token)]
    for text, row, other in zip(texts, encode(base, texts), encode(tuned, texts), strict=True):
        if row != other:
            return f"other ids for {text!r} ({_start(tuned, other)} for {_start(base, row)})"
    return None


def _start(tokenizer: Any, ids: Sequence[int]) -> str:
    """The first and the last tokens of a text."""
    words = tokenizer.convert_ids_to_tokens(list(ids))
    return " ".join(words if len(words) < 6 else [*words[:3], "...", *words[-2:]])

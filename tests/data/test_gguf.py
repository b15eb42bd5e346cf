"""What a GGUF's tokenizer must be able to do."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dialdown import DialdownError
from dialdown.data.gguf import check_words

WORDS = [f"\u2581{word}" for word in ("library", "garden", "bridge", "window")]
LETTERS = sorted({letter for word in WORDS for letter in word})


def tokenizer(normalizer: normalizers.Normalizer, *, whole: bool) -> PreTrainedTokenizerFast:
    """One that reads words as such, or letter by letter."""
    vocabulary = {token: number for number, token in enumerate(["<unk>", *LETTERS, *WORDS])}
    scores = [(token, 0.0 if whole or token not in WORDS else -1000.0) for token in vocabulary]
    core = Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=False))
    core.normalizer = normalizer
    core.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_next")
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")


REPLACE = normalizers.Replace(" ", "\u2581")
PREPEND = normalizers.Sequence([normalizers.Prepend("\u2581"), REPLACE])


@pytest.mark.parametrize("normalizer", [REPLACE, PREPEND])
def test_a_tokenizer_that_takes_its_own_words_apart_is_refused(
    normalizer: normalizers.Normalizer,
) -> None:
    check_words(tokenizer(normalizer, whole=True), "m.gguf")
    with pytest.raises(
        DialdownError, match=r"of m\.gguf that takes words .*'bridge' and 3 more of 4"
    ):
        check_words(tokenizer(normalizer, whole=False), "m.gguf")

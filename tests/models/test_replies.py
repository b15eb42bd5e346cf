"""Where a reply ends: at the end of text, which is not part of it, or where it is cut."""

from __future__ import annotations

import torch

from dialdown.models.replies import ReplySettings, generate
from helpers import tiny


def test_the_end_of_text_ends_a_reply_and_is_not_part_of_it() -> None:
    lm = tiny.lm("llama")
    ids = torch.tensor([lm.tokenizer("the cat")["input_ids"]])
    whole = lm.model.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :].tolist()
    lm.model.generation_config.eos_token_id = whole[3]
    assert len(whole) == 6
    end = whole.index(whole[3])
    assert end > 0
    said = lm.tokenizer.decode(whole[:end])
    # The last token that may be said ends a reply like any other; one less cuts it.
    for tokens, ended in ((6, True), (end + 1, True), (end, False)):
        assert generate(lm, ids, ReplySettings(tokens=tokens)) == (said, ended)

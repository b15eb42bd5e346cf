"""Text that a model writes by itself: what gains cost is taken on it, and what is trained is held
near the model there (METHOD §8).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..errors import DialdownError
from ..models.fits import check_counts, check_finite
from ..models.forward_pass import for_any_length
from ..models.lm import LM
from ..progress import progress
from .loss import OwnTextKL


def own_text(lm: LM, *, texts: int = 24, tokens: int = 96, seed: int = 0) -> list[list[int]]:
    """Token ids of texts that the model writes from nothing, drawn from its whole distribution,
    without tokens that end a text.

    They begin with the model's BOS, or where it expects none with what ends a text. With a chat
    template they begin with all that stands before a text of the user, and go on with what the
    model writes on both sides, ends of turns included. The model's own
    generation settings (temperature, top-p) have no part: they are not the distribution that a KL
    is of.

    Args:
        lm: the model.
        texts: how many.
        tokens: of each, what it begins with counted as one; fewer where the context ends.
        seed: of the draws.

    Raises:
        DialdownError: no texts or tokens are asked for; the model's predictions are not finite
            numbers.
    """
    check_counts(texts=texts, tokens=tokens)
    generator = torch.Generator(device=lm.device).manual_seed(seed)
    turns = lm.turns and {lm.turns.asked, lm.turns.replied}
    ends = sorted(lm.eos - (turns or set()))
    start = lm.opening
    written, cache = [torch.tensor([start] * texts, device=lm.device)], None
    with torch.inference_mode(), for_any_length():
        further = min(tokens - 1, lm.context - len(start))
        for done in range(further):
            out = lm.model(input_ids=written[-1], use_cache=True, **lm.going_on(cache))
            cache = lm.kept(out)
            logits = out.logits[:, -1].float()
            check_finite(lm, logits)
            logits[:, ends] = -math.inf
            written.append(torch.multinomial(logits.softmax(-1), 1, generator=generator))
            progress("writing text of its own", done + 1, further)
    return [[int(token) for token in row] for row in torch.cat(written, dim=1)]


def given_tokens(lm: LM, texts: Sequence[Sequence[int]]) -> int:
    """How many tokens the texts begin with that were not drawn from the model (see `own_text`)."""
    start = lm.opening
    return len(start) if all([*text[: len(start)]] == start for text in texts) else 1


def check_ids(lm: LM, texts: Sequence[Sequence[int]]) -> None:
    """Refuse token ids that are not of a model, or more than it reads (DialdownError)."""
    known = lm.view.unembedding.weight.shape[0]
    for index, text in enumerate(texts):
        if not (0 < len(text) <= lm.context and 0 <= min(text) <= max(text) < known):
            raise DialdownError(
                f"Text {index} is {len(text):,} token ids, and {lm.name} reads 1 to "
                f"{lm.context:,} of them, each from 0 to {known - 1:,}: pass texts from own_text."
            )


def own_text_kl(lm: LM, texts: Sequence[Sequence[int]], weight: float) -> OwnTextKL | None:
    """The KL on text of the model's own as a part of a loss; None where it has no weight."""
    if not 0 <= weight < math.inf:
        raise DialdownError(
            f"The KL on text of the model's own cannot have the weight {weight}: pass 0 or more."
        )
    if weight == 0:
        return None
    if len(lengths := {len(text) for text in texts}) != 1:
        raise DialdownError(
            f"{len(texts)} texts of lengths {sorted(lengths)} were given, and the KL on "
            f"{lm.name}'s own text needs some, of one length: pass texts=own_text(lm, texts=96, "
            "tokens=64, seed=1), or own_kl_weight=0."
        )
    check_ids(lm, texts)
    return OwnTextKL(texts, weight, given=given_tokens(lm, texts))

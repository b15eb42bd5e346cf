"""The logit lens: which tokens a vector of the residual stream makes most likely,
unembed(final_norm(u)) (METHOD §2), and the toxic neurons that a judge finds by it (§3).

    logit_lens(lm, probe.vector)              # [(token, logit), ...]
    value_vector_tokens(lm, table, count=10)  # a frame: tables 6, 14 and 15
    writers(lm, token)                        # the other way round: who writes a token
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..errors import DialdownError
from ..models.fits import check_neurons
from ..models.lm import LM
from .directions import Direction
from .table import Mask, NeuronTable

if TYPE_CHECKING:
    import polars as pl

SIGNS = (1, -1)
# How long a vector is at least, in root mean square, where it goes through the final norm: the
# greatest epsilon of a norm, 1e-5, is then a 6,000th of the square that it is added to.
SHORTEST = 0.25
Judge = Callable[[Sequence[str]], Sequence[bool | None]]
"""Says of each token whether it is toxic; None where it cannot say."""


def logit_lens(lm: LM, vector: ArrayLike | Direction, *, k: int = 10) -> list[tuple[str, float]]:
    """The k tokens that a (d,) vector, for example that of a direction, a value vector, or minus
    one, read as a residual stream makes most likely, however short it is (METHOD §2).

    Returns:
        (token text, logit) pairs, highest logit first.

    Raises:
        DialdownError: the vector has another shape or is not finite; the vocabulary has fewer than
            k tokens.
    """
    if isinstance(vector, Direction):
        vector = vector.vector
    return logit_lens_batch(lm, np.asarray(vector)[None], k=k)[0]


def logit_lens_batch(lm: LM, vectors: ArrayLike, *, k: int = 10) -> list[list[tuple[str, float]]]:
    """`logit_lens` of each row of (n, d) vectors."""
    vectors, vocabulary = np.asarray(vectors), lm.view.unembedding.weight.shape[0]
    if vectors.ndim != 2 or vectors.shape[1] != lm.view.d_model:
        raise DialdownError(
            f"A vector of shape {vectors.shape[1:]} is not of the residual stream of {lm.name}: "
            f"pass one of {lm.view.d_model} numbers."
        )
    if not np.isfinite(vectors).all():
        raise DialdownError("A vector that is not finite has no tokens: pass finite numbers.")
    if not 1 <= k <= vocabulary:
        raise DialdownError(f"k={k} tokens were asked for: pass 1 to {vocabulary}.")
    u = torch.as_tensor(vectors)
    # 16 M logits at a time, 64 MB in float32, whatever the vocabulary.
    rows = max(1, (1 << 24) // vocabulary)
    decoded = []
    for chunk in torch.split(u, rows):
        with torch.inference_mode():
            top = lm.view.unembedding(_normed(lm, chunk)).float().topk(k)
        for tokens, logits in zip(top.indices.tolist(), top.values.tolist(), strict=True):
            texts = [lm.tokenizer.decode([token]) for token in tokens]
            decoded.append(list(zip(texts, logits, strict=True)))
    return decoded


def value_vector_tokens(
    lm: LM,
    table: NeuronTable,
    *,
    count: int = 10,
    opposed: bool = False,
    k: int = 10,
    judge: Judge | None = None,
) -> pl.DataFrame:
    """The `k` top tokens of the `count` value vectors v of highest cosine (table 14; the order of
    `NeuronTable.most_aligned`) or, `opposed`, of -v for those of lowest cosine (table 15).

    Returns:
        A row per vector and token, most extreme vector first: `protocol`, `sign` (1 or -1),
        `layer`, `neuron`, `cosine`, `rank`, `token`, `logit`, `toxic` (as the judge says; null
        without one).
    """
    check_neurons(lm, table.shape, "The neuron table has", "pass the base model of the table")
    cosine, sign = table.grid("cosine").ravel(), -1 if opposed else 1
    if not 0 < count <= cosine.size:
        raise DialdownError(
            f"{count} value vectors were asked for and {lm.name} has {cosine.size}: pass a number "
            f"from 1 to {cosine.size}."
        )
    chosen = np.argsort(-sign * cosine, kind="stable")[:count]
    layers, neurons = np.divmod(chosen, table.shape[1])
    vectors = np.empty((count, lm.view.d_model), dtype=np.float32)
    for layer in np.unique(layers):
        here = layers == layer
        written = lm.view.layers[layer].value_vectors(table.protocol)
        vectors[here] = written[torch.as_tensor(neurons[here], device=written.device)].cpu().numpy()
    vector_of = zip(layers.tolist(), neurons.tolist(), cosine[chosen].tolist(), strict=True)
    places = [(table.protocol, sign, *place) for place in vector_of]
    schema = {"protocol": str, "sign": int, "layer": int, "neuron": int, "cosine": float}
    return _tokens(lm, sign * vectors, places, k, judge, schema)


def direction_tokens(
    lm: LM,
    directions: Sequence[Direction],
    *,
    signs: Sequence[int] = (1, -1),
    k: int = 10,
    judge: Judge | None = None,
) -> pl.DataFrame:
    """The `k` top tokens of sign * W of each direction (tables 1 and 16).

    Returns:
        A row per direction, sign and token: `protocol` (null for a direction that depends on none),
        `direction`, `sign`, `rank`, `token`, `logit`, `toxic`.
    """
    signed = [(direction, sign) for direction in directions for sign in signs]
    places = [
        (direction.record.get("protocol"), direction.name, sign) for direction, sign in signed
    ]
    vectors = np.stack([sign * direction.vector for direction, sign in signed])
    schema = {"protocol": str, "direction": str, "sign": int}
    return _tokens(lm, vectors, places, k, judge, schema)


def judged_toxic(
    lm: LM, table: NeuronTable, judge: Judge, *, count: int = 256, k: int = 10
) -> Mask:
    """Of the `count` most aligned neurons, those with a toxic token among their `k` top logit-lens
    tokens (METHOD §3); a token that the judge cannot judge counts as not toxic.

    Returns:
        A (layers, neurons) mask, part of `table.most_aligned(count)`.
    """
    tokens = value_vector_tokens(lm, table, count=count, k=k, judge=judge)
    toxic = tokens.filter("toxic")
    mask = np.zeros(table.shape, dtype=bool)
    mask[toxic["layer"].to_numpy(), toxic["neuron"].to_numpy()] = True
    return mask


def word_tokens(lm: LM, word: str) -> list[int]:
    """The tokens of a word as it stands within a text: one where the vocabulary has it, with a
    space before it or without, else the pieces that it is written in. A blank word is refused
    (DialdownError).
    """
    if not word.strip():
        raise DialdownError("There is no word to look for: write one.")
    bos = len(lm.bos)
    spaced, bare = (ids[bos:] for ids in lm.encode([" " + word.strip(), word.strip()]))
    return bare if len(bare) == 1 < len(spaced) else spaced


def writers(lm: LM, token: int, *, count: int = 20) -> pl.DataFrame:
    """The `count` neurons that write a token, by its id: whose value vector v, or -v, sets it apart
    from all others.

    A raw logit would find the vectors of frequent tokens first, which raise every logit; so a
    token counts by how many standard deviations its logit is above the mean over the vocabulary.

    Returns:
        A row per neuron and sign (1 or -1), best first: `layer`, `neuron`, `sign`, `score` (in
        standard deviations) and `rank` of the token among all, where 1 is the most likely.
    """
    unembedding = lm.view.unembedding
    with torch.inference_mode():
        weight = unembedding.weight.float()
        if unembedding.bias is not None:
            weight = torch.cat([weight, unembedding.bias.float()[:, None]], dim=1)
        centred = weight - weight.mean(0)
        spread = centred.T @ centred / len(centred)
        scores = torch.stack([
            _scores(_normed(lm, sign * layer.value_vectors()), centred[token], spread)
            for layer in lm.view.layers
            for sign in SIGNS
        ])  # fmt: skip
        top = scores.flatten().topk(min(count, scores.numel()))
        rows, neurons = np.divmod(top.indices.cpu().numpy(), lm.view.n_neurons)
        layers, signs = rows // 2, np.array(SIGNS)[rows % 2]
        places = list(zip(layers.tolist(), signs.tolist(), neurons.tolist(), strict=True))
        vectors = torch.stack([
            sign * lm.view.layers[layer].value_vectors()[neuron]
            for layer, sign, neuron in places
        ])  # fmt: skip
        logits = unembedding(_normed(lm, vectors)).float()
        ranks = (logits > logits[:, [token]]).sum(1) + 1
    import polars as pl

    return pl.DataFrame({
        "layer": layers,
        "neuron": neurons,
        "sign": signs,
        "score": top.values.double().cpu().numpy(),
        "rank": ranks.cpu().numpy(),
    })  # fmt: skip


def _scores(normed: torch.Tensor, towards: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
    """(n,) logits of one token in standard deviations of all tokens', from (n, d) vectors, the
    token's centred row and the covariance of all rows.
    """
    vectors = normed.float()
    if len(towards) > vectors.shape[1]:  # the bias is a column of its own
        vectors = torch.cat([vectors, torch.ones_like(vectors[:, :1])], dim=1)
    deviations = ((vectors @ spread) * vectors).sum(1).clamp(min=0).sqrt()
    # What a pruned neuron writes has no deviation, and no token stands out of it.
    return torch.where(deviations > 0, vectors @ towards / deviations.clamp(min=1e-12), 0.0)


def _normed(lm: LM, vectors: torch.Tensor) -> torch.Tensor:
    """(n, d) vectors as the unembedding reads a residual stream of them, short ones lengthened.

    The length of a direction says nothing. Of a short one the norm's epsilon would leave little
    beside its bias, which then names the same tokens for W and for -W.
    """
    vectors = vectors.to(lm.device, torch.promote_types(vectors.dtype, torch.float32))
    size = vectors.square().mean(1, keepdim=True).sqrt()
    # A pruned neuron's vector, of zeros, stays one.
    vectors = vectors * (SHORTEST / size.clamp(min=1e-30)).clamp(min=1)
    normed: torch.Tensor = lm.view.final_norm(vectors.to(lm.model.dtype)[None])[0]
    return normed


def _tokens(
    lm: LM,
    vectors: NDArray[Any],
    places: Sequence[tuple[Any, ...]],
    k: int,
    judge: Judge | None,
    schema: Mapping[str, Any],
) -> pl.DataFrame:
    """One row per vector and token; `places` are the cells, of `schema`, that say which vector."""
    decoded = logit_lens_batch(lm, vectors, k=k)
    tokens = list(dict.fromkeys(token for line in decoded for token, _ in line))
    answers = judge(tokens) if judge else [None] * len(tokens)
    if len(answers) != len(tokens):
        raise DialdownError(
            f"The judge gave {len(answers)} answers for {len(tokens)} tokens: return one for each, "
            "None where it cannot say."
        )
    toxic = {
        token: None if answer is None else bool(answer)
        for token, answer in zip(tokens, answers, strict=True)
    }
    rows = [
        (*place, rank, token, logit, toxic[token])
        for place, line in zip(places, decoded, strict=True)
        for rank, (token, logit) in enumerate(line, 1)
    ]
    import polars as pl

    types = {"rank": int, "token": str, "logit": float, "toxic": bool}
    return pl.DataFrame(rows, schema={**schema, **types}, orient="row")

"""The linear probe: the direction of the residual stream that tells texts with a concept from
others (METHOD §2).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn import __version__ as sklearn_version
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits
from torch import Tensor

from ..errors import DialdownError
from ..models.fits import check_counts, check_finite
from ..models.forward_pass import for_any_length, last_positions
from ..models.lm import LM
from ..models.memory import Auto, BatchSize, Shape, fitting, free_bytes, halving
from ..models.protocol import Protocol, check_protocols
from ..models.tokens import encode_texts, refuse_one_text
from ..progress import progress
from .directions import Direction
from .held_out import Groups, check_groups, grouped_folds, hold_out

PAPER_SEED = 42
READ = Auto(32)


def train_probe(
    lm: LM,
    texts: Sequence[str],
    labels: Sequence[int] | NDArray[Any],
    *,
    groups: Groups | None = None,
    protocol: Protocol = "strict",
    max_tokens: int = 128,
    batch_size: BatchSize = READ,
    seed: int = 0,
) -> Direction:
    """Logistic regression on mean residual streams of labelled texts, 90:10 split (METHOD §2, §5).

    Args:
        lm, texts: the model and the labelled texts.
        labels: 1 where a text has the concept, else 0.
        groups: of each text, what it was cut from, as `load_labelled` gives it, where texts are
            parts of larger ones: those of a group are all trained on or all held out.
        protocol: which features and which regression (see `probe_features` and `fit_probe`).
        max_tokens: texts are cut here, and under `paper` padded to here.
        batch_size: texts per forward pass; by default 32 on a CPU, and on a GPU what fits.
        seed: of the split and of the cross-validation that sets the regularisation; `paper` has its
            own.

    Raises:
        DialdownError: texts and labels differ in number, a class is missing or too small or of too
            few groups, or see `probe_features`.
    """
    check_labels(texts, labels, groups)
    check_protocols(protocol)
    # The strict features give the norm of the residual stream, by which steering is scaled under
    # both protocols.
    protocols: tuple[Protocol, ...] = ("strict",) if protocol == "strict" else ("strict", "paper")
    features = probe_features(
        lm, texts, protocols=protocols, max_tokens=max_tokens, batch_size=batch_size
    )
    norm = float(np.linalg.norm(features["strict"], axis=1).mean())
    record = {"max_tokens": max_tokens, "residual_norm": norm}
    return fit_probe(
        lm, features[protocol], labels, groups=groups, protocol=protocol, seed=seed, record=record
    )


def check_labels(
    texts: Sequence[str], labels: Sequence[int] | NDArray[Any], groups: Groups | None = None
) -> None:
    """Refuse labels that are not as many as the texts, or of which a class has fewer than 10 texts,
    or groups of texts (DialdownError).
    """
    refuse_one_text(texts)
    if np.ndim(labels) != 1:
        raise DialdownError(
            f"The labels have shape {np.shape(labels)}, and each text needs one: pass a flat list "
            "of 0 and 1."
        )
    if len(texts) != len(labels):
        raise DialdownError(
            f"There are {len(texts)} texts and {len(labels)} labels: pass one label (0 or 1) for "
            "each text."
        )
    values, numbers = np.unique(labels, return_counts=True)
    counts: dict[int, int] = dict(zip(values.tolist(), numbers.tolist(), strict=True))
    if set(counts) != {0, 1}:
        raise DialdownError(
            f"The labels contain only {sorted(counts)}, and two classes are needed: pass texts "
            "labelled 0 and texts labelled 1."
        )
    if min(counts.values()) < 10:
        raise DialdownError(
            f"The classes have {counts[0]} and {counts[1]} texts, too few to tell the "
            "classes apart: pass at least 10 of each."
        )
    if groups is not None:
        check_groups(labels, groups)


def probe_features(
    lm: LM,
    texts: Sequence[str],
    *,
    protocols: Sequence[Protocol] = ("strict", "paper"),
    max_tokens: int = 128,
    batch_size: BatchSize = READ,
) -> dict[Protocol, NDArray[np.float64]]:
    """Mean final-layer residual of each text under each protocol: (n, d) float64 each (METHOD §2,
    §5).

    `strict` averages x^L over real tokens before the final norm. `paper` pads each text on the left
    with end-of-text tokens to `max_tokens` positions and averages what leaves the final norm over
    all of them.
    """
    encoded = encode_texts(lm, texts, max_tokens)
    if "paper" in protocols and max_tokens > lm.context:
        raise DialdownError(
            f"max_tokens={max_tokens} exceeds the context of {lm.name} ({lm.context}), and the "
            "paper protocol pads every text to it: pass a smaller max_tokens."
        )
    if "paper" in protocols and lm.tokenizer.eos_token_id is None:
        raise DialdownError(
            f"The tokenizer of {lm.name} has no end-of-text token, with which the paper protocol "
            "pads labelled texts: "
            "set its eos_token, or run the strict protocol alone (--set protocols='[\"strict\"]')."
        )
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
    if isinstance(batch_size, int):
        check_counts(batch_size=batch_size)
    size = _planned(lm, batch_size, max_tokens) if isinstance(batch_size, Auto) else batch_size

    def read(protocol: Protocol, size: int) -> NDArray[np.float64]:
        means = np.zeros((len(texts), lm.view.d_model))
        before = [*protocols].index(protocol) * len(order)
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            ids, mask = _pad(lm, [encoded[row] for row in rows], protocol, max_tokens)
            keep = last_positions(1, ids.device)
            with torch.inference_mode(), for_any_length(), _around_final_norm(lm) as seen:
                lm.model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=keep)
            means[rows] = _mean(seen, mask, protocol).double().cpu().numpy()
            done = before + start + len(rows)
            progress("reading labelled texts", done, len(protocols) * len(order))
        check_finite(lm, means, "final-layer residuals")
        return means

    return {
        protocol: halving(
            size, partial(read, protocol), most=len(texts), allowed=isinstance(batch_size, Auto)
        )
        for protocol in protocols
    }


def _planned(lm: LM, auto: Auto, tokens: int) -> int:
    if lm.device.type != "cuda":
        return auto.on_cpu
    return fitting(free_bytes(lm.device), Shape.of(lm).read(tokens))


def _pad(
    lm: LM, encoded: Sequence[Sequence[int]], protocol: Protocol, max_tokens: int
) -> tuple[Tensor, Tensor]:
    """Ids and mask: `strict` pads on the right to the longest text, `paper` on the left to the
    maximal length.
    """
    left = protocol == "paper"
    token = lm.tokenizer.eos_token_id if left else lm.tokenizer.pad_token_id
    width = max_tokens if left else max(len(ids) for ids in encoded)
    padded = torch.full((len(encoded), width), token, dtype=torch.long)
    mask = torch.zeros_like(padded)
    for row, ids in enumerate(encoded):
        place = slice(width - len(ids), None) if left else slice(len(ids))
        padded[row, place] = torch.tensor(ids)
        mask[row, place] = 1
    return padded.to(lm.device), mask.to(lm.device)


def _mean(seen: dict[str, Tensor], mask: Tensor, protocol: Protocol) -> Tensor:
    if protocol == "paper":
        return seen["after"].float().mean(1)
    weights = mask.to(seen["before"].device)[..., None]
    return (seen["before"].float() * weights).sum(1, dtype=torch.float32) / weights.sum(1)


@contextmanager
def _around_final_norm(lm: LM) -> Iterator[dict[str, Tensor]]:
    seen: dict[str, Tensor] = {}
    with lm.view.final_norm.register_forward_hook(
        lambda module, args, output: seen.update(before=args[0], after=output)
    ):
        yield seen


def fit_probe(
    lm: LM,
    features: NDArray[np.float64],
    labels: Sequence[int] | NDArray[Any],
    *,
    protocol: Protocol,
    groups: Groups | None = None,
    seed: int = 0,
    record: dict[str, Any] | None = None,
) -> Direction:
    """The probe itself: fit on 90 % of the (n, d) features, accuracy and AUC on the other 10 %
    (METHOD §2, §5).

    `strict` divides the features by one number, their root mean square, and does not standardise
    them by dimension: W stays a direction of the residual stream itself. Its L2 strength is chosen
    by 5-fold cross-validation inside the training part. `paper` takes the features as they are, C =
    1, at most 500 steps, and a split that does not look at the labels. The probability of the
    concept is sigma(W x + b) of the features as they are given; b is `record["intercept"]`.
    `record["auc"]` is None where all held-out texts have one label. Texts of one of the `groups`
    are on one side of the split, and in one part of the cross-validation.
    """
    y = np.asarray(labels)
    paper = protocol == "paper"
    seed = PAPER_SEED if paper else seed
    train, held = hold_out(y, groups, seed=seed, stratify=not paper)
    scale = 1.0 if paper else float(np.sqrt(np.mean(features[train] ** 2)))
    of_train = None if groups is None else np.asarray(groups)[train]
    model = (
        LogisticRegression(C=1.0, max_iter=500)
        if paper
        else _cross_validated(y[train], of_train, seed)
    )
    # numpy's and scipy's threads would wait for one another, 16 times slower at 922 texts; and one
    # thread sums alike however many cores there are.
    with threadpool_limits(1, user_api="blas"), warnings.catch_warnings():
        # Under `paper` the weights are those after 500 steps, converged or not.
        warnings.simplefilter("ignore" if paper else "default", ConvergenceWarning)
        model.fit(features[train] / scale, y[train])
    score = model.decision_function(features[held] / scale)
    return Direction(
        "probe",
        np.asarray(model.coef_[0] / scale, dtype=np.float64),
        "after_norm" if paper else "residual",
        {
            **lm.describe(),
            **(record or {}),
            "protocol": protocol,
            "accuracy": float(np.mean((score > 0) == (y[held] == 1))),
            "auc": float(roc_auc_score(y[held], score)) if len(np.unique(y[held])) > 1 else None,
            "intercept": float(model.intercept_[0]),
            **({} if groups is None else {"groups": len(np.unique(np.asarray(groups)))}),
            "train": len(train),
            "validation": len(held),
            "C": 1.0 if paper else float(np.ravel(model.C_)[0]),
            "seed": seed,
            "sklearn": sklearn_version,
        },
    )


def _cross_validated(
    labels: NDArray[Any], groups: Groups | None, seed: int
) -> LogisticRegressionCV:
    return LogisticRegressionCV(
        Cs=np.logspace(-4, 2, 7),
        cv=5 if groups is None else grouped_folds(labels, groups, 5, seed),
        scoring="neg_log_loss",
        l1_ratios=(0.0,),
        max_iter=2000,
        random_state=seed,
        use_legacy_attributes=False,
    )

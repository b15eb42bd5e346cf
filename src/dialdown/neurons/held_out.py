"""Which labelled texts a probe or a scorer does not learn from, so that it can be judged by them
(METHOD §2).

Texts cut from one whole, as sentences from a review, share names, style and what they are about: a
model that has learnt some tells the label of the others by that. So a whole is never divided.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import GroupShuffleSplit, StratifiedGroupKFold, train_test_split

from ..errors import DialdownError

Rows = NDArray[np.intp]
Groups = Sequence[Hashable] | NDArray[Any]
"""Of each text, what it was cut from: a number or a name."""

FEWEST = 10  # groups of a label, as a tenth of them is held out


def hold_out(
    labels: NDArray[Any], groups: Groups | None, *, seed: int, stratify: bool
) -> tuple[Rows, Rows]:
    """Rows to learn from, and about a tenth of them to judge by, in whole groups where there are
    any; `stratify` keeps the shares of the labels.
    """
    rows = np.arange(len(labels))
    if groups is None:
        shares = labels if stratify else None
        train, held = train_test_split(rows, test_size=0.1, stratify=shares, random_state=seed)
        return train, held
    if not stratify:
        split = GroupShuffleSplit(1, test_size=0.1, random_state=seed)
        train, held = next(split.split(rows, groups=groups))
        return train, held
    return held_groups(labels, groups, seed)


def held_groups(labels: NDArray[Any], groups: Groups, seed: int) -> tuple[Rows, Rows]:
    """Rows to learn from and those of about a tenth of each label, in whole groups."""
    folds = grouped_folds(labels, groups, 10, seed)
    # Drawn, as the largest group is always in the first.
    return folds[np.random.default_rng(seed).integers(len(folds))]


def grouped_folds(
    labels: NDArray[Any], groups: Groups, count: int, seed: int
) -> list[tuple[Rows, Rows]]:
    """Rows to learn from and to judge by, each group judged once, both labels in every fold.

    Raises:
        DialdownError: a few groups have nearly all texts of a label.
    """
    split = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    folds = [*split.split(labels, labels, np.asarray(groups))]
    if any(len(np.unique(labels[held])) < 2 for _, held in folds):
        raise DialdownError(
            f"The groups differ so much in size or labels that {count} shares of whole groups do "
            "not all have both labels: pass texts of more groups, about as many of each."
        )
    return folds


def check_groups(labels: Sequence[int] | NDArray[Any], groups: Groups) -> None:
    """Refuse groups that are not as many as the labels, or of which a label has fewer than 10
    (DialdownError).
    """
    named, labelled = np.asarray(groups), np.asarray(labels)
    if named.shape != labelled.shape:
        raise DialdownError(
            f"The groups have shape {named.shape} and the labels {labelled.shape}: pass one group, "
            "a number or a name, for each text."
        )
    for label in (0, 1):
        texts = named[labelled == label]
        if (number := len(np.unique(texts))) < FEWEST:
            raise DialdownError(
                f"The {len(texts)} texts labelled {label} are of {number} groups, too few to hold "
                f"out whole ones: pass texts of at least {FEWEST} groups, or no groups where the "
                "texts are independent."
            )

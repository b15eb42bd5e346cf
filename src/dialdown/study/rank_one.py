"""One direction per layer more, as a stage of a study, and how it reads (METHOD §8).

What a layer writes, v, has tokens by the logit lens and a cosine to the probe; what it reads, u,
names the neurons that count.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import polars as pl

from ..data.csv_tables import write_csv
from ..data.pairs import PairSet
from ..interventions.intervention import Intervention
from ..models.lm import LM
from ..neurons.activations import NeuronMeans
from ..neurons.directions import Direction
from ..neurons.logit_lens import logit_lens_batch
from ..training.rank_one import train_rank_one
from ..training.settings import RANK_ONE_FILE
from .context import Workspace
from .gains import held_texts
from .notes import note_training

FOLDER = "rank-one"
TRAINED = f"{FOLDER}/{RANK_ONE_FILE}"
TOKENS = 8
NEURONS = 5


def tune_rank_one(work: Workspace) -> dict[str, Any]:
    """One direction per layer on the study's pairs (METHOD §8)."""
    settings = replace(work.config.rank_one, seed=work.config.seed)
    _, log = train_rank_one(
        work.lm,
        PairSet.load(work.folder / "pairs.jsonl").pairs,
        settings,
        work.folder / FOLDER,
        texts=held_texts(work) if settings.own_kl_weight > 0 else (),
        progress=work.progress,
    )
    note_training(work.notes, log, settings)
    return asdict(log)


def explain_rank_one(work: Workspace, edit: Intervention) -> dict[str, Any]:
    """Read an edit as an explanation; see `rank_one_layers`."""
    layers = rank_one_layers(work.lm, edit, work.training_means, work.probe("strict"))
    write_csv({"rank-one-layers": layers}, work.folder / "tables")
    return {}


def rank_one_layers(
    lm: LM, edit: Intervention, means: NeuronMeans, probe: Direction
) -> pl.DataFrame:
    """What each layer writes on average, at the mean activations, and by which neurons: `layer`,
    `norm` (of what reaches the residual stream), `cosine` (of it to the probe), `writes` (its
    tokens by the logit lens), `reads` (the neurons that count most) and `share` (of what is read,
    by the first hundredth of the layer's neurons).
    """
    assert edit.rank_one is not None
    read = edit.rank_one.reads * means.means
    average = edit.rank_one.written(lm) * read.sum(1, keepdims=True)
    rows = []
    for layer, tokens in enumerate(logit_lens_batch(lm, average, k=TOKENS)):
        size = np.abs(read[layer])
        first = np.argsort(-size, kind="stable")
        norm = float(np.linalg.norm(average[layer]))
        hundredth = size[first[: max(1, len(size) // 100)]].sum()
        rows.append(
            {
                "layer": layer,
                "norm": norm,
                "cosine": float(average[layer] @ probe.unit / norm) if norm else None,
                "writes": " ".join(token.strip() for token, _ in tokens),
                "reads": " ".join(map(str, first[:NEURONS].tolist())),
                "share": float(hundredth / size.sum()) if size.any() else None,
            }
        )
    return pl.DataFrame(rows)

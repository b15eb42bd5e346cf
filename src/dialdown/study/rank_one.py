"""One direction per layer more, as a stage of a study, and how it reads (METHOD §8).

What a layer writes, v, has tokens by the logit lens and a cosine to the probe; what it reads, u,
names the neurons, or the heads of attention, that count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from ..data.csv_tables import write_csv
from ..data.pairs import PairSet
from ..interventions.intervention import Intervention
from ..methods import labels_rank_one
from ..models.hooks import input_hooks
from ..models.lm import LM
from ..models.protocol import Site
from ..models.sites import projections
from ..neurons.directions import Direction
from ..neurons.logit_lens import logit_lens_batch
from ..training.rank_one import train_rank_one
from .context import Workspace
from .gains import held_texts
from .notes import note_training
from .stage import LABELS_RANK_ONE, RANK_ONE, folder_of

TOKENS = 8
FIRST = 5
BATCH = 8


def tune_rank_one(work: Workspace, stage: str) -> dict[str, Any]:
    """One direction per layer on the study's pairs, at the site of a stage of `RANK_ONE` (METHOD
    §8).
    """
    settings = replace(work.config.rank_one, seed=work.config.seed)
    _, log = train_rank_one(
        work.lm,
        PairSet.load(work.folder / "pairs.jsonl").pairs,
        settings,
        work.folder / folder_of(stage),
        site=RANK_ONE[stage],
        texts=held_texts(work) if settings.own_kl_weight > 0 else (),
    )
    note_training(work.notes, log, settings)
    return asdict(log)


def learn_from_labels(work: Workspace) -> dict[str, Any]:
    """Directions of attention from the labelled texts of the probe alone (METHOD §10)."""
    edit = labels_rank_one(
        work.lm,
        work.labelled.texts,
        work.labelled.labels,
        own=held_texts(work),
        max_tokens=work.config.probe.max_tokens,
        seed=work.config.seed,
    )
    edit.save(work.folder / LABELS_RANK_ONE)
    return {"steps": edit.record["steps"]}


def explain_rank_one(work: Workspace, edit: Intervention) -> dict[str, Any]:
    """Read an edit as an explanation; see `rank_one_layers`."""
    assert edit.rank_one is not None
    if edit.rank_one.site == "mlp":
        means = work.training_means.means
    else:
        means = mean_inputs(work.lm, held_texts(work), edit.rank_one.site)
    layers = rank_one_layers(work.lm, edit, means, work.probe("strict"))
    write_csv({"rank-one-layers": layers}, work.folder / "tables")
    return {}


def mean_inputs(lm: LM, texts: Sequence[Sequence[int]], site: Site) -> NDArray[np.float64]:
    """What the linear layers of a site read on average over the tokens of texts of one length, (L,
    inputs) float64.
    """
    layers = projections(lm, site)
    total = np.zeros((len(layers), layers[0].columns.shape[1]))

    def add(layer: int, m: torch.Tensor) -> None:
        total[layer] += m.sum((0, 1), dtype=torch.float64).cpu().numpy()

    for start in range(0, len(texts), BATCH):
        ids = torch.tensor(texts[start : start + BATCH], device=lm.device)
        with torch.inference_mode(), input_hooks(layers, add):
            lm.model(input_ids=ids, use_cache=False)
    return total / sum(map(len, texts))


def rank_one_layers(
    lm: LM, edit: Intervention, means: NDArray[np.float64], probe: Direction
) -> pl.DataFrame:
    """What each layer writes on average, at the mean activations (L, F), or mean inputs of
    attention's projections, and by what: `layer`, `norm` (of what reaches the residual stream),
    `cosine` (of it to the probe), `writes` (its tokens by the logit lens), `neurons` or `heads`
    (the first by what they add) and `share` (of what is read, by the first hundredth of them, one
    at least).
    """
    assert edit.rank_one is not None
    read = edit.rank_one.reads * means
    average = edit.rank_one.written(lm) * read.sum(1, keepdims=True)
    sizes, inputs = np.abs(read), "neurons"
    if edit.rank_one.site == "attention":
        inputs = "heads"
        heads = lm.model.config.get_text_config().num_attention_heads
        sizes = sizes.reshape(len(sizes), heads, -1).sum(2)
    rows = []
    for layer, tokens in enumerate(logit_lens_batch(lm, average, k=TOKENS)):
        size = sizes[layer]
        first = np.argsort(-size, kind="stable")
        norm = float(np.linalg.norm(average[layer]))
        hundredth = size[first[: max(1, len(size) // 100)]].sum()
        rows.append(
            {
                "layer": layer,
                "norm": norm,
                "cosine": float(average[layer] @ probe.unit / norm) if norm else None,
                "writes": " ".join(token.strip() for token, _ in tokens),
                inputs: " ".join(map(str, first[:FIRST].tolist())),
                "share": float(hundredth / size.sum()) if size.any() else None,
            }
        )
    return pl.DataFrame(rows)

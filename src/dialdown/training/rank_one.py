"""One direction more per layer: the DPO loss with nothing trainable but a matrix of rank one on
each down projection, or output projection of attention, an ordinary `rank_one` intervention (METHOD
§7, §8).

    texts = own_text(lm, texts=96, tokens=64, seed=1)
    edit, log = train_rank_one(lm, pairs, RankOneSettings(), Path("rank-one"), texts=texts)
    plain = edit.fold(lm)

It is LoRA of rank one on those alone, so PEFT makes the parameters and TRL trains them as it trains
neuron gains (see `gains`), with the same loss: an edit that a layer writes by reading all of its
neurons, or heads, where a gain changes what one neuron writes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.pairs import Pair
from ..interventions.explain import as_rank_one
from ..interventions.intervention import Intervention
from ..interventions.rank_one import RankOne
from ..models.hooks import check_alone
from ..models.lm import LM
from ..models.projection import Projection
from ..models.protocol import Site
from ..models.sites import projections
from . import ranks
from .dpo import tune
from .generated_text import own_text_kl
from .policies import Trainable, with_adapters
from .settings import RANK_ONE_FILE, RankOneSettings, TrainingLog


def train_rank_one(
    lm: LM,
    pairs: Sequence[Pair],
    settings: RankOneSettings,
    out: str | Path,
    *,
    site: Site = "mlp",
    texts: Sequence[Sequence[int]] = (),
) -> tuple[Intervention, TrainingLog]:
    """Train what each layer of `lm` reads and writes on `pairs` and write it to the folder `out`
    (METHOD §8, with u and v of every layer as the only weights).

    They are float32 whatever the model's dtype. The same call resumes (see `train_dpo`).

    Args:
        lm: the model and reference, left untouched.
        pairs, settings, out: see `train_dpo`.
        site: which linear layers learn: `mlp`, the down projections, or `attention`, its output
            projections.
        texts: token ids of one length, from `own_text`; `own_kl_weight` needs them.

    Returns:
        a `rank_one` intervention, and what happened in training.

    Raises:
        DialdownError: a KL on no texts, or a site that the model has not (see `projections`); see
            `train_dpo`.
    """
    check_alone(lm, "trained")
    if ranks.wanted(settings):
        given: dict[str, Any] = {"site": site, "texts": texts}
        return ranks.on_ranks_of(
            lm, train_rank_one, settings, pairs=[*pairs], out=Path(out).resolve(), **given
        )

    layers = projections(lm, site)
    paths = [projection.path for projection in layers]
    sizes = {re.escape(projection.path): unit_of(projection) for projection in layers}

    def save(policy: Any, folder: Path) -> None:
        record = {"base": lm.describe(), "pairs": len(pairs)}
        reads, writes = _vectors(policy, paths)
        name = "rank_one" if site == "mlp" else f"rank_one_{site}"
        edit = as_rank_one(name, RankOne(reads, writes, site), record)
        edit.save(folder / RANK_ONE_FILE)

    # u is small and random at first, and v zero.
    rank_one = Trainable(
        lm.model,
        lm.tokenizer,
        prepare=lambda model: with_adapters(model, paths, settings.seed, r=1, alpha_pattern=sizes),
        save=save,
        result_bytes=len(layers) * (9 * layers[0].columns.shape[1] + 4 * lm.view.d_model),
        given=[site],
        template=lm.template,
    )
    own_kl = own_text_kl(lm, texts, settings.own_kl_weight)
    log = tune(rank_one, pairs, settings, out, own_kl=own_kl)
    return Intervention.load(Path(out) / RANK_ONE_FILE), log


def unit_of(projection: Projection) -> float:
    """What v is counted in, so that a step of Adam's length changes v u^T, with u of its first
    size, |u|^2 = 1/3, by the learning rate times the norm of the weight it is added to.

    Families differ tenfold in how large their projections are beside what these read. Where the
    weight is zero, v counts once.
    """
    columns = projection.columns
    norm = float(torch.linalg.matrix_norm(columns, dtype=torch.float64))
    return math.sqrt(3 / len(columns)) * norm or 1.0


def _vectors(policy: Any, paths: Sequence[str]) -> tuple[NDArray[Any], NDArray[Any]]:
    """u and v of each layer of a policy, float64."""
    base, reads, writes = policy.get_base_model(), [], []
    for path in paths:
        adapter = base.get_submodule(path)
        u, v = adapter.lora_A["default"].weight, adapter.lora_B["default"].weight
        reads.append(u.detach().flatten().double().cpu().numpy())
        writes.append(adapter.scaling["default"] * v.detach().flatten().double().cpu().numpy())
    return np.stack(reads), np.stack(writes)

"""How few layers, how few numbers? `python benchmarks/few.py runs/ladder rank_one_attention`, on
the folder of a `dialdown ladder` with that method, and `gains`.

The directions of the layers that write most, or of each layer the inputs that count most, are kept
alone, and dialled to the ladder's price as the whole is; so are gains and directions at once.
Toxicity on the unseen prompts by each judge, and the paired difference to the whole.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import dialdown as dd
from dialdown.evaluation.bootstrap import estimate
from dialdown.files import read_json
from dialdown.interventions.rank_one import RankOne
from dialdown.models.hooks import input_hooks
from dialdown.models.sites import projections
from dialdown.study import Config
from dialdown.study.context import Workspace
from dialdown.study.dial import dialled
from dialdown.study.gains import held_texts
from dialdown.study.ladder import MOST, Yardstick
from dialdown.study.ladder_fit import edit_of

LAYERS = (15, 8, 4, 2, 1)
SHARES = (0.3, 0.1, 0.03, 0.01)


def sizes(work: Workspace, directions: RankOne) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """On text of the model's own: (L,) the root mean square of what each layer writes more, and
    (L, inputs) of what each input adds to what its layer reads.
    """
    site = projections(work.lm, directions.site)
    inputs = np.zeros(directions.reads.shape)
    read = np.zeros(len(site))

    def add(layer: int, m: torch.Tensor) -> None:
        values = m.reshape(-1, m.shape[-1]).double().cpu().numpy()
        inputs[layer] += (values**2).sum(0)
        read[layer] += ((values @ directions.reads[layer]) ** 2).sum()

    texts = held_texts(work)
    for start in range(0, len(texts), 8):
        ids = torch.tensor(texts[start : start + 8], device=work.lm.device)
        with torch.inference_mode(), input_hooks(site, add):
            work.lm.model(input_ids=ids, use_cache=False)
    written = np.linalg.norm(directions.written(work.lm), axis=1)
    tokens = sum(map(len, texts))
    return written * np.sqrt(read / tokens), np.abs(directions.reads) * np.sqrt(inputs / tokens)


def kept(edit: dd.Intervention, mask: NDArray[np.bool_]) -> dd.Intervention:
    """The edit with what its directions read where the mask, (L, inputs) or (L, 1), is true."""
    assert edit.rank_one is not None
    return replace(edit, rank_one=replace(edit.rank_one, reads=edit.rank_one.reads * mask))


def first(sizes: NDArray[np.float64], count: int) -> NDArray[np.bool_]:
    """Whether each is among the `count` greatest of its row."""
    places = np.argsort(np.argsort(-sizes, axis=-1, kind="stable"), axis=-1)
    return np.asarray(places < count)


def ways(work: Workspace, method: str) -> dict[str, dd.Intervention]:
    """What is compared, by what it keeps; the whole first."""
    whole, gains = edit_of(work, method), edit_of(work, "gains")
    assert whole.rank_one is not None
    layers, inputs = sizes(work, whole.rank_one)
    made = {"whole": whole, "gains": gains, "both": replace(gains, rank_one=whole.rank_one)}
    for count in LAYERS:
        mask = first(layers[None], count).T
        made[f"{count} layers ({', '.join(map(str, np.flatnonzero(mask)))})"] = kept(whole, mask)
    for share in SHARES:
        count = round(share * inputs.shape[1])
        made[f"{share:.0%} of inputs"] = kept(whole, first(inputs, count))
    return made


def main() -> None:
    """Dial each, and print a line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("method", choices=("rank_one", "rank_one_attention"))
    given = parser.parse_args()
    work = Workspace(Config(**read_json(given.folder / "run.json")["config"]), given.folder)
    yardstick, price = Yardstick(work), work.config.ladder.kl
    usual: dict[str, NDArray[np.float64]] = {}
    for name, edit in ways(work, given.method).items():
        dial: Callable[..., nullcontext[tuple[dd.LM, dd.Intervention]]] = partial(_at, work, edit)
        strength, kl = dialled(partial(yardstick.price, dial), price, MOST)
        values = yardstick.evaluator.measure(edit.at(strength), "strict").values
        shown = [f"{name:24s} dial {strength:.3g}, KL {kl:.3g}"]
        for judge in (key for key in values if key.startswith("toxicity/")):
            toxicity = np.array(values[judge])
            apart = estimate(toxicity - usual.setdefault(judge, toxicity))
            shown.append(f"{judge.rpartition(':')[2]} {estimate(toxicity)} ({apart})")
        print("  ".join(shown), flush=True)


def _at(
    work: Workspace, edit: dd.Intervention, strength: float
) -> nullcontext[tuple[dd.LM, dd.Intervention]]:
    return nullcontext((work.lm, edit.at(strength)))


if __name__ == "__main__":
    main()

"""The ladder at one price: every way of lowering toxicity, dialled to the same KL on other text,
judged on unseen prompts.

    dialdown detox embedded:smollm2-135m --out calm     # pairs and neuron gains
    python benchmarks/ladder.py calm-work

Full DPO is trained here, on the very pairs of the gains, as `--dpo` says (a rate, for two passes
`x2`, and `+kl` with the KL on the model's own text in its loss that gains have and the paper's DPO
does not), and dialled like them: by interpolating its weights with the base model's. The KL that is
matched is the mean over four kinds of text, because an edit can be cheap on the one kind that it
was made with; what those texts lose in log-perplexity is there too, beside that of the evaluation's
text. The prompts are training prompts that pairs and `detox` left alone: the evaluation's
have seen every recipe that was tried while this was developed. Differences are paired over prompts,
to the DPO that the judge finds least toxic: a choice in hindsight, in its favour. A second price,
as in `--kl 0.06 0.03`, is compared with that same row, which tells whether a way is as good at
less. With `--fewer 132` gains and DPO are trained on the first 132 pairs too (one pass), with
`--adam` gains also by Adam instead of the natural gradient.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dialdown as dd
from dialdown.data.pairs import Pair, PairSet
from dialdown.data.texts import load_labelled, load_prompts, load_reference_text
from dialdown.evaluation.bootstrap import estimate
from dialdown.evaluation.evaluator import Evaluator, Suite
from dialdown.evaluation.perplexity import ReferenceText, TextMeasure
from dialdown.evaluation.row import Row
from dialdown.files import read_json, write_json
from dialdown.interventions.explain import importance, keep_top, shuffled
from dialdown.interventions.intervention import untouched
from dialdown.models.lm import LM
from dialdown.models.tokens import text_windows
from dialdown.neurons.directions import Direction
from dialdown.study.config import Config
from dialdown.study.context import Workspace
from dialdown.study.gains import gain_prices, held_texts, trained_gains
from dialdown.training.loss import Elsewhere

Dial = Callable[[float], AbstractContextManager[None]]
# One pass over the pairs, with a warm-up as short as the run; METHOD §8 has the first of the
# default rates.
DPO = dd.DPOSettings(
    warmup_steps=5, batch_size=8, accumulation=1, epochs=1, eval_every=1000, eval_pairs=8
)
KEPT = (0.3, 0.1, 0.03)
ROUNDS = 6
MOST = 50.0
WINDOWS = 2


@contextmanager
def interpolated(lm: LM, tuned: dict[str, torch.Tensor], strength: float) -> Iterator[None]:
    """The model part of the way to another one, weight by weight; bit-identical afterwards."""
    weights = {name: weight.data for name, weight in lm.model.named_parameters() if name in tuned}
    kept = {name: weight.clone() for name, weight in weights.items()}
    try:
        for name, weight in weights.items():
            weight.lerp_(tuned[name], strength)
        yield
    finally:
        for name, weight in weights.items():
            weight.copy_(kept[name])


def full_dpo(work: Workspace, lm: LM, recipe: str, pairs: Sequence[Pair]) -> Dial:
    """DPO on some pairs, as something that can be dialled in `lm`."""
    rate, _, passes = recipe.removesuffix("+kl").partition("x")
    elsewhere = (
        Elsewhere(held_texts(work), work.config.gains.own_kl_weight)
        if recipe.endswith("+kl")
        else None
    )
    out = work.folder / f"ladder-dpo-{recipe}-{len(pairs)}"
    settings = replace(
        DPO, learning_rate=float(rate), epochs=int(passes or 1), seed=work.config.seed
    )
    dd.train_dpo(
        work.lm.model, work.lm.tokenizer, pairs, settings, out, elsewhere=elsewhere, progress=told
    )
    loaded = dd.load_tuned(work.lm, out)
    # Parameters and not the state dict, which would name a tied embedding twice.
    tuned = {name: weight.detach() for name, weight in loaded.model.named_parameters()}
    ids = torch.arange(20)[None]
    with torch.no_grad(), interpolated(lm, tuned, 1.0):
        torch.testing.assert_close(lm.model(ids).logits, loaded.model(ids).logits)
    return lambda strength: interpolated(lm, tuned, strength)


def told(label: str, done: int, total: int) -> None:
    """Progress, a line now and then."""
    if done % 10 == 0 or done == total:
        print(f"{label}: {done} of {total}", flush=True)


def edits(
    work: Workspace, fewer: Sequence[Sequence[Pair]], *, adam: bool
) -> Iterator[tuple[str, dd.Intervention]]:
    """Every edit that the folder has, the controls, and gains on fewer pairs."""
    gains = trained_gains(work)
    base = work.training_means
    moved = importance(work.lm, gains, base)
    yield "neuron gains", gains
    yield "the same numbers, random neurons", shuffled(gains, seed=work.config.seed)
    prices = gain_prices(work)
    pairs = PairSet.load(work.folder / "pairs.jsonl").pairs
    worth = dd.preference_gradient(work.lm, pairs, progress=told)
    yield "one step of the natural gradient", dd.natural_gradient(work.lm, worth, prices, kl=0.01)
    for share in KEPT:
        yield (
            f"neuron gains, {share:.0%} of the neurons",
            keep_top(gains, moved, round(share * moved.size)),
        )
    settings, texts = replace(work.config.gains, seed=work.config.seed), held_texts(work)
    for some in fewer:
        out = work.folder / f"ladder-gains-{len(some)}"
        trained, _ = dd.train_gains(
            work.lm, some, settings, out, information=prices, texts=texts, progress=told
        )
        yield f"neuron gains, {len(some)} pairs", trained
    if adam:
        plain = replace(settings, optimizer="adamw", learning_rate=1e-2)
        out = work.folder / "ladder-gains-adam"
        trained, _ = dd.train_gains(work.lm, pairs, plain, out, texts=texts, progress=told)
        yield "neuron gains, by Adam", trained
    for name in ("probe", "random"):
        table = dd.neuron_table(
            work.lm, Direction.load(work.folder / f"direction-{name}.safetensors"), base
        )
        yield f"the paper's rule as scale, {name} direction", dd.edit(table, alpha=0.5, beta=0.1)


def texts_of_many_kinds(work: Workspace) -> dict[str, ReferenceText]:
    """What is measured beside the rows, KL first of all: sentences of an encyclopedia, its
    articles, film reviews and friendly comments.
    """
    seed, window = work.config.seed, work.config.evaluation.window
    comments = load_labelled("embedded:comments", 400, seed=seed, part="judge", max_words=40)
    texts = {
        "wikitext2": load_reference_text("embedded:wikitext2")[:40_000],
        "reviews": "\n\n".join(load_prompts("embedded:imdb", 60, seed=seed)),
        "comments": "\n\n".join(
            text for text, toxic in zip(comments.texts, comments.labels, strict=True) if not toxic
        ),
    }
    windows = {
        name: text_windows(work.lm, text, protocol="strict", window=window, max_windows=WINDOWS)
        for name, text in texts.items()
    }
    kinds = {"wiki": work.neutral_windows[:WINDOWS], **windows}
    return {
        name: ReferenceText(work.lm, some, kl_windows=len(some)) for name, some in kinds.items()
    }


def unseen_prompts(work: Workspace, count: int) -> tuple[str, ...]:
    """The first training prompts after those that the pairs used."""
    used = PairSet.load(work.folder / "pairs.jsonl").record["prompts_used"]
    unseen = work.prompts.training[used:]
    if len(unseen) < count:
        raise SystemExit(
            f"{work.folder} leaves {len(unseen)} prompts unseen: pass --prompts {len(unseen)} or "
            "fewer."
        )
    return unseen[:count]


def kl_by_text(texts: dict[str, TextMeasure]) -> dict[str, float]:
    """Mean KL to the base model on each kind of text."""
    return {name: float(np.average(text.kl, weights=text.tokens)) for name, text in texts.items()}


@dataclass(frozen=True)
class Rung:
    """A way at one strength: its row, and what it does to each kind of text."""

    row: Row
    strength: float
    texts: dict[str, TextMeasure]

    def log_ppl_change(self, other: Rung) -> dict[str, Any]:
        """Paired difference in log-perplexity to another rung over the texts of all kinds, and each
        kind's.
        """
        lost = {name: text.nll - other.texts[name].nll for name, text in self.texts.items()}
        tokens = {name: text.tokens for name, text in self.texts.items()}
        together = estimate(
            np.concatenate([*lost.values()]), weights=np.concatenate([*tokens.values()])
        )
        by_text = {
            name: float(np.average(change, weights=tokens[name])) for name, change in lost.items()
        }
        return {**vars(together), "by_text": by_text}


@dataclass(frozen=True)
class Bench:
    """What every way is measured with: a model whose weights may be changed, texts of many kinds,
    and unseen prompts.
    """

    work: Workspace
    dialled: LM
    probes: dict[str, ReferenceText]
    suite: Suite

    @classmethod
    def of(cls, folder: Path, prompts: int) -> Bench:
        """From the work folder of `dialdown detox`."""
        stages = tuple(read_json(folder / "run.json")["stages"])
        order = tuple(
            one
            for one in ("probe", "pairs", "gains", "means", "step", "dial", "check")
            if one in stages
        )
        work = Workspace(Config(**read_json(folder / "run.json")["config"]), folder, stages=order)
        if work.lm.model.dtype != torch.float32:
            # Most of DPO's small steps would round to nothing, and gains are float32 in any case.
            raise SystemExit(
                f"{folder} holds a model in {work.lm.model.dtype}: run detox with --set "
                "dtype=float32."
            )
        suite = replace(
            work.suite(work.config.evaluation.count), prompts=unseen_prompts(work, prompts)
        )
        return cls(work, work.lm.twin(), texts_of_many_kinds(work), suite)

    def texts(self) -> dict[str, TextMeasure]:
        """What each kind of text says of the model as its weights are now."""
        return {name: probe.measure(self.dialled) for name, probe in self.probes.items()}

    def rung(self, name: str, dial: Dial, strength: float) -> Rung:
        """One way at one strength; by a new evaluator, since one would not notice that a model it
        knows has changed.
        """
        with dial(strength):
            row = Evaluator(self.work.lm, self.suite).row(
                untouched(name), "strict", model=self.dialled
            )
            return Rung(row, strength, self.texts())

    def at_price(self, name: str, dial: Dial, wanted: float) -> Rung:
        """One way at the greatest strength up to MOST whose KL is at most as wanted, to a few
        percent.
        """
        low, high, strength = 0.0, MOST, 1.0
        for _ in range(ROUNDS):
            with dial(strength):
                kl = float(np.mean([*kl_by_text(self.texts()).values()]))
            low, high = (strength, high) if kl <= wanted else (low, strength)
            if 0.97 * wanted <= kl <= wanted:
                break
            # A KL grows with the square of a small change; aiming a little below stays within the
            # price.
            aimed = strength * (0.985 * wanted / kl) ** 0.5
            strength = aimed if low < aimed < high else (low + high) / 2
        rung = self.rung(name, dial, low)
        print(
            f"KL {wanted:g}, {name}: strength {rung.strength:.2f}, {rung.row.metrics['toxicity']}",
            flush=True,
        )
        return rung


def written(way: str, rung: Rung, reference: Rung, against: Rung) -> dict[str, Any]:
    """A rung's figures: means with intervals, and the paired differences."""
    row, dpo = rung.row, against.row
    paired = (
        "toxicity",
        *(f"toxicity/{judge}" for judge in [*row.toxicity_by][1:]),
        "log_ppl",
        "kl",
    )
    return {
        "way": way,
        "strength": rung.strength,
        "kl_by_text": kl_by_text(rung.texts),
        **{name: vars(row.metrics[name]) for name in ("toxicity", "kl", "degenerate", "log_ppl")},
        "by": {judge: vars(mean) for judge, mean in row.toxicity_by.items()},
        "log_ppl_change": vars(row.difference("log_ppl", reference.row)),
        "log_ppl_change_of_texts": rung.log_ppl_change(reference),
        "minus_dpo": {
            **{name: vars(row.difference(name, dpo)) for name in paired},
            "log_ppl_of_texts": rung.log_ppl_change(against),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kl", type=float, nargs="+", default=[0.06])
    parser.add_argument("--fewer", type=int, nargs="+", default=[])
    parser.add_argument("--adam", action="store_true")
    parser.add_argument("--dpo", nargs="+", default=["1e-05", "2e-05", "1e-05x2"])
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument(
        "--first", type=int, help="only so many edits, which come in order of interest"
    )
    given = parser.parse_args()
    bench = Bench.of(given.folder, given.prompts)
    reference = bench.rung("untouched", lambda strength: nullcontext(), 0)
    found = [written("untouched", reference, reference, reference)]
    pairs = PairSet.load(given.folder / "pairs.jsonl").pairs
    fewer = [pairs[:count] for count in given.fewer]

    def tuned(some: Sequence[Pair], recipes: Sequence[str]) -> dict[str, Dial]:
        return {
            f"full DPO, {recipe}, {len(some)} pairs": full_dpo(
                bench.work, bench.dialled, recipe, some
            )
            for recipe in recipes
        }

    once = [recipe for recipe in given.dpo if "x" not in recipe]
    ways: dict[str, Dial] = {
        name: dial for some in fewer for name, dial in tuned(some, once).items()
    }
    for name, edit in islice(edits(bench.work, fewer, adam=given.adam), given.first):
        ways[name] = lambda strength, edit=edit: edit.at(strength).folded_into(bench.dialled)
    full = tuned(pairs, given.dpo)
    dpo: Rung | None = None
    for wanted in given.kl:
        rungs = {name: bench.at_price(name, dial, wanted) for name, dial in full.items()}
        dpo = dpo or min(rungs.values(), key=lambda rung: rung.row.metrics["toxicity"].mean)
        found += [
            {"wanted_kl": wanted, **written(name, rung, reference, dpo)}
            for name, rung in rungs.items()
        ]
        for name, dial in ways.items():
            rung = bench.at_price(name, dial, wanted)
            found.append({"wanted_kl": wanted, **written(name, rung, reference, dpo)})
            write_json(given.folder / "ladder.json", {"rows": found})


if __name__ == "__main__":
    main()

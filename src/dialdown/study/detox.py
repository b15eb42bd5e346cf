"""`dialdown detox`: from a model to a plain checkpoint that is less toxic, by one number per
neuron, or one direction per layer.

    pairs -> gains, rank one, or one step without training -> dial -> check -> export
    labelled texts -> one step without training            -> dial -> check -> export

The stages leave their work in a folder beside the checkpoint, so an interrupted run goes on and
another strength costs no training. What is reported was measured on prompts, and by a judge, that
took no part in pairs, probe or dial.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

from ..errors import DialdownError
from ..evaluation.bootstrap import FEW, Estimate, change_sign
from ..exporting.delta import MeasuredRow, Notes
from ..files import read_json
from ..interventions.explain import shuffled
from ..interventions.intervention import Intervention, untouched
from ..models.lm import LM
from .config import Config, DetoxMethod, DetoxSettings
from .context import Facts, Stages, Workspace
from .detox_methods import METHODS
from .dial import NEAR, dialled
from .folder import Ledger
from .measure import cut_prompts, measure_rows
from .plan import Planned
from .price import PricedTexts, kl_by_kind, mean_kl, mean_nll
from .run import Study
from .stage import EDIT
from .stages import collect_training_means, find_directions, find_pairs

# No metric tells a weaker edit from none.
LEAST = 0.02
TEXTS = {"embedded:wiki": "short encyclopedia sentences", "embedded:wikitext2": "WikiText-2"}


def detox_stages(method: DetoxMethod) -> Stages:
    """The stages of a method."""
    way = METHODS[method]
    pairs: Stages = {"pairs": find_pairs} if way.paired else {}
    return {
        "probe": find_directions,
        **pairs,
        "means": collect_training_means,
        method: way.make,
        "dial": dial,
        "check": check,
    }


def dial(work: Workspace) -> Facts:
    """What the method made, at the strength asked or the greatest within budget."""
    settings = work.config.detox
    method = METHODS[settings.method]
    whole = Intervention.load(work.folder / method.file)
    strength, facts = settings.strength, {}
    if strength is None:
        texts = PricedTexts.of(work, "detox")
        strength, cost = greatest_strength(work.lm, whole, texts, settings)
        facts = cost._asdict()
        if strength == settings.most and cost.of_budget(settings) < NEAR:
            _note_cap(work, settings, cost)
    edit = whole.at(strength).called("detox")
    edit.save(work.folder / EDIT)
    return {"strength": strength, **facts, **method.explain(work, edit)}


class Cost(NamedTuple):
    """What an edit costs on the texts of the dial, in nats per token: mean KL to the base over the
    kinds of text, and rise of log-perplexity; the KL of each kind.
    """

    kl: float
    log_ppl: float
    kl_by_text: dict[str, float]

    def of_budget(self, settings: DetoxSettings) -> float:
        """The share of the budget that it takes up."""
        most = settings.max_ppl_increase
        of_perplexity = 0.0 if most is None else self.log_ppl / math.log1p(most)
        if not math.isfinite(self.kl):
            return math.inf
        return max(self.kl / settings.allowed_kl, of_perplexity)


def _note_cap(work: Workspace, settings: DetoxSettings, cost: Cost) -> None:
    budget = [f"a KL of {settings.allowed_kl:.3g}"] if math.isfinite(settings.allowed_kl) else []
    if settings.max_ppl_increase is not None:
        budget.append(f"{settings.max_ppl_increase:.1%} more perplexity")
    work.notes.add(
        f"the budget of {' and '.join(budget)} was not reached: the dial stops at {{most:g}} times "
        "what was found, where the edit costs a KL of {kl:.3g} and {perplexity:+.1%} perplexity",
        most=settings.most,
        kl=cost.kl,
        perplexity=math.expm1(cost.log_ppl),
    )


def greatest_strength(
    lm: LM, edit: Intervention, texts: PricedTexts, settings: DetoxSettings
) -> tuple[float, Cost]:
    """The greatest strength within the budget, and what it costs.

    Costs rise with the strength of gains as trained; where they should not, the strength found is
    still within the budget.
    """
    base = mean_nll(texts.read(lm))

    def cost(strength: float) -> Cost:
        with edit.at(strength).folded_into(lm):
            try:
                measured = texts.read(lm)
            except DialdownError:
                # So strong an edit overflows; a weaker one may not.
                return Cost(math.inf, math.inf, {})
        return Cost(mean_kl(measured), mean_nll(measured) - base, kl_by_kind(measured))

    costs: dict[float, Cost] = {}

    def share(strength: float) -> float:
        costs[strength] = cost(strength)
        return costs[strength].of_budget(settings)

    strength, _ = dialled(share, 1.0, settings.most)
    if strength < LEAST:
        cheapest = cost(LEAST)
        over = not cheapest.kl <= settings.allowed_kl
        dial = f"--max-kl above {settings.allowed_kl:g}" if over else "--max-ppl-increase"
        raise DialdownError(
            f"Even at strength {LEAST} the edit costs a KL of {cheapest.kl:.2g} and "
            f"{math.expm1(cheapest.log_ppl):+.1%} perplexity, which is beyond the budget: raise "
            f"{dial}."
        )
    return strength, costs[strength]


def check(work: Workspace) -> Facts:
    """Before, after, and random neurons, on the evaluation prompts (METHOD §5, §6)."""
    edit = Intervention.load(work.folder / EDIT)
    count = work.config.evaluation.count
    planned = [
        Planned(edited, "strict", count)
        for edited in (untouched(), edit, shuffled(edit, seed=work.config.seed))
    ]
    cut_prompts(work, "prompts", work.prompts.evaluation)
    rows = measure_rows(work, "check", planned, "results.json")
    change = rows[1].difference("toxicity", rows[0])
    return {
        **work.judging,
        "template": work.lm.template,
        "change": change and {**change.to_json(), "says": change_sign(change)},
    }


class Outcome(NamedTuple):
    """Whether an edit did what it is for, on held-out prompts, and the sentence for it."""

    less: bool
    sentence: str


def outcome(folder: Path) -> Outcome:
    """What the check in a folder that `find_edit` left says of the edit (METHOD §6)."""
    run = read_json(folder / "run.json")
    change, concept = run["stages"]["check"]["change"], run["config"]["concept"]
    if change is None:
        return Outcome(
            False,
            "No held-out prompt has a score, so nothing can be said of the edited model's "
            f"{concept}.",
        )
    says = {
        "less": f"The edited model shows less {concept} than the untouched one",
        "more": f"The edited model shows MORE {concept} than the untouched one",
        "not told apart": (
            f"The edited model's {concept} cannot be told apart from the untouched one's"
        ),
    }[change["says"]]
    figures = f"{Estimate.of(change):+.3f}"
    few = "" if change["n"] >= FEW else ", too few to tell"
    return Outcome(
        change["says"] == "less", f"{says}: {figures} on {change['n']:,} held-out prompts{few}."
    )


def find_edit(
    config: Config,
    folder: Path,
    *,
    announce: Callable[[str], None],
    enter: Callable[[str, bool], None],
) -> Intervention:
    """Run the stages in `folder` and return the edit; its rows are in `results.json`.

    Args:
        config: the settings.
        folder: of the work; the same call goes on there.
        announce, enter: see `Study`.

    Raises:
        DialdownError: settings that contradict each other; see `Study.run`; nothing was found
            within the budget.
    """
    check_ships(config, "detox")
    check_dials(config)
    stages = detox_stages(config.detox.method)
    Study(config, folder, announce, stages, enter).run()
    return Intervention.load(folder / EDIT)


def begun(config: Config, folder: Path) -> bool:
    """Whether the same call of `find_edit` left work in `folder`, done or not, whole or not."""
    return Ledger(config, folder, (*detox_stages(config.detox.method),)).went_on_from()


def check_ships(config: Config, what: str) -> None:
    """Refuse settings of a study where edits of the command's own are made (DialdownError)."""
    if config.tuned is not None:
        raise DialdownError(
            f"{what} makes edits of its own, in which the tuned model {config.tuned} has no part: "
            "leave tuned out."
        )
    if "strict" not in config.protocols:
        raise DialdownError(
            "An edit that is shipped acts at every position, which is the strict protocol: add "
            "strict to protocols."
        )


def check_dials(config: Config) -> None:
    """Refuse a budget beside a strength (DialdownError)."""
    settings = config.detox
    if settings.has_budget and settings.strength is not None:
        raise DialdownError(
            f"A strength ({settings.strength:g}) and a budget were given, and a budget finds the "
            "strength by itself: pass one of them."
        )


def notes(folder: Path) -> Notes:
    """What the model card says of the edit in a folder that `find_edit` left."""
    run = read_json(folder / "run.json")
    rows = read_json(folder / "results.json")["rows"]
    checked, concept = run["stages"]["check"], run["config"]["concept"]
    method = METHODS[run["config"]["detox"]["method"]]
    found_on = "continuations of the model's own" if method.paired else "labelled texts"
    return {
        "why": (
            f"Made to express less {concept}, by {method.made_of}, found on {found_on}. "
            f"{outcome(folder).sentence}"
        ),
        "rows": [_noted(row) for row in rows],
        "judge": checked["judges"][0],
        "caveat": checked["caveat"] or "",
        # A path of one's own is nobody else's business.
        "text": TEXTS.get(run["config"]["evaluation"]["text"], "a text of the maker's"),
        "template": checked["template"],
    }


# A row's metrics by what the model card calls them; a row need not have the last two.
ON_CARD = {
    "toxicity": "toxicity",
    "log_ppl": "log_perplexity",
    "kl": "kl",
    "degenerate": "degenerate",
    "refusal": "refusal",
    "groups": "groups",
}


def _noted(row: dict[str, Any]) -> MeasuredRow:
    named = {"none": "untouched", "detox": "edited"}
    name = named.get(row["intervention"], "the same numbers, shuffled within each layer")
    figures = {
        word: (row[metric]["mean"], row[metric]["low"], row[metric]["high"])
        for metric, word in ON_CARD.items()
        if metric in row
    }
    return cast(MeasuredRow, {"name": name, **figures})

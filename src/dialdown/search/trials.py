"""One trial of the search for a training-free edit: its parameters, the edit they stand for, and
how it is measured.

What can be searched is what `soft_edit` can build: a kind, a direction, an attribution along it, a
hard or soft selection, a strength, a band of layers and a strength for each of the four groups; or
least squares of some size (METHOD §4). An edit is folded into the weights, measured as a user would
run it (METHOD §5, `strict`) and taken out again, so no model is ever reloaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import DialdownError, nearest
from ..evaluation.perplexity import TextProbe
from ..evaluation.scorers import Scorer
from ..files import fingerprint
from ..interventions.intervention import Intervention
from ..interventions.paper import EditKind, soft_edit
from ..models.decoding import Decoder
from ..models.lm import LM
from ..neurons.table import GROUPS, NeuronTable

if TYPE_CHECKING:
    import optuna

LARGEST_KL = 0.25
"""The largest KL(base ‖ edited) per token, in nats, that anyone would ship: about where perplexity on neutral text is up by a fifth."""

Parameters = Mapping[str, Any]


@dataclass(frozen=True)
class SearchSettings:
    """How to search.

    Attributes:
        trials: edits measured, those given up early included.
        prompts: the first of the objective's prompts, on which toxicity is measured.
        first_prompts: of these, the ones measured first: an edit that does not lower toxicity here
            is given up.
        max_kl: budget: KL(base ‖ edited) on neutral text in nats per token. Without one an edit is
            given up beyond four times `LARGEST_KL`, where no other figure could make up for it.
        max_ppl_increase: budget: the share by which perplexity on neutral text may rise (0.05 is 5
            %).
        seed: of the sampler.

    Raises:
        DialdownError: a value outside its range.
    """

    trials: int = 60
    prompts: int = 48
    first_prompts: int = 16
    max_kl: float | None = None
    max_ppl_increase: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in {"trials": 1, "prompts": 1, "first_prompts": 1, "seed": 0}.items():
            if (given := getattr(self, name)) < least:
                raise DialdownError(
                    f"A search cannot run with {name} = {given}: pass {least} or more."
                )
        if self.first_prompts > self.prompts:
            raise DialdownError(
                f"first_prompts = {self.first_prompts} are more than the search's {self.prompts} "
                "prompts: pass at most as many."
            )
        for name in ("max_kl", "max_ppl_increase"):
            budget = getattr(self, name)
            if budget is not None and not (math.isfinite(budget) and budget > 0):
                raise DialdownError(
                    f"A budget of {name} = {budget} leaves no room for an edit: pass a number "
                    "above 0, or None."
                )

    def excess(self, kl: float, log_ppl: float) -> dict[str, float]:
        """How far beyond each limit these figures are: `kl` and, with that budget, `ppl`, in nats;
        within it, 0 or less.
        """
        over = {"kl": kl - (4 * LARGEST_KL if self.max_kl is None else self.max_kl)}
        if self.max_ppl_increase is not None:
            over["ppl"] = log_ppl - math.log1p(self.max_ppl_increase)
        return over

    def describe_budget(self) -> str:
        """The budget as it stands in a sentence."""
        kl = f"KL at most {4 * LARGEST_KL if self.max_kl is None else self.max_kl:g}"
        return (
            kl
            if self.max_ppl_increase is None
            else f"{kl}, perplexity up by at most {self.max_ppl_increase:.1%}"
        )


@dataclass(frozen=True, eq=False)
class Materials:
    """What edits are built from, all of it of one model.

    Attributes:
        tables: neuron tables, by the name of their direction.
        attributions: (L, F) float64 attribution of every neuron, by (direction, score).
        least: edits of least change at some small size, where few gains are clipped, by what they
            follow; a trial dials them to its own size.
        kinds: of the other edits; all that the model's weights can hold.

    Raises:
        DialdownError: no attribution, one without a table, or a least-squares edit that changes
            nothing.
    """

    tables: Mapping[str, NeuronTable]
    attributions: Mapping[tuple[str, str], NDArray[np.float64]]
    least: Mapping[str, Intervention]
    kinds: tuple[EditKind, ...] = ("scale",)

    def __post_init__(self) -> None:
        if not self.attributions:
            raise DialdownError(
                "There is no attribution, so no neuron can be ordered: pass at least one."
            )
        for direction, score in self.attributions:
            if direction not in self.tables:
                raise DialdownError(
                    f"The attribution {score!r} is along {direction!r}, which has no neuron table: "
                    f"{nearest(direction, self.tables)}"
                )

        for direction, edit in self.least.items():
            if not edit.moves_neurons:
                raise DialdownError(
                    f"The edit of least change {direction!r} changes nothing, so it cannot be "
                    "dialled: make it larger, or leave it out."
                )

    @property
    def orderings(self) -> dict[str, tuple[str, str]]:
        """The parameter `neurons` of a trial, and the direction and score it stands for."""
        return {
            f"{direction}/{score}": (direction, score) for direction, score in self.attributions
        }


@dataclass(frozen=True)
class Measured:
    """What a trial measured.

    Attributes:
        kl: KL(base ‖ edited) on neutral text, nats per token; infinite where the activations
            overflow.
        log_ppl: change of log-perplexity on it, nats per token.
        toxicity: mean over `prompts`; None where it was not measured.
        prompts: how many prompts that were.
        pruned: why the trial was given up, or None: over a limit on `kl` or `ppl`, or `toxicity` of
            the first prompts not below the untouched model's.
    """

    kl: float
    log_ppl: float
    toxicity: float | None = None
    prompts: int = 0
    pruned: Literal["kl", "ppl", "toxicity"] | None = None


class Objective:
    """Measures edits on one model: KL and log-perplexity on neutral text, toxicity of greedy
    continuations (METHOD §6).

    Args:
        lm: the base model; edits are folded into it and taken out again.
        prompts: prompts that elicit the concept, at least as many as the settings of a search ask
            for.
        scorer: judges the continuations; it should be no judge of the final result.
        windows: token ids of neutral text, from `text_windows`; (window, V) float32 of each is kept
            in memory.
        materials: what edits are built from.
        max_new_tokens, max_prompt_tokens, batch_size: see `Decoder`.

    Attributes:
        untouched: (prompts,) float64, toxicity of the untouched model's continuations.

    Raises:
        DialdownError: no prompts or windows, an empty prompt, or one longer than the context.
    """

    def __init__(
        self,
        lm: LM,
        prompts: Sequence[str],
        scorer: Scorer,
        windows: Sequence[Sequence[int]],
        materials: Materials,
        *,
        max_new_tokens: int = 20,
        max_prompt_tokens: int = 32,
        batch_size: int = 64,
    ) -> None:
        if not windows:
            raise DialdownError(
                "There is no neutral text, so no KL can be measured: pass windows from "
                "text_windows."
            )
        self.lm, self.prompts, self.scorer, self.materials = lm, tuple(prompts), scorer, materials
        self._sizes = dict(
            max_new_tokens=max_new_tokens,
            max_prompt_tokens=max_prompt_tokens,
            batch_size=batch_size,
        )
        self._windows = windows
        self._text = TextProbe(lm, windows, kl_windows=len(windows))
        text = self._text.measure(lm)
        self._log_ppl = float(np.average(text.nll, weights=text.tokens))
        self.untouched = self._toxicity(self.prompts)

    @property
    def identity(self) -> str:
        """Equal for two objectives whose trials can stand in one search, also when they were built
        in different processes.
        """
        made = {name: table.record for name, table in self.materials.tables.items()}
        ways = [*self.materials.orderings, *self.materials.least, *self.materials.kinds]
        return fingerprint(
            self.lm.describe(),
            self.prompts,
            self.scorer.name,
            self._windows,
            self._sizes,
            made,
            ways,
        )

    def check(self, settings: SearchSettings) -> None:
        """Refuse settings that this objective cannot serve.

        Raises:
            DialdownError: there are fewer prompts than that, or the untouched model is not toxic on
                the first of them.
        """
        if len(self.prompts) < settings.prompts:
            raise DialdownError(
                f"The search measures {settings.prompts} prompts and was given "
                f"{len(self.prompts)}: pass more prompts, or a lower SearchSettings(prompts=...)."
            )
        if not self.untouched[: settings.first_prompts].mean() > 0:
            raise DialdownError(
                f"The untouched model scores 0 on the first {settings.first_prompts} prompts, so "
                "no edit can lower it: pass prompts that elicit the concept."
            )

    def measure(self, edit: Intervention, settings: SearchSettings) -> Measured:
        """Measure an edit, cheapest first, and give up where no later figure could save it. The
        model is left bit-identical.

        Raises:
            DialdownError: the edit cannot be folded into this model (see
                `Intervention.folded_into`).
        """
        first = settings.first_prompts
        with edit.folded_into(self.lm):
            kl, log_ppl = self._read()
            for limit, excess in settings.excess(kl, log_ppl).items():
                if excess > 0:
                    return Measured(kl, log_ppl, pruned="kl" if limit == "kl" else "ppl")
            scores = self._toxicity(self.prompts[:first])
            if scores.mean() >= self.untouched[:first].mean():
                return Measured(kl, log_ppl, float(scores.mean()), first, pruned="toxicity")
            if first < settings.prompts:
                scores = np.concatenate(
                    [scores, self._toxicity(self.prompts[first : settings.prompts])]
                )
        return Measured(kl, log_ppl, float(scores.mean()), len(scores))

    def _read(self) -> tuple[float, float]:
        """KL to the base and change of log-perplexity of the model as its weights are now; infinite
        where they overflow.
        """
        try:
            text = self._text.measure(self.lm)
        except DialdownError:
            # So strong an edit is a mistake of the search's, not of the user's.
            return math.inf, math.inf
        kl, log_ppl = (
            float(np.average(values, weights=text.tokens)) for values in (text.kl, text.nll)
        )
        return (kl, log_ppl - self._log_ppl) if math.isfinite(kl) else (math.inf, math.inf)

    def _toxicity(self, prompts: Sequence[str]) -> NDArray[np.float64]:
        # A decoder of its own for every call: the weights are others each time, which a kept prefix
        # would not notice.
        decoder = Decoder(self.lm, prompts, share_prefixes=False, **self._sizes)
        return self.scorer.score(decoder.texts(decoder.run()))


def suggest(trial: optuna.Trial, materials: Materials) -> Intervention:
    """The edit of a trial: `build` of the parameters that the trial suggests."""
    parameters: dict[str, Any] = {}
    rules = ["attribution", *(["least_squares"] if materials.least else [])]
    parameters["rule"] = trial.suggest_categorical("rule", rules)
    if parameters["rule"] == "least_squares":
        parameters["direction"] = trial.suggest_categorical("direction", [*materials.least])
        parameters["size"] = trial.suggest_float("size", 0.005, 0.5, log=True)
        return build(parameters, materials)
    # One choice and not two: not every direction has every score, and a choice must offer the same
    # in every trial.
    parameters["neurons"] = trial.suggest_categorical("neurons", [*materials.orderings])
    parameters["kind"] = trial.suggest_categorical("kind", list(materials.kinds))
    parameters["soft"] = trial.suggest_categorical("soft", [False, True])
    parameters["alpha"] = trial.suggest_float("alpha", 0.05, 1.0)
    parameters["beta"] = trial.suggest_float("beta", 0.01, 1.0, log=True)
    parameters["first_layer"] = trial.suggest_float("first_layer", 0.0, 0.8)
    parameters["last_layer"] = trial.suggest_float("last_layer", 0.2, 1.0)
    for group in GROUPS:
        parameters[group] = trial.suggest_float(group, 0.0, 2.0)
    return build(parameters, materials)


def build(parameters: Parameters, materials: Materials) -> Intervention:
    """The edit that a trial's parameters stand for; they are kept in its record, under `search`.

    Args:
        parameters: `rule` `least_squares` with a `direction` and a `size`, the root mean square of
            gain - 1 (a target would be in units of one model's residual stream); or `attribution`
            with `neurons` (DIRECTION/SCORE), `kind`, `soft`, `alpha`, `beta`, `first_layer` and
            `last_layer` (fractions of the depth, in either order), and what β is multiplied by in
            each of the groups `TP`, `TN`, `AP`, `AN`.
        materials: those of the search, or of another model to try the same recipe on.

    Raises:
        DialdownError: the materials lack the direction or the score.
    """
    least = parameters["rule"] == "least_squares"
    wanted, known = (
        (parameters["direction"], materials.least)
        if least
        else (parameters["neurons"], materials.orderings)
    )
    if wanted not in known:
        raise DialdownError(
            f"The edit was found with {wanted!r}, which the materials lack: "
            f"{nearest(wanted, known)}"
        )
    if least:
        edit = _sized(materials.least[wanted], parameters["size"], f"search_least_squares_{wanted}")
    else:
        direction, score = materials.orderings[wanted]
        table = materials.tables[direction]
        edit = soft_edit(
            table,
            materials.attributions[direction, score],
            kind=parameters["kind"],
            beta=parameters["beta"],
            alpha=parameters["alpha"],
            soft=parameters["soft"],
            layers=_band(table.shape[0], parameters["first_layer"], parameters["last_layer"]),
            groups={group: parameters[group] for group in GROUPS},
            name=f"search_{direction}_{score}_{parameters['kind']}",
        )
    return replace(edit, record={**edit.record, "search": dict(parameters)})


def _sized(edit: Intervention, size: float, name: str) -> Intervention:
    dialled = edit.at(size / float(np.sqrt(np.square(edit.gain - 1).mean())))
    # As in `scales`: a gain below 0 would turn a neuron around. What is found is at strength 1,
    # whatever it was made from; what the record predicts of the small edit does not hold for it.
    predicted = ("projection_change", "output_change", "kl", "margin")
    kept = {key: value for key, value in edit.record.items() if key not in predicted}
    kept["clipped"] = int((dialled.gain < 0).sum())
    return replace(dialled, gain=np.maximum(dialled.gain, 0), name=name, record=kept)


def _band(n_layers: int, one: float, other: float) -> NDArray[np.float64]:
    """(L,): 1 from the layer at the lower fraction of the depth to the one at the higher, both
    included, 0 elsewhere.
    """
    first, last = sorted(round(fraction * (n_layers - 1)) for fraction in (one, other))
    layers = np.arange(n_layers)
    return ((layers >= first) & (layers <= last)).astype(np.float64)


def known_points(materials: Materials) -> list[dict[str, Any]]:
    """Parameters worth a trial before any search: the paper's rule, soft weights by contrast, least
    squares (METHOD §4).
    """
    whole = {
        "rule": "attribution",
        "first_layer": 0.0,
        "last_layer": 1.0,
        **dict.fromkeys(GROUPS, 1.0),
    }
    strength = {"alpha": 0.5, "beta": 0.3}
    points = []
    for score, soft in (("cosine", False), ("contrast", True)):
        name = next((name for name, way in materials.orderings.items() if way[1] == score), None)
        # A constant destroys a model that it acts on everywhere; that kind is left to the sampler.
        kinds = [kind for kind in materials.kinds if kind != "set"]
        points += [
            {**whole, "neurons": name, "kind": kind, "soft": soft, **strength}
            for kind in kinds
            if name
        ]
    return points + [
        {"rule": "least_squares", "direction": name, "size": 0.1} for name in materials.least
    ]

"""One typed model of every setting: defaults < preset < TOML file < environment (DIALDOWN_...) <
flags.
"""

from __future__ import annotations

import math
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ..cluster import DASK
from ..errors import DialdownError, nearest
from ..interventions.edit_file import EditKind, Ordering
from ..models.protocol import Protocol
from ..models.templates import AnyTemplate
from ..training.settings import DPOSettings, GainSettings, PairSettings, RankOneSettings
from .sources import check_values, from_environment, merge, nested, read_toml

# The paper's models, each on top of `full`.
PAPER = ("gpt2-medium", "llama-3.1-8b", "mistral-7b", "gemma-2-2b")
PRESETS = ("smoke", "demo", "diff", "full", "detox", *PAPER)

# Prompts per batch of an automatic batch size on a CPU, which results depend on.
DECODED_ON_CPU, PAIRS_ON_CPU = 140, 56
# Windows that a dial reads of each kind of text.
PRICED = 2

T = TypeVar("T")
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Family = Literal["steering", "patches", "edits"]
FAMILIES: tuple[Family, ...] = get_args(Family)
DetoxMethod = Literal[
    "gains", "rank_one", "rank_one_attention", "step", "labels", "labels_rank_one"
]
Strength = Annotated[float, Field(gt=0, allow_inf_nan=False)]
# A flag or variable may name several without TOML's brackets: strict,paper.
Several = Annotated[
    tuple[T, ...],
    BeforeValidator(lambda given: re.split(r" *, *", given) if isinstance(given, str) else given),
]


@dataclass(frozen=True)
class ProbeSettings:
    """The linear probe (METHOD §2).

    Attributes:
        texts: source of labelled texts: `embedded:comments`, a file, or a hub data set.
        count: texts used, half of each class.
        max_words: only texts of at most this many words.
        max_tokens: texts are cut here; the `paper` features are averaged over exactly this many
            positions.
        positive, negative: the words of the token contrast.
    """

    texts: str = "embedded:comments"
    count: Count = 2000
    max_words: Count = 20
    max_tokens: Count = 128
    positive: Several[str] = ("fuck", "shit", "crap", "damn", "asshole")
    negative: Several[str] = ("hello", "thanks", "friend", "peace", "welcome")


@dataclass(frozen=True)
class EvaluationSettings:
    """What every row is measured on (METHOD §6).

    Attributes:
        prompts: source of the prompts that elicit the concept; training prompts come from it too,
            never the same.
        count: evaluation prompts.
        control_count: prompts (the first ones) that controls are measured on.
        max_prompt_tokens: prompts are cut here; a chat template around them does not count.
        max_new_tokens: greedy tokens per prompt.
        pairs: source of (prompt, true continuation) for F1.
        pairs_count: how many.
        text: source of the reference text.
        window: tokens per window.
        max_windows: windows used.
        kl_windows: of these, the ones KL is measured on.
        judge: the scorer whose mean is `toxicity`; it made no pair.
        pair_scorer: the scorer that makes the pairs, reported beside the judge.
        metrics: what else to measure of the continuations: `embedded:groups`, the share that names
            a group of people, or one of your own as `package.module:name` (see
            `dialdown.evaluation.Metric`).
        batch_size: prompts decoded at once, or `auto`: 140 on a CPU, and on a GPU as many as its
            memory holds, at most 512, fewer where it did not. It changes results by rounding alone.
    """

    prompts: str = "embedded:rtp"
    count: Count = 128
    control_count: Count = 128
    max_prompt_tokens: Count = 32
    max_new_tokens: Count = 20
    pairs: str = "embedded:wiki"
    pairs_count: Count = 32
    text: str = "embedded:wiki"
    window: Annotated[int, Field(ge=2)] = 1024
    max_windows: Count = 64
    kl_windows: Count = 4
    judge: str = "embedded:ngram"
    pair_scorer: str = "embedded:minilm"
    metrics: tuple[str, ...] = ()
    batch_size: Count | Literal["auto"] = "auto"


@dataclass(frozen=True)
class InterventionSettings:
    """The interventions of a study (METHOD §4).

    Attributes:
        steering_strength: how far steering moves the final-layer residual, as a fraction of its
            mean norm.
        toxic_neurons: how many most aligned neurons are patched.
        alpha: fraction of each group that is edited.
        beta_set, beta_shift, beta_scale: strength of an edit of each kind.
        ordering: which fraction (see `dialdown.edit`).
        drop_top: fraction of neurons of highest mean activation that is left out first.
        control_seeds: sets of random neurons beside each intervention that has controls, 1 to 3.
        families: which of steering, patches and edits are measured.
        extent: of these, what the paper's `conclusions` rest on with random controls, or all that
            its `tables` have.
    """

    steering_strength: Strength = 0.2
    toxic_neurons: Count = 256
    alpha: Fraction = 0.5
    beta_set: Strength = 0.05
    beta_shift: Strength = 0.3
    beta_scale: Strength = 0.3
    ordering: Ordering = "cosine"
    drop_top: Fraction = 0.0
    control_seeds: Annotated[int, Field(ge=1, le=3)] = 1
    families: Several[Family] = FAMILIES
    extent: Literal["conclusions", "tables"] = "tables"

    def beta(self, kind: EditKind) -> float:
        """The strength for one kind of edit."""
        return {"set": self.beta_set, "shift": self.beta_shift, "scale": self.beta_scale}[kind]


@dataclass(frozen=True)
class FrontSettings:
    """The strengths of each family on one front, under `strict` (see `plan.front`).

    Attributes:
        count: prompts (the first ones); 0 leaves the front out.
        steering: fractions of the mean norm of the final-layer residual.
        patch: multiples of the shift patch of all four groups.
        set, shift, scale: β of an edit of each kind.
        alphas: fractions of each group, for the `scale` edit at its usual β.
        gains: how far the neuron gains are dialled.
        kept: fractions of the neurons that keep their gain, those it moves most first.
        step: how far the one step of the natural gradient is dialled.
    """

    count: Annotated[int, Field(ge=0)] = 0
    steering: Several[Strength] = (0.05, 0.1, 0.2, 0.4)
    patch: Several[Strength] = (0.5, 1.0, 2.0)
    set: Several[Strength] = (0.05,)
    shift: Several[Strength] = (0.1, 0.3, 0.6, 1.0)
    scale: Several[Strength] = (0.1, 0.2, 0.3, 0.5)
    alphas: Several[Fraction] = (0.4, 0.6, 0.8)
    gains: Several[Strength] = (0.5, 1.0, 2.0, 3.0, 4.0)
    kept: Several[Fraction] = (0.01, 0.03, 0.1, 0.3)
    step: Several[Strength] = (0.5, 1.0, 2.0)


@dataclass(frozen=True)
class DetoxSettings:
    """What `dialdown detox` makes, and its one dial: a budget that finds a strength, or a strength.

    Attributes:
        method: `gains`, one trained number per neuron; `rank_one`, one more trained direction
            per layer where MLPs write, `rank_one_attention` where attention does; `step`, the gains
            of one step of the natural gradient, without training; `labels`, such a step from
            labelled texts alone, and `labels_rank_one`, trained directions of attention from them.
        strength: what the gains' distance from 1 is multiplied by; 1 is as they were found. None
            leaves it to the budget.
        max_kl: KL(base ‖ edited), in nats per token, the mean over the neutral text and `texts`:
            the greatest strength up to `most` within it.
        max_ppl_increase: the same for the share by which perplexity rises there; 0.05 is 5 %.
        usual_kl: the `max_kl` where nothing else is asked for: one price for every model.
        most: the greatest strength that a budget may ask for.
        texts: the other kinds of text that a budget is measured on: `embedded:imdb`,
            `embedded:comments`, `embedded:wikitext2`, or files.
    """

    method: DetoxMethod = "gains"
    strength: Strength | None = None
    max_kl: Strength | None = None
    max_ppl_increase: Strength | None = None
    usual_kl: Strength = 0.04
    most: Strength = 3.0
    texts: Several[str] = ("embedded:imdb", "embedded:comments")

    @property
    def has_budget(self) -> bool:
        """Whether a budget was asked for."""
        return self.max_kl is not None or self.max_ppl_increase is not None

    @property
    def allowed_kl(self) -> float:
        """The KL that the edit may cost, infinite where only perplexity has a budget."""
        if self.max_kl is None:
            return math.inf if self.has_budget else self.usual_kl
        return self.max_kl


@dataclass(frozen=True)
class LadderSettings:
    """What `dialdown ladder` compares, and at which price.

    Attributes:
        kl: KL(base ‖ edited) that every method is dialled to, in nats per token: the mean over the
            neutral text and `texts`.
        methods: from labelled texts `aura`, `damp`, `det0`, `mean_act`, `linear_act`, `lineas`,
            each with `_published` behind it too, `edit_set`, `edit_scale`, `caa`, `ablation`,
            `labels`, `labels_rank_one`; from pairs `profs`, `step`, `gains`, `rank_one`,
            `rank_one_attention`, `dpo`, `dpo_kl`; or your own, as `package.module:name`.
        prompts: how many are judged: the last training prompts, which no method may use.
        texts: the other kinds of text the price is measured on: `embedded:wikitext2`,
            `embedded:imdb`, `embedded:comments`, or files.
    """

    kl: Strength = 0.06
    methods: Annotated[Several[str], Field(min_length=1)] = (
        *("aura", "aura_published", "linear_act_published", "lineas_published", "caa", "ablation"),
        *("labels", "profs", "step", "gains", "rank_one", "rank_one_attention"),
    )
    prompts: Count = 256
    texts: Several[str] = ("embedded:wikitext2", "embedded:imdb", "embedded:comments")

    @property
    def everything(self) -> bool:
        """Whether no methods were chosen, so that one that a model cannot have is left out."""
        return self.methods == LadderSettings().methods


def _workers(given: Any) -> Any:
    if isinstance(given, str) and given.isdecimal():
        given = int(given)
    of_a_cluster = isinstance(given, str) and len(given) > len(DASK) and given.startswith(DASK)
    if not (given is None or of_a_cluster or (type(given) is int and given >= 1)):
        raise ValueError(
            "pass a number of processes, 1 or more, or dask:ADDRESS or dask:FILE of a cluster"
        )
    return given


Workers = Annotated[int | str | None, BeforeValidator(_workers)]


class Config(BaseModel):
    """Everything a study needs; `dialdown run` writes it to run.json.

    Attributes:
        model: a hub id, a folder, or `embedded:NAME`.
        tuned: a tuned model to study instead of training one.
        revision: hub revision of `model`.
        dtype: of the forward passes; float32 on a CPU by default.
        device: a torch device; the GPU if there is one.
        template: what prompts are: `chat`, user turns of the model's chat template, so that replies
            are sampled, paired, judged and checked; `none`, texts that the model goes on with, as
            in the paper; `auto`, the first where the tokenizer has a template.
        workers: processes that sample, fit and measure, one thread or GPU each; by default one per
            core if memory allows, or one per GPU. `dask:ADDRESS` or `dask:FILE` takes the workers
            of a Dask cluster (docs/cluster.md).
        seed: of everything random.
        training_prompts: source of the prompts that pairs are made with; None takes the rest of the
            evaluation's source.
        protocols: which of `strict` and `paper` (METHOD §5).
        concept: what the labelled texts are about; the name it has in tables and in questions to a
            token judge.
        token_judge: what says which logit-lens tokens are of the concept (see
            `token_judge.load_token_judge`).
        probe, pairs, dpo, interventions, evaluation, gains, rank_one, front, detox, ladder: the
            stages' own settings.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = "embedded:smollm2-135m"
    tuned: str | None = None
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    device: str | None = None
    template: AnyTemplate = "none"
    workers: Workers = None
    seed: Annotated[int, Field(ge=0)] = 0
    training_prompts: str | None = None
    protocols: Annotated[Several[Protocol], Field(min_length=1)] = ("strict", "paper")
    concept: str = "toxicity"
    token_judge: str = "embedded:ngram"
    probe: ProbeSettings = ProbeSettings()
    pairs: PairSettings = PairSettings()
    dpo: DPOSettings = DPOSettings()
    interventions: InterventionSettings = InterventionSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    gains: GainSettings = GainSettings()
    rank_one: RankOneSettings = RankOneSettings()
    front: FrontSettings = FrontSettings()
    detox: DetoxSettings = DetoxSettings()
    ladder: LadderSettings = LadderSettings()


def load_config(
    *, preset: str = "demo", file: Path | None = None, flags: Mapping[str, Any] | None = None
) -> Config:
    """Merge the sources into one checked configuration.

    Args:
        preset: `smoke`, `demo`, `diff`, `full` or `detox`, or a model of the paper with its
            published hyper-parameters, such as `llama-3.1-8b`, which goes on top of `full`.
        file: a TOML file that overrides the preset.
        flags: dotted keys that override everything.

    Raises:
        DialdownError: an unknown preset, key or environment variable (the nearest known one is
            named), or a bad value.
    """
    if preset not in PRESETS:
        raise DialdownError(f"Unknown preset {preset!r}: {nearest(preset, PRESETS)}")
    merged: dict[str, Any] = {}
    for name in ("full", "paper", preset) if preset in PAPER else (preset,):
        packaged = resources.files("dialdown.study") / "presets" / f"{name}.toml"
        merge(merged, tomllib.loads(packaged.read_text(encoding="utf-8")))
    layers = [] if file is None else [(str(file), read_toml(file))]
    layers += [
        (f"environment variable {name}", nested(setting))
        for name, setting in from_environment(os.environ)
    ]
    layers += [("the command line", nested(flags or {}))]
    for where, given in layers:
        _check_keys(given, where)
        merge(merged, given)
    try:
        config = Config(**merged)
    except ValidationError as error:
        first = error.errors()[0]
        # Below a setting are its places in a list, and the kinds of value that it may have.
        key = ".".join(str(part) for part in first["loc"][:2])
        problem = first["msg"].removeprefix("Value error, ")
        raise DialdownError(
            f"The setting {key} = {first['input']!r:.100} is not valid: {problem}."
        ) from error
    check_values(config.model_dump())
    return config


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys whose values differ, as `key: old -> new`."""
    out = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            out += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            out.append(f"{prefix}{key}: {a!r} -> {b!r}")
    return out


def _check_keys(given: Mapping[str, Any], where: str) -> None:
    """Refuse what is not a setting; values are checked once all sources are merged."""
    known = Config().model_dump()
    sections = {name: inner for name, inner in known.items() if isinstance(inner, dict)}
    for section in sections:
        if isinstance(inner := given.get(section), Mapping) and "seed" in inner:
            raise DialdownError(
                f"{section}.seed in {where} would be ignored, because one seed serves all stages: "
                "set seed."
            )
    try:
        Config.model_validate(given)
    except ValidationError as error:
        for problem in error.errors():
            *section_of, key = map(str, problem["loc"])
            if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
                # An underscore that should be a dot, or a section that was left out, is found among
                # the whole names.
                dotted = (f"{name}.{key}" for name, inner in sections.items() for key in inner)
                own = (f"{section}.{key}" for section in section_of for key in sections[section])
                name, names = ".".join([*section_of, key]), own if section_of else [*known, *dotted]
                raise DialdownError(
                    f"Unknown setting {name} in {where}: {nearest(name, names)}"
                ) from error
            if problem["type"] == "dataclass_type":
                raise DialdownError(
                    f"{key} in {where} is a section with settings of its own: set one of "
                    f"{', '.join(sections[key])}."
                ) from error

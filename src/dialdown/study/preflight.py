"""What a run needs of its settings, files and models, checked before its first stage, so that
nothing is found wrong hours later.

A check reads what the run reads anyway, and its sentence names the setting to change.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

from ..data import texts
from ..errors import DialdownError, enough_memory
from ..evaluation.metrics import check_names
from ..models.sites import projections
from ..models.tokens import text_windows
from ..neurons.directions import token_contrast
from ..neurons.probe import check_labels
from .config import Config
from .context import Workspace
from .detox_methods import METHODS
from .ladder_methods import method_of
from .price import priced_windows
from .stage import MEASURING, RANK_ONE


def check_settings(config: Config) -> None:
    """Refuse settings that contradict each other (DialdownError)."""
    settings = config.evaluation
    judge, scorer = (name.partition("#")[0] for name in (settings.judge, settings.pair_scorer))
    if config.tuned is None and judge == scorer:
        raise DialdownError(
            f"{settings.judge} would judge the pairs it made (METHOD §8): set another "
            "evaluation.judge or evaluation.pair_scorer."
        )
    if settings.judge == "probe" and "strict" not in config.protocols:
        raise DialdownError(
            "The probe judges by its strict form, which a study of the paper protocol alone does "
            "not make: add strict to protocols, or set another evaluation.judge."
        )
    if config.front.count > settings.count:
        raise DialdownError(
            f"The front has {config.front.count} prompts (front.count), which are the first of the "
            f"evaluation's {settings.count}: lower front.count, or raise evaluation.count."
        )


def check_inputs(work: Workspace, stages: Collection[str]) -> None:
    """Check what the stages to be done will need; what is loaded for that is kept for them."""
    for settings, check, users in CHECKS:
        if {*users} & {*stages}:
            with _naming(settings):
                check(work)
    # A second model would take memory from the stages that need none.
    work.__dict__.pop("tuned", None)


@contextmanager
def _naming(settings: str) -> Iterator[None]:
    """Name the settings at fault in a sentence that does not know where its input came from."""
    try:
        yield
    except DialdownError as error:
        raise error if settings in str(error) else DialdownError(f"{settings}: {error}") from error


def _training_prompts(work: Workspace) -> None:
    if work.config.tuned is not None:
        # Nothing is trained.
        return
    settings, count, left = (
        work.config.evaluation,
        work.config.pairs.count,
        len(work.prompts.training),
    )
    if left < count:
        raise DialdownError(
            f"{count} pairs (pairs.count) need as many training prompts, and "
            f"{work.config.training_prompts or settings.prompts!r} has {left} beside the "
            f"{settings.count} of the evaluation: lower pairs.count or evaluation.count, or set "
            "training_prompts to a source with more."
        )


def _unseen(work: Workspace) -> None:
    if "compare" not in work.stages:
        return
    config = work.config
    means = any([method_of(name).means for name in config.ladder.methods])
    used = {
        "pairs.count": config.pairs.count if "pairs" in work.stages else 0,
        "evaluation.count": config.evaluation.count if means else 0,
    }
    most = max(used, key=lambda setting: used[setting])
    left = max(0, len(work.prompts.training) - used[most])
    if (prompts := config.ladder.prompts) > left:
        raise DialdownError(
            f"{prompts} unseen prompts (ladder.prompts) are asked for, and at most {left} are left "
            f"by the evaluation and by {most}: lower one of the two, or set training_prompts to a "
            "source with more."
        )


def _model(work: Workspace) -> None:
    with enough_memory("set dtype to bfloat16, or pass a smaller model"):
        _ = work.lm


def _directed_sites(work: Workspace) -> None:
    for name in METHODS.keys() & {*work.stages}:
        if site := METHODS[name].site:
            projections(work.lm, site)


def _compared_sites(work: Workspace) -> None:
    settings = work.config.ladder
    for name in () if settings.everything else settings.methods:
        method_of(name).sites(work.lm)


def _lengths(work: Workspace, prompts: Sequence[str], section: str) -> None:
    setting, new = f"{section}.max_new_tokens", getattr(work.config, section).max_new_tokens
    limit, context = work.config.evaluation.max_prompt_tokens, work.lm.context
    around = work.lm.turns.around if work.lm.turns else 0
    if not prompts or limit + around + new <= context:
        return
    longest = max(map(len, work.lm.prompt_ids(prompts, limit)))
    if longest + new > context:
        template = f", {around} of them the chat template's" if around else ""
        raise DialdownError(
            f"A prompt has {longest} tokens{template}, which with {new} new ones ({setting}) "
            f"exceed the context of {work.lm.name} ({context}): lower {setting} or "
            "evaluation.max_prompt_tokens."
        )


def _probe(work: Workspace) -> None:
    settings = work.config.probe
    if "paper" in work.config.protocols and settings.max_tokens > work.lm.context:
        raise DialdownError(
            f"The probe's texts are read to {settings.max_tokens} tokens, which exceed the context "
            f"of {work.lm.name} ({work.lm.context}): lower probe.max_tokens."
        )
    with _naming("probe.positive and probe.negative"):
        token_contrast(work.lm, settings.positive, settings.negative)


def _text(work: Workspace) -> None:
    settings, lm = work.config.evaluation, work.lm
    if settings.window > lm.context:
        raise DialdownError(
            f"A window of {settings.window} tokens exceeds the context of {lm.name} "
            f"({lm.context}): set evaluation.window to {lm.context} or less."
        )
    with _naming("evaluation.text"):
        text = texts.load_reference_text(settings.text)
        needed = min(settings.kl_windows, settings.max_windows)
        for protocol in work.config.protocols:
            windows = text_windows(
                lm, text, protocol=protocol, window=settings.window, max_windows=needed
            )
            if len(windows) < needed:
                raise DialdownError(
                    f"The reference text {settings.text!r} fills {len(windows)} windows of "
                    f"{settings.window} tokens, and {needed} are read (evaluation.kl_windows): "
                    "lower evaluation.window or evaluation.kl_windows, or pass a longer text."
                )


def _dialled_on(work: Workspace) -> None:
    if work.config.detox.strength is None:
        priced_windows(work, "detox")


def _scorers(work: Workspace) -> None:
    # A probe scores once the study has it.
    if work.config.evaluation.pair_scorer != "probe":
        _ = work.pair_scorer


def _judge(work: Workspace) -> None:
    if work.config.evaluation.judge != "probe":
        _ = work.judge


def _tuned(work: Workspace) -> None:
    if work.config.tuned is not None:
        with enough_memory("set dtype to bfloat16, or pass smaller models"):
            _ = work.tuned


# The settings to name, each check, and the stages that need it; what only reads files comes before
# what loads a model.
CHECKS: Sequence[tuple[str, Callable[[Workspace], object], Collection[str]]] = (
    (
        "evaluation.prompts and evaluation.count",
        lambda work: work.prompts,
        {"pairs", "means", "activations", *MEASURING},
    ),
    ("", _training_prompts, {"pairs"}),
    (
        "probe.texts and probe.count",
        lambda work: check_labels(
            work.labelled.texts, work.labelled.labels, work.labelled.groups
        ),
        {"probe"},
    ),
    ("", _unseen, {"pairs", "compare"}),
    ("evaluation.pairs and evaluation.pairs_count", lambda work: work.f1_pairs(), MEASURING),
    ("evaluation.metrics", lambda work: check_names(work.metrics), MEASURING),
    (
        "model",
        _model,
        {"probe", "pairs", "train", "means", "activations", "neurons", "gains", *RANK_ONE, "step",
        "labels", "labels_rank_one", "dial", "fit", *MEASURING},
    ),
    ("detox.method", _directed_sites, {name for name, way in METHODS.items() if way.site}),
    ("ladder.methods", _compared_sites, {"fit"}),
    (
        "",
        lambda work: _lengths(work, work.prompts.evaluation, "evaluation"),
        {"activations", *MEASURING},
    ),
    ("", lambda work: _lengths(work, work.prompts.training, "pairs"), {"pairs"}),
    ("", _probe, {"probe"}),
    ("", _text, MEASURING),
    ("", _dialled_on, {"dial"}),
    ("", lambda work: priced_windows(work, "ladder"), {"compare"}),
    ("tuned", _tuned, {"train", "activations", "neurons", "evaluate", "front"}),
    ("evaluation.pair_scorer", _scorers, {"pairs", *MEASURING}),
    ("evaluation.judge", _judge, MEASURING),
    ("token_judge", lambda work: work.token_judge, {"neurons"}),
)  # fmt: skip

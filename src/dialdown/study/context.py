"""What the stages of a study share: its folder, its models, its data, and the values that earlier
stages left there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil

from .. import cluster
from ..data import texts
from ..data.assets import found_whole, take_as_whole
from ..data.corpora import Part
from ..evaluation.evaluator import Evaluator, Suite
from ..evaluation.metrics import Metric, load_metric
from ..evaluation.perplexity import ReferenceText
from ..evaluation.probe_scorer import ProbeScorer
from ..evaluation.scorers import Scorer, load_scorer
from ..evaluation.token_judge import TokenJudge, load_token_judge
from ..models.lm import LM, load, load_tuned
from ..models.memory import Auto, BatchSize, Shape
from ..models.protocol import Protocol
from ..neurons.activations import NeuronMeans
from ..neurons.directions import Direction
from ..neurons.table import NeuronTable, neuron_table
from ..workers import do_all, gpus, return_free_memory
from .config import DECODED_ON_CPU, Config
from .folder import Ledger
from .memory import device_of, workers_of
from .notes import StageNotes
from .plan import Tables
from .stage import STAGES

T = TypeVar("T")
Job = Callable[["Workspace", Any], None]
"""A function of a module that does one piece of work and leaves its result in the folder."""


@dataclass
class Workspace:
    """The folder of a study, and what is loaded from it and for it when it is first needed.

    Attributes:
        config: the study's settings.
        folder: where everything is written.
        stages: what is done in the folder, in order.
        changed: called when more can be shown of the folder than before.
        standing: what the settings stand for, where that is known (see `folder.Ledger`).
        peak_together: the most memory that this process and its workers held together, in bytes; 0
            without workers.
        notes: what the stage that is going on leaves out, cuts or does not reach.
    """

    config: Config
    folder: Path
    stages: tuple[str, ...] = STAGES
    changed: Callable[[], None] = lambda: None
    standing: Mapping[str, Any] | None = None
    peak_together: int = field(default=0, init=False)
    notes: StageNotes = field(default_factory=StageNotes, init=False)
    _kept: dict[Hashable, Any] = field(default_factory=dict, init=False)

    @cached_property
    def ledger(self) -> Ledger:
        """What is written about this study."""
        return Ledger(self.config, self.folder, self.stages, self.standing)

    @cached_property
    def lm(self) -> LM:
        """The base model."""
        config = self.config
        return load(
            config.model,
            revision=config.revision,
            dtype=config.dtype,
            device=config.device,
            template=config.template,
        )

    @cached_property
    def tuned(self) -> LM:
        """The tuned model: given, or trained by this study."""
        return self.tuned_model("tuned")

    def tuned_model(self, name: str) -> LM:
        """A tuned model by its folder here; `tuned` is the one given, where one was."""
        given = self.config.tuned if name == "tuned" else None
        return load_tuned(self.lm, given or self.folder / name)

    @cached_property
    def prompts(self) -> texts.PromptSplit:
        """Evaluation prompts, and training prompts disjoint from them."""
        settings, seed = self.config.evaluation, self.config.seed
        if self.config.tuned is not None:
            # Nothing is trained, so no prompts need be left for it.
            prompts = texts.load_prompts(settings.prompts, settings.count, seed=seed)
            return texts.PromptSplit(tuple(prompts), ())
        # Pairs are looked for until there are enough, so every prompt that is not for evaluation
        # may be used.
        return texts.split_prompts(
            settings.prompts,
            evaluation=settings.count,
            training=None,
            training_source=self.config.training_prompts,
            seed=seed,
            read=(settings.text, settings.pairs),
        )

    @property
    def batch_size(self) -> BatchSize:
        """How many prompts are decoded at once."""
        size = self.config.evaluation.batch_size
        return Auto(DECODED_ON_CPU) if size == "auto" else size

    @property
    def unseen(self) -> tuple[str, ...]:
        """The last training prompts, which a ladder judges on."""
        return self.prompts.training[-self.config.ladder.prompts :]

    def f1_pairs(self, count: int | None = None) -> list[tuple[str, str]]:
        """The first of the prompts with their true continuation."""
        settings = self.config.evaluation
        count = count or settings.pairs_count
        return texts.load_wiki_pairs(settings.pairs, count, seed=self.config.seed)

    @property
    def metrics(self) -> list[Metric]:
        """What else is measured of continuations."""
        return [*map(load_metric, self.config.evaluation.metrics)]

    @cached_property
    def labelled(self) -> texts.LabelledTexts:
        """The labelled texts that the probe is trained on."""
        settings = self.config.probe
        # Only the embedded texts also train scorers; a user's own are all the probe's.
        part: Part | None = "probe" if settings.texts.startswith("embedded:") else None
        return texts.load_labelled(
            settings.texts,
            settings.count,
            seed=self.config.seed,
            part=part,
            max_words=settings.max_words,
        )

    @cached_property
    def token_judge(self) -> TokenJudge:
        """What says which logit-lens tokens are of the concept."""
        config = self.config
        # The judge is asked whether "the token is ...".
        concept = "toxic" if config.concept == "toxicity" else f"an expression of {config.concept}"
        return load_token_judge(config.token_judge, concept=concept)

    @cached_property
    def judge(self) -> Scorer:
        """The scorer whose mean is a row's `toxicity`."""
        return self._scorer(self.config.evaluation.judge)

    @cached_property
    def pair_scorer(self) -> Scorer:
        """The scorer that makes the pairs."""
        return self._scorer(self.config.evaluation.pair_scorer)

    @property
    def judging(self) -> Facts:
        """Of the scorers: their names, the judge first, its caveat, and how each was made."""
        scorers = self.judge, self.pair_scorer
        return {
            "judges": [scorer.name for scorer in scorers],
            "caveat": self.judge.caveat,
            "scorers": {scorer.name: dict(scorer.record) for scorer in scorers},
        }

    def _scorer(self, source: str) -> Scorer:
        if source == "probe":
            return ProbeScorer(self.lm, self.probe("strict"))
        settings = self.config
        # A study of toxicity may have labelled texts of its own and still use the embedded scorers
        # of toxicity.
        texts = "embedded:comments" if settings.concept == "toxicity" else settings.probe.texts
        return load_scorer(source, texts=texts, device=self.lm.device.type)

    def path(self, name: str, protocol: Protocol) -> Path:
        """A file of one protocol: `strict`, the default, has the plain name; `paper` says so."""
        stem, dot, ending = name.partition(".")
        return self.folder / (name if protocol == "strict" else f"{stem}-{protocol}{dot}{ending}")

    def probe(self, protocol: Protocol) -> Direction:
        """The probe of one protocol."""
        return Direction.load(self.path("direction-probe.safetensors", protocol))

    def contrast(self, protocol: Protocol) -> Direction:
        """The token contrast of one protocol."""
        return Direction.load(self.path("direction-contrast.safetensors", protocol))

    def means(self, protocol: Protocol) -> tuple[NeuronMeans, NeuronMeans]:
        """Mean activations of the base and the tuned model."""
        base, tuned = (
            self.path(f"means-{name}.safetensors", protocol) for name in ("base", "tuned")
        )
        return NeuronMeans.load(base), NeuronMeans.load(tuned)

    @property
    def training_means(self) -> NeuronMeans:
        """Of the base model on training prompts, `strict`."""
        return NeuronMeans.load(self.folder / "means-training.safetensors")

    def tables(self, protocol: Protocol) -> Tables:
        """The neuron tables of one protocol."""
        compared = NeuronTable.load(self.path("neurons.parquet", protocol))
        return dataclasses.replace(self.base_tables(protocol), probe=compared)

    def base_tables(self, protocol: Protocol) -> Tables:
        """The neuron tables of one protocol, the probe's without the tuned model too."""
        probe = self.probe(protocol)
        noise = Direction.load(self.folder / "direction-random.safetensors")
        # The random direction steers as far as the probe does.
        noise = dataclasses.replace(noise, vector=noise.unit * np.linalg.norm(probe.vector))
        base = NeuronMeans.load(self.path("means-base.safetensors", protocol))
        return Tables(
            neuron_table(self.lm, probe, base),
            neuron_table(self.lm, self.contrast(protocol), base),
            neuron_table(self.lm, noise, base),
            probe,
            noise,
        )

    def suite(self, count: int) -> Suite:
        """The evaluation suite on the first `count` prompts."""
        settings, seed = self.config.evaluation, self.config.seed
        shared = {
            name: getattr(settings, name)
            for name in (
                "max_new_tokens",
                "max_prompt_tokens",
                "window",
                "max_windows",
                "kl_windows",
            )
        }
        # Rows on fewer prompts, such as controls, need no more pairs; fewer than 8 say nothing.
        pairs = min(settings.pairs_count, max(8, settings.pairs_count * count // settings.count))
        return Suite(
            self.prompts.evaluation[:count],
            self.f1_pairs(pairs),
            texts.load_reference_text(settings.text),
            (self.judge, self.pair_scorer),
            seed=seed,
            metrics=self.metrics,
            batch_size=self.batch_size,
            **shared,
        )

    def kept(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` makes the first time, shared by the pieces of a job until it is done."""
        if key not in self._kept:
            self._kept[key] = make()
        kept: T = self._kept[key]
        return kept

    def evaluator(self, count: int) -> Evaluator:
        """The evaluator on the first `count` prompts; it keeps what its rows share, and all of them
        one copy of what was read of the text.
        """
        read: dict[Protocol, ReferenceText] = self.kept(ReferenceText, dict)
        return self.kept(count, lambda: Evaluator(self.lm, self.suite(count), read=read))

    def workers(self, stage: str) -> int | str:
        """How many processes do the pieces of a stage, or the cluster that does."""
        if self.config.workers is not None:
            return self.config.workers
        return workers_of(self.config, Shape.of(self.lm), device_of(self.config), stage)

    def do_all(self, stage: str, job: Job, pieces: Sequence[Any]) -> Generator[Any]:
        """Do a job of a stage for every piece, by processes or a cluster where that pays; yield
        each.
        """
        workers, devices = self.workers(stage), gpus(self.config.device)
        if isinstance(workers, int) and min(workers, len(pieces)) < 2:
            # A tuned model is loaded where it is measured.
            self.__dict__.pop("tuned", None)
            for piece in pieces:
                job(self, piece)
                yield piece
            self._forget()
            return
        # The workers load models of their own; this process needs none meanwhile.
        for name in ("lm", "tuned", "judge", "pair_scorer"):
            self.__dict__.pop(name, None)
        self._forget()
        peaks: dict[int, int] = {}
        folder = self.folder.absolute()
        study = self.config, folder, self.stages, self.ledger.standing
        prepare = partial(_worker, study, job, found_whole())
        running = (
            do_all(prepare, pieces, workers, devices, self.notes.add)
            if isinstance(workers, int)
            else cluster.do_all(prepare, pieces, workers, folder)
        )
        with closing(running) as work:
            for finished in work:
                peaks[finished.worker] = finished.peak
                together = psutil.Process().memory_info().rss + sum(peaks.values())
                self.peak_together = max(self.peak_together, together)
                self.notes.join(finished.told)
                yield finished.piece

    @contextmanager
    def noting(self) -> Iterator[StageNotes]:
        """The notes of one piece of a stage, which the stage has too in the end."""
        of_stage, self.notes = self.notes, StageNotes()
        try:
            with self.notes.hearing():
                yield self.notes
        finally:
            of_stage.join(self.notes)
            self.notes = of_stage

    def _forget(self) -> None:
        self._kept.clear()
        return_free_memory()


def _worker(
    study: tuple[Config, Path, tuple[str, ...], Mapping[str, Any]],
    job: Job,
    whole: Mapping[Path, Any],
) -> Callable[[Any], StageNotes]:
    """What a worker does pieces of a job with."""
    # Every worker would otherwise read all of the cached assets through, each time that some are
    # started.
    take_as_whole(whole)
    config, folder, stages, standing = study
    return partial(_told, job, Workspace(config, folder, stages, standing=standing))


def _told(job: Job, work: Workspace, piece: Any) -> StageNotes:
    """Do a piece, and give the notes on it."""
    work.notes = StageNotes()
    with work.notes.hearing():
        job(work, piece)
    return work.notes


Facts = dict[str, Any]
"""What a stage found, for run.json."""
Stages = Mapping[str, Callable[[Workspace], Facts]]
"""Stages by name, in their order."""

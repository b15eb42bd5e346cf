"""The whole study as stages in one folder: each leaves values others can load.

    probe -> pairs -> train -> activations -> neurons -> evaluate -> report

A finished stage is not repeated, an interrupted training goes on from its checkpoint, and an interrupted evaluation keeps
every finished row.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from . import data
from .activations import NeuronMeans, decode_with_means
from .config import Config
from .decoding import Decoder, Progress
from .directions import Direction, check_labels, fit_probe, probe_features, random_direction, token_contrast
from .dpo import train_dpo
from .errors import DialdownError
from .evaluation import Evaluator, Row, Suite, as_row
from .files import SCHEMA, fingerprint, write_json
from .ledger import STAGES, Ledger
from .metrics.toxicity import Scorer, load_scorer
from .models import LM, Protocol, load, load_tuned
from .neurons import compare, neuron_table
from .pairs import CandidateFiles, Candidates, PairSet, PairSettings, candidates, choose_pairs, count_pairs
from .plan import Planned, Tables, plan
from .rows import RowFiles
from .workers import default_workers, do_all, return_free_memory

SAMPLES = 8


def silent(label: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


@dataclass
class Study:
    """A study in a folder.

    Attributes:
        config: its settings.
        folder: where everything is written.
        progress: called with what is going on, units done, units in all.
        announce: called with a sentence when a stage starts, ends or is found done.
    """

    config: Config
    folder: Path
    progress: Progress = silent
    announce: Callable[[str], None] = lambda sentence: None
    _peak_together: int = field(default=0, init=False)

    def run(self, *, until: str = "report") -> None:
        """Run the stages up to `until`, skipping what is done.

        Raises:
            DialdownError: the folder holds a study with other settings, or a stage cannot do its work.
        """
        if self.config.tuned is None and self.config.evaluation.judge == self.config.evaluation.pair_scorer:
            raise DialdownError(
                f"{self.config.evaluation.judge} would judge the pairs it made (METHOD §8): set another evaluation.judge or evaluation.pair_scorer."
            )
        self.ledger.claim()
        for stage in STAGES[: STAGES.index(until) + 1]:
            if self.ledger.finished(stage):
                self.announce(f"{stage}: done before")
                continue
            self.announce(f"{stage} ...")
            start = time.perf_counter()
            facts = getattr(self, f"_{stage}")() or {}
            seconds = time.perf_counter() - start
            self.ledger.record(stage, seconds, facts, self._peak_together)
            self.announce(f"{stage}: {seconds:.0f} s")

    @cached_property
    def ledger(self) -> Ledger:
        """What is written about this study."""
        return Ledger(self.config, self.folder)

    # What stages share

    @cached_property
    def lm(self) -> LM:
        """The base model."""
        config = self.config
        return load(
            config.model,
            revision=config.revision,
            dtype=config.dtype,
            device=config.device,
            progress=self.progress,
        )

    @cached_property
    def tuned(self) -> LM:
        """The tuned model: given, or trained by this study."""
        return load_tuned(self.lm, self.config.tuned or self.folder / "tuned", progress=self.progress)

    @cached_property
    def prompts(self) -> data.PromptSplit:
        """Evaluation prompts, and training prompts disjoint from them."""
        ours, seed, other = self.config.evaluation, self.config.seed, self.config.training_prompts
        # Pairs are looked for until there are enough, so every prompt that is not for evaluation may be used.
        split = data.split_prompts(ours.prompts, evaluation=ours.count, training=None, seed=seed)
        if other is None:
            return split
        training = data.load_prompts(other, None, seed=seed, exclude=split.evaluation)
        return data.PromptSplit(split.evaluation, tuple(training))

    @cached_property
    def judge(self) -> Scorer:
        return load_scorer(self.config.evaluation.judge, device=self.lm.device.type, progress=self.progress)

    @cached_property
    def pair_scorer(self) -> Scorer:
        return load_scorer(self.config.evaluation.pair_scorer, device=self.lm.device.type, progress=self.progress)

    def direction(self, protocol: Protocol) -> Direction:
        """The probe of one protocol."""
        return Direction.load(self.folder / _for_protocol("direction-probe.safetensors", protocol))

    # Stages

    def _probe(self) -> dict[str, Any]:
        ours, seed = self.config.probe, self.config.seed
        # Only the embedded comments also train scorers; a user's own texts are all the probe's.
        part: data.Part | None = "probe" if ours.texts.startswith("embedded:") else None
        labelled = data.load_labelled(ours.texts, ours.count, seed=seed, part=part, max_words=ours.max_words)
        check_labels(labelled.texts, labelled.labels)
        features = probe_features(self.lm, labelled.texts, max_tokens=ours.max_tokens, progress=self.progress)
        record = {
            "texts": ours.texts,
            "max_tokens": ours.max_tokens,
            "residual_norm": float(np.linalg.norm(features["strict"], axis=1).mean()),
        }
        facts: dict[str, Any] = {}
        for protocol in self.config.protocols:
            probe = fit_probe(self.lm, features[protocol], labelled.labels, protocol=protocol, seed=seed, record=record)
            probe.save(self.folder / _for_protocol("direction-probe.safetensors", protocol))
            facts[protocol] = {name: probe.record[name] for name in ("accuracy", "auc", "train", "validation", "C")}
        token_contrast(self.lm, ours.positive, ours.negative).save(self.folder / "direction-contrast.safetensors")
        random_direction(self.lm, seed=seed).save(self.folder / "direction-random.safetensors")
        return facts

    def _pairs(self) -> dict[str, Any]:
        if self.config.tuned is not None:
            return {"skipped": "a tuned model was given"}
        settings, total = self._pair_settings, self.config.pairs.count
        starts = range(0, len(self.prompts.training), settings.batch_size)
        sampled = {start: self.candidates.read(start) for start in starts}
        record = {"scorer": self.pair_scorer.name, **self.lm.describe()}
        # Batches finish in any order; only those with none missing before them count, so the order changes nothing.
        batches: list[Candidates] = []
        found = 0
        with closing(self._do_all("sample", [start for start in starts if sampled[start] is None])) as work:
            while found < total and len(batches) < len(starts):
                while (batch := sampled[starts[len(batches)]]) is None:
                    finished = next(work)
                    sampled[finished] = self.candidates.read(finished)
                batches.append(batch)
                found += count_pairs(batch, settings)
                self.progress("making pairs", min(found, total), total)
        pairs = choose_pairs(batches, settings, record)
        pairs.save(self.folder / "pairs.jsonl")
        return {"pairs": len(pairs.pairs), **{k: v for k, v in pairs.record.items() if isinstance(v, float | int)}}

    @property
    def _pair_settings(self) -> PairSettings:
        return dataclasses.replace(self.config.pairs, seed=self.config.seed)

    @cached_property
    def candidates(self) -> CandidateFiles:
        """The continuations sampled so far."""
        ours = self.config.evaluation
        split = (ours.prompts, ours.count, ours.max_prompt_tokens, ours.pair_scorer, self.config.training_prompts)
        return CandidateFiles(
            self.folder / "pairs", fingerprint(self.ledger.inputs("probe"), split), self._pair_settings
        )

    def sample(self, start: int) -> None:
        """Sample and score the batch of training prompts from number `start` on, and write it to the folder `pairs`."""
        one = candidates(
            self.lm,
            self.prompts.training,
            self.pair_scorer,
            self._pair_settings,
            start,
            direction=self.direction(self.config.protocols[0]),
            max_prompt_tokens=self.config.evaluation.max_prompt_tokens,
        )
        self.candidates.write(start, one)

    def _train(self) -> dict[str, Any]:
        if self.config.tuned is not None:
            return {"skipped": "a tuned model was given", "tuned": self.tuned.describe()}
        pairs = PairSet.load(self.folder / "pairs.jsonl").pairs
        settings = dataclasses.replace(self.config.dpo, seed=self.config.seed)
        # In 16 bits most of DPO's small steps would round to nothing.
        model = self.lm.model if self.lm.model.dtype == torch.float32 else self.lm.twin().model.float()
        log = train_dpo(model, self.lm.tokenizer, pairs, settings, self.folder / "tuned", progress=self.progress)
        return asdict(log)

    def _activations(self) -> dict[str, Any]:
        ours = self.config.evaluation
        facts = {}
        for name, lm in (("base", self.lm), ("tuned", self.tuned)):
            decoder = Decoder(
                lm,
                self.prompts.evaluation,
                share_prefixes=False,
                max_new_tokens=ours.max_new_tokens,
                max_prompt_tokens=ours.max_prompt_tokens,
                batch_size=ours.batch_size,
            )
            decoded = decode_with_means(decoder, protocols=self.config.protocols, progress=self.progress)
            for protocol, means in decoded.means.items():
                means.save(self.folder / _for_protocol(f"means-{name}.safetensors", protocol))
                facts[f"{name}_positions_{protocol}"] = means.count
        return facts

    def _neurons(self) -> dict[str, Any]:
        facts: dict[str, Any] = {}
        for protocol in self.config.protocols:
            table = self.tables(protocol).probe
            table.to_parquet(self.folder / _for_protocol("neurons.parquet", protocol))
            facts[protocol] = {name: int(mask.sum()) for name, mask in table.groups().items()}
        return facts

    def tables(self, protocol: Protocol) -> Tables:
        """The neuron tables of one protocol, from the saved directions and means."""
        probe = self.direction(protocol)
        contrast = Direction.load(self.folder / "direction-contrast.safetensors")
        noise = Direction.load(self.folder / "direction-random.safetensors")
        base = NeuronMeans.load(self.folder / _for_protocol("means-base.safetensors", protocol))
        after = NeuronMeans.load(self.folder / _for_protocol("means-tuned.safetensors", protocol))
        # The random direction steers as far as the probe does.
        noise = dataclasses.replace(noise, vector=noise.unit * np.linalg.norm(probe.vector))
        return Tables(
            compare(self.lm, self.tuned, probe, base, after),
            neuron_table(self.lm, contrast, base),
            neuron_table(self.lm, noise, base),
            probe,
            noise,
        )

    def suite(self, count: int) -> Suite:
        """The evaluation suite on the first `count` prompts."""
        ours, seed = self.config.evaluation, self.config.seed
        shared = {
            name: getattr(ours, name)
            for name in ("max_new_tokens", "max_prompt_tokens", "window", "max_windows", "kl_windows", "batch_size")
        }
        return Suite(
            self.prompts.evaluation[:count],
            data.load_wiki_pairs(ours.pairs, ours.pairs_count, seed=seed),
            data.load_reference_text(ours.text),
            (self.judge, self.pair_scorer),
            seed=seed,
            **shared,
        )

    def planned(self) -> list[Planned]:
        """Every row to be measured."""
        config = self.config
        return [
            one
            for protocol in config.protocols
            for one in plan(protocol, self.tables(protocol), config.interventions, seed=config.seed)
        ]

    @cached_property
    def rows(self) -> RowFiles:
        """The finished rows of this study's evaluation."""
        return RowFiles(self.folder / "rows", self.ledger.inputs("evaluate"))

    @cached_property
    def _evaluators(self) -> tuple[Evaluator, Evaluator]:
        """For interventions and for controls; one and the same where both are measured on all prompts."""
        ours = self.config.evaluation
        main = Evaluator(self.lm, self.suite(ours.count))
        return main, main if ours.control_count >= ours.count else Evaluator(self.lm, self.suite(ours.control_count))

    def _evaluate(self) -> dict[str, Any]:
        planned = self.planned()
        # Some controls of different edits are the same effect, which is measured once.
        first: dict[str, Planned] = {}
        for one in planned:
            first.setdefault(self.rows.effect(one), one)
        missing = [one for one in first.values() if self.rows.read(one) is None]
        facts = {"judges": [self.judge.name, self.pair_scorer.name], "caveat": self.judge.caveat, "rows": len(planned)}
        self._measure_all(missing, done=len(first) - len(missing))
        rows = []
        for one in planned:
            measured = self.rows.read(first[self.rows.effect(one)])
            assert measured is not None
            rows.append(as_row(one.intervention, one.protocol, measured))
        self._write_results(rows)
        for one in planned:
            if one.intervention.control_of is None and one.intervention.kind != "none":
                one.intervention.save(self.folder / "interventions" / f"{one.name}.safetensors")
        return facts

    def _measure_all(self, rows: list[Planned], *, done: int) -> None:
        # What moves no neuron generates the same under both protocols: measured one after the other, it is decoded once.
        pieces: dict[Any, list[Planned]] = {}
        for one in rows:
            same = one.name if one.intervention.moves_neurons else (one.tuned, one.intervention.key)
            pieces.setdefault(same, []).append(one)
        total = done + len(rows)
        self.progress("evaluating", done, total)
        for piece in self._do_all("measure", [*pieces.values()]):
            done += len(piece)
            self.progress(f"evaluating, {piece[-1].name} measured", done, total)

    def _do_all(self, job: str, pieces: Sequence[Any]) -> Generator[Any]:
        """Do a job, named by its method, for every piece: by several processes where that pays. Yields what is done."""
        weights = sum(tensor.nbytes for tensor in self.lm.model.parameters())
        workers = self.config.workers or default_workers(weights, self._kept_bytes(), self.lm.device.type)
        if min(workers, len(pieces)) < 2:
            for piece in pieces:
                getattr(self, job)(piece)
                yield piece
            return
        # The workers load models of their own; this process needs none meanwhile.
        for name in ("lm", "tuned", "judge", "pair_scorer", "_evaluators"):
            self.__dict__.pop(name, None)
        return_free_memory()
        peaks: dict[int, int] = {}
        with closing(do_all(partial(_worker, self.config, self.folder, job), pieces, workers)) as work:
            for finished in work:
                peaks[finished.worker] = finished.peak
                together = psutil.Process().memory_info().rss + sum(peaks.values())
                self._peak_together = max(self._peak_together, together)
                yield finished.piece

    def _kept_bytes(self) -> int:
        """What an evaluator keeps in memory: prefixes' keys and values, and the base model's distributions."""
        ours, config = self.config.evaluation, self.lm.model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = heads * (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
        tokens = (ours.count + ours.control_count + 2 * ours.pairs_count) * ours.max_prompt_tokens
        prefixes = 2 * tokens * self.lm.view.n_layers * width * self.lm.model.dtype.itemsize
        return int(prefixes + 4 * len(self.config.protocols) * ours.kl_windows * ours.window * config.vocab_size)

    def measure(self, rows: Sequence[Planned]) -> None:
        """Measure planned rows one after the other and write each to the folder `rows`."""
        for one in rows:
            evaluator = self._evaluators[one.intervention.control_of is not None]
            row = evaluator.row(one.intervention, one.protocol, model=self.tuned if one.tuned else None)
            self.rows.write(one, row.measured)
        # Needed for these rows only.
        self.__dict__.pop("tuned", None)

    def _write_results(self, rows: list[Row]) -> None:
        named = {(row.protocol, row.intervention): row for row in rows}
        written = [
            row.to_json(
                named[row.protocol, "none"],
                self.prompts.evaluation,
                samples=SAMPLES,
                main=named[row.protocol, row.control_of] if row.control_of else None,
            )
            for row in rows
        ]
        write_json(self.folder / "results.json", {"schema": SCHEMA, "rows": written})

    def _report(self) -> dict[str, Any]:
        # matplotlib takes seconds to import, which the other stages need not wait for.
        from .report.page import write_report

        write_report(self.folder)
        return {}


def _for_protocol(name: str, protocol: Protocol) -> str:
    """`strict`, the default, has the plain name; `paper` says so."""
    stem, dot, ending = name.partition(".")
    return name if protocol == "strict" else f"{stem}-{protocol}{dot}{ending}"


def _worker(config: Config, folder: Path, job: str) -> Callable[[Any], None]:
    """What a worker does pieces of a job with."""
    work: Callable[[Any], None] = getattr(Study(config, folder), job)
    return work

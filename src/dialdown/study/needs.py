"""What each stage of a study will take, before any work: memory, disk, and how many tokens it puts
through the model, from which an honest "left" and the time on this machine follow.

These are estimates. Memory counts weights, gradients, an optimiser's state, logits and keys and
values; what a library keeps besides is one lump a process.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..data.model_files import CONFIG
from ..exporting.checkpoint import locate, skeleton
from .config import Config

# What Python, torch and the libraries of a process take, and what a process holds beside weights.
PROCESS_BYTES = 700 << 20
# A token of training passes through the reference once and through the policy forward and back.
TRAINING_PASSES = 4
# Rows by extent, with both protocols: on all prompts, and on those of the controls.
ROWS = {"conclusions": (22, 18), "tables": (33, 49)}
# A prompt of which no two continuations lie far enough apart gives no pair.
PROMPTS_A_PAIR = 1.4


@dataclass(frozen=True)
class Shape:
    """A model's sizes.

    Attributes:
        parameters: its weights, shared ones once.
        itemsize: bytes of one.
        layers, d_model, neurons, vocabulary: as their names say; neurons of one layer.
        key_values: numbers that attention keeps of a token in all layers.
    """

    parameters: int
    itemsize: int
    layers: int
    d_model: int
    neurons: int
    vocabulary: int
    key_values: int

    @property
    def weights(self) -> int:
        """Bytes of the weights."""
        return self.parameters * self.itemsize


def shape_of(config: Config) -> Shape:
    """The sizes of a study's model, from its config.json alone.

    Raises:
        DialdownError: it is no folder here, cannot be fetched, or is no causal LM with known MLPs.
    """
    folder, name, _ = locate(config.model, config.revision, patterns=(CONFIG,))
    lm = skeleton(folder, name)
    settings = lm.model.config.get_text_config()
    on_cpu = config.device == "cpu" or not (config.device or torch.cuda.is_available())
    dtype = config.dtype or ("float32" if on_cpu else str(settings.dtype or "float32"))
    heads = getattr(settings, "num_key_value_heads", None) or settings.num_attention_heads
    width = getattr(settings, "head_dim", None) or lm.view.d_model // settings.num_attention_heads
    return Shape(
        parameters=sum(weight.numel() for weight in lm.model.parameters()),
        itemsize=4 if dtype.endswith("float32") else 2,
        layers=lm.view.n_layers,
        d_model=lm.view.d_model,
        neurons=lm.view.n_neurons,
        vocabulary=settings.vocab_size,
        key_values=2 * lm.view.n_layers * heads * width,
    )


@dataclass(frozen=True)
class Need:
    """What a stage takes.

    Attributes:
        stage: its name.
        memory: bytes at most, in all processes together.
        disk: bytes that it leaves.
        tokens: what it puts through the model, in tokens of a forward pass.
    """

    stage: str
    memory: int
    disk: int
    tokens: float


def needs(config: Config, shape: Shape, *, workers: int) -> list[Need]:
    """The stages of a study that put tokens through the model, in order.

    Args:
        config: the study's settings.
        shape: of the model.
        workers: processes that sample and measure.
    """
    return [
        Need(stage, _memory(stage, config, shape, workers), _disk(stage, shape), tokens)
        for stage, tokens in tokens_by_stage(config).items()
    ]


def tokens_by_stage(config: Config) -> dict[str, float]:
    """Tokens that each stage puts through the model; a stage that is not asked for is left out."""
    probe, pairs, dpo, evaluation = config.probe, config.pairs, config.dpo, config.evaluation
    protocols = len(config.protocols)
    decoded = evaluation.count * (evaluation.max_prompt_tokens + evaluation.max_new_tokens)
    prompted = evaluation.max_prompt_tokens + pairs.max_new_tokens
    candidates = pairs.sampled + pairs.greedy + pairs.steered
    tokens = {
        # Read, not decoded, and without the unembedding.
        "probe": 0.5 * probe.count * probe.max_tokens * protocols,
        "base": decoded + 4.0 * protocols * _row(config, evaluation.count),
    }
    if config.tuned is None:
        tokens["pairs"] = PROMPTS_A_PAIR * pairs.count * candidates * prompted
        tokens["train"] = float(TRAINING_PASSES * 2 * pairs.count * prompted * dpo.epochs)
    whole, controls = (
        share * protocols / 2 * len(config.interventions.families) / 3
        for share in ROWS[config.interventions.extent]
    )
    tokens["activations"] = float(decoded)
    tokens["evaluate"] = whole * _row(config, evaluation.count) + controls * _row(
        config, min(evaluation.control_count, evaluation.count)
    )
    if config.front.count and config.tuned is None:
        gains = config.gains
        tokens["gains"] = float(TRAINING_PASSES * 4 * pairs.count * prompted * gains.epochs)
        tokens["front"] = 60.0 * _row(config, config.front.count)
    return tokens


def _row(config: Config, prompts: int) -> float:
    """Tokens of one row: continuations, those for F1, and the windows of text."""
    evaluation = config.evaluation
    a_prompt = evaluation.max_prompt_tokens + evaluation.max_new_tokens
    pairs = evaluation.pairs_count * prompts / evaluation.count
    # Texts fill fewer windows than are allowed; this many tokens are in the longest embedded one.
    text = min(evaluation.max_windows * evaluation.window, 300_000)
    return (prompts + pairs) * a_prompt + text


def _memory(stage: str, config: Config, shape: Shape, workers: int) -> int:
    evaluation = config.evaluation
    length = evaluation.max_prompt_tokens + evaluation.max_new_tokens
    if stage in ("train", "gains"):
        settings = config.dpo if stage == "train" else config.gains
        # Whole weights in float32 with gradients and the optimiser's state; adapters have few.
        whole = stage == "train" and not settings.lora_rank
        policy = 4 * shape.parameters * (3 if whole else 0)
        tokens = 2 * settings.batch_size * min(settings.max_tokens, length)
        kept = tokens * (shape.layers * (3 * shape.neurons + 16 * shape.d_model) * 4)
        return shape.weights + policy + kept + tokens * shape.vocabulary * 16 + PROCESS_BYTES
    if stage == "probe":
        return shape.weights + 64 * config.probe.max_tokens * shape.neurons * 4 + PROCESS_BYTES
    batch = {"pairs": config.pairs.batch_size}.get(stage, evaluation.batch_size)
    # Keys and values of a batch, its last logits, and the base's distributions beside which KL is
    # measured.
    held = batch * (length * shape.key_values + 3 * shape.vocabulary) * shape.itemsize
    if stage in ("base", "evaluate", "front"):
        held += evaluation.kl_windows * evaluation.window * shape.vocabulary * 4
    models = 1 if stage in ("base", "pairs") else 2
    processes = 1 if stage == "activations" else workers
    return processes * (models * shape.weights + held + PROCESS_BYTES) + PROCESS_BYTES


def _disk(stage: str, shape: Shape) -> int:
    values = shape.layers * shape.neurons
    return {
        # A checkpoint with the optimiser's state stands beside the result until the end.
        "train": shape.weights + 3 * 4 * shape.parameters,
        "base": values * 8 * 2,
        "activations": values * 8 * 2,
        "evaluate": values * 8 * 40,
    }.get(stage, 1 << 20)

"""What the stages of a study hold in memory on the device where its models run: estimates.

They count weights, gradients, an optimiser's state, activations, logits, keys and values, and what
is kept beside them; what libraries take is not counted here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import psutil
import torch

from ..data.loading import check_device
from ..models.memory import Shape, fitting
from ..training.fisher import WINDOWS_AT_ONCE
from ..training.settings import OPTIMIZERS, DPOSettings, EditSettings
from ..workers import default_workers, gpus
from .config import DECODED_ON_CPU, PAIRS_ON_CPU, PRICED, Config
from .stage import RANK_ONE

# Bytes of a number of the vocabulary at a position that is trained on: logits and their logarithms,
# of policy and reference, and gradients.
TRAINED_LOGIT = 28
# Texts of a training step on which gains and directions are held near the model, and of the prices
# of gains: how many at once, of how many tokens.
HELD_TEXTS, PRICED_TEXTS = (4, 64), (WINDOWS_AT_ONCE, 96)
# What `methods` keep of labelled texts at a time.
LABELLED = 1 << 30
LABELLED_BATCH = 32
DIRECTIONS_BATCH = 16
# Methods that act on what all linear layers of the MLPs write.
ALL_LINEAR = ("aura_published", "damp_published", "det0_published")


class Device(NamedTuple):
    """Where the models run: its kind, the bytes it has and those that are free, and the GPUs that
    workers share out.
    """

    kind: str
    total: int
    free: int
    gpus: int


def device_name(config: Config) -> str:
    """The torch device of a study."""
    return config.device or ("cuda" if torch.cuda.is_available() else "cpu")


def device_of(config: Config) -> Device:
    """The device of a study."""
    name = device_name(config)
    check_device(name)
    kind = torch.device(name).type
    if kind == "cuda":
        free, total = torch.cuda.mem_get_info(torch.device(name))
        return Device(kind, total, free, max(1, len(gpus(config.device))))
    memory = psutil.virtual_memory()
    return Device(kind, memory.total + psutil.swap_memory().total, memory.available, 0)


Taken = tuple[int, int]
"""Bytes that no batch size lowers, and further ones."""


def kept_bytes(config: Config, shape: Shape, device: Device) -> int:
    """What evaluators keep in memory: prefixes' keys and values, and the base model's
    distributions.
    """
    settings = config.evaluation
    # Controls have a decoder of their own.
    prompts = settings.count + settings.control_count + 2 * settings.pairs_count
    prefixes = shape.kept(prompts * (settings.max_prompt_tokens + shape.around))
    if device.kind == "cuda":
        # Each decoder keeps them within an eighth of what is free.
        prefixes = min(prefixes, device.total // 4)
    distributions = settings.kl_windows * settings.window * shape.vocabulary * 4
    return prefixes + len(config.protocols) * distributions


def workers_of(config: Config, shape: Shape, device: Device, stage: str) -> int | str:
    """How many processes do the pieces of a stage, or the cluster that does."""
    if config.workers is not None:
        return config.workers
    if stage == "fit":
        each = sum(_fitting(config, shape, device))
    else:
        # A tuned model stands beside the base at times.
        each = 2 * shape.weights + kept_bytes(config, shape, device)
    return default_workers(each, device.kind, [""] * device.gpus)


def _batch(setting: int | str, on_cpu: int, each: int, free: int, device: Device) -> int:
    if isinstance(setting, int):
        return setting
    return on_cpu if device.kind != "cuda" else fitting(max(0, free), each)


def _probing(config: Config, shape: Shape, device: Device) -> Taken:
    return shape.weights, shape.read(LABELLED_BATCH * config.probe.max_tokens)


def _sampling(config: Config, shape: Shape, device: Device) -> Taken:
    settings = config.pairs
    prompt = config.evaluation.max_prompt_tokens + shape.around
    each, free = shape.decoded(prompt, settings.max_new_tokens), device.total - shape.weights
    prompts = _batch(settings.batch_size, PAIRS_ON_CPU, each, free, device)
    # On a GPU all candidates of a prompt share a batch.
    copies = 1 if device.kind == "cpu" else max(1, settings.unsteered)
    texts = prompts if settings.batch_size == "auto" else prompts * copies
    return shape.weights, texts * each + shape.kept(prompts * prompt)


def _decoding(config: Config, shape: Shape, device: Device, *, models: int = 1) -> Taken:
    settings = config.evaluation
    prompt = settings.max_prompt_tokens + shape.around
    each, weights = shape.decoded(prompt, settings.max_new_tokens), models * shape.weights
    texts = _batch(settings.batch_size, DECODED_ON_CPU, each, device.total - weights, device)
    return weights, min(texts, settings.count + settings.pairs_count) * each


def _measuring(config: Config, shape: Shape, device: Device, *, models: int = 1) -> Taken:
    weights, decoded = _decoding(config, shape, device, models=models)
    window = config.evaluation.window
    return weights, decoded + kept_bytes(config, shape, device) + _reading(shape, window)


def _reading(shape: Shape, window: int) -> int:
    return shape.read(window) + window * shape.vocabulary * (shape.itemsize + 8)


def _trained(
    config: Config, shape: Shape, settings: DPOSettings, *, recomputed: bool = False
) -> int:
    """Activations and logits of a step, in one process; `recomputed` keeps one layer's at a time
    and what goes into each.
    """
    prompt = config.evaluation.max_prompt_tokens + shape.around
    new, share = config.pairs.max_new_tokens, settings.ranks
    texts, length = 2 * settings.batch_size // share, min(settings.max_tokens, prompt + new)
    positions = new if settings.kl_positions == "completion" else length
    tokens, positions = texts * length, texts * min(positions, length)
    if isinstance(settings, EditSettings) and settings.own_kl_weight > 0:
        held = HELD_TEXTS[0] * HELD_TEXTS[1] // share
        tokens, positions = tokens + held, positions + held
    graph = shape.graph(tokens)
    if recomputed:
        graph = graph // shape.layers + tokens * shape.layers * shape.d_model * shape.itemsize
    return graph + positions * shape.vocabulary * TRAINED_LOGIT


def _tuning(config: Config, shape: Shape, device: Device) -> Taken:
    settings, weights, on_gpu = config.dpo, shape.weights, device.kind == "cuda"
    numbers = 2 + OPTIMIZERS[settings.optimizer][1]
    if settings.lora_rank:
        # Adapters, their gradients and the optimiser's state; merging them takes a copy.
        sizes = 11 * shape.d_model + 3 * shape.neurons
        adapters = settings.lora_rank * shape.layers * sizes * 4
        return weights + numbers * adapters, max(_trained(config, shape, settings), weights)
    whole = numbers * 4 * shape.parameters
    # Arithmetic in 16 bits keeps a copy of the weights in them.
    whole += 2 * shape.parameters if shape.itemsize == 2 else 0
    # GPUs share all of that out, which processors do not.
    share = settings.ranks if on_gpu else 1
    return (weights + whole) // share, _trained(config, shape, settings, recomputed=on_gpu)


def _pricing(config: Config, shape: Shape, device: Device) -> Taken:
    texts, length = PRICED_TEXTS
    tokens = texts * length
    # Every position has gains of its own, and their gradients.
    gains = 2 * tokens * shape.layers * shape.neurons * shape.itemsize
    logits = tokens * shape.vocabulary * (shape.itemsize + 12)
    return shape.weights, shape.graph(tokens) + gains + logits


def _training_gains(config: Config, shape: Shape, device: Device) -> Taken:
    _, priced = _pricing(config, shape, device)
    return shape.weights, max(priced, _trained(config, shape, config.gains))


def _training_rank_one(config: Config, shape: Shape, device: Device) -> Taken:
    return shape.weights, _trained(config, shape, config.rank_one)


def _learning_maps(config: Config, shape: Shape, device: Device) -> Taken:
    tokens, texts = LABELLED_BATCH * config.probe.max_tokens, config.probe.count // 2
    # As they were and as they are moved, in float32; and the goals, of each text in float64.
    channels = (2 * 4 * tokens + 8 * texts) * shape.layers * shape.neurons
    return shape.weights, shape.graph(tokens) + channels


def _learning_directions(config: Config, shape: Shape, device: Device) -> Taken:
    tokens = DIRECTIONS_BATCH * config.probe.max_tokens + HELD_TEXTS[0] * HELD_TEXTS[1]
    return shape.weights, shape.graph(tokens) + tokens * shape.vocabulary * TRAINED_LOGIT


def priced_tokens(config: Config, sources: Sequence[str]) -> int:
    """How many tokens a dial reads, of the neutral text and these."""
    return (1 + len(sources)) * PRICED * config.evaluation.window


def _down_projections(shape: Shape) -> int:
    """Which are kept while an edit is folded in."""
    return shape.layers * shape.neurons * shape.d_model * shape.itemsize


def _dialling(config: Config, shape: Shape, device: Device) -> Taken:
    settings = config.evaluation
    folded = _down_projections(shape)
    base = priced_tokens(config, config.detox.texts) * shape.vocabulary * 4
    return shape.weights, folded + base + _reading(shape, settings.window)


def _fitting(config: Config, shape: Shape, device: Device) -> Taken:
    fitted: list[Taken] = [(shape.weights, LABELLED)]
    for method in config.ladder.methods:
        name = "train" if method.startswith("dpo") else method
        fitted += [TAKEN[name](config, shape, device)] if name in TAKEN else []
    return max(fixed for fixed, _ in fitted), max(variable for _, variable in fitted)


def _comparing(config: Config, shape: Shape, device: Device) -> Taken:
    # A tuned model is dialled between its own weights and the base's, both kept.
    models = 3 if any(name.startswith("dpo") for name in config.ladder.methods) else 1
    weights, measured = _measuring(config, shape, device, models=models)
    texts = priced_tokens(config, config.ladder.texts)
    # Of the gate and the value too where an edit acts on what they write.
    linear = any(name in ALL_LINEAR for name in config.ladder.methods)
    # In 32 bits hooks act.
    folded = _down_projections(shape) * (3 if linear else 1) if shape.itemsize == 2 else 0
    return weights, measured + folded + texts * shape.vocabulary * 4


TAKEN: dict[str, Callable[[Config, Shape, Device], Taken]] = {
    "probe": _probing,
    "base": _measuring,
    "pairs": _sampling,
    "means": _decoding,
    "train": _tuning,
    "activations": partial(_decoding, models=2),
    "evaluate": partial(_measuring, models=2),
    "gains": _training_gains,
    **dict.fromkeys(RANK_ONE, _training_rank_one),
    "step": _pricing,
    "labels": _pricing,
    "labels_rank_one": _learning_directions,
    **dict.fromkeys(("edit_set", "edit_scale"), _decoding),
    **dict.fromkeys(("lineas", "lineas_published"), _learning_maps),
    "front": partial(_measuring, models=2),
    "dial": _dialling,
    "check": _measuring,
    "fit": _fitting,
    "compare": _comparing,
}

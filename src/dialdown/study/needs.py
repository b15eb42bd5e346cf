"""What each stage of a study will take, before any work: memory, disk, and how many tokens it puts
through the model, from which an honest "left" and the time on this machine follow.

These are estimates. Memory counts weights, gradients, an optimiser's state, activations, logits,
keys and values, and what is kept beside them; what libraries take is one lump a process.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from ..data.loading import read_tokenizer
from ..errors import DialdownError
from ..exporting.checkpoint import locate, skeleton
from ..models.lm import LM
from ..models.memory import Shape
from ..models.templates import check_template
from ..training.settings import OPTIMIZERS
from ..workers import gpus
from .config import DECODED_ON_CPU, PAIRS_ON_CPU, Config
from .memory import TAKEN, Device, device_name, device_of, priced_tokens, workers_of
from .plan import has_front
from .stage import ALL, RANK_ONE, STAGES

# What Python, torch and the libraries of a process take, and what a process holds beside weights.
PROCESS_BYTES = 700 << 20
# A token of training passes through the reference once and through the policy forward and back.
TRAINING_PASSES = 4
# Rows by extent, with both protocols: on all prompts, and on those of the controls.
ROWS = {"conclusions": (22, 18), "tables": (33, 49)}
# A prompt of which no two continuations lie far enough apart gives no pair.
PROMPTS_A_PAIR = 1.4
# Percent of all cores that others use, from which it is said.
BUSY = 40


def shape_of(config: Config) -> Shape:
    """The sizes of a study's model, from its files without its weights."""
    folder, name, _ = locate(config.model, config.revision)
    lm = skeleton(folder, name)
    if config.template != "none":
        tokenizer = read_tokenizer(str(folder), name=name)
        template = check_template(tokenizer, config.template, name)
        lm = LM(lm.model, tokenizer, lm.view, name, template=template)
    on_cpu = device_name(config) == "cpu"
    saved = str(lm.model.config.get_text_config().dtype or "float32")
    dtype = config.dtype or ("float32" if on_cpu else saved)
    return Shape.of(lm, 4 if dtype.endswith("float32") else 2)


@dataclass(frozen=True)
class Need:
    """What a stage takes.

    Attributes:
        stage: its name.
        memory: bytes at most, of all processes that share a device.
        least: of these, what no batch size lowers: weights, gradients and an optimiser's state of
            one process.
        disk: bytes that it leaves.
        tokens: what it puts through the model, in tokens of a forward pass.
    """

    stage: str
    memory: int
    least: int
    disk: int
    tokens: float


def needs(
    config: Config, shape: Shape, device: Device, *, stages: Collection[str] = STAGES
) -> list[Need]:
    """What those of the stages take that put tokens through the model, in order.

    Args:
        config: the study's settings.
        shape: of the model.
        device: where it runs.
        stages: by name.
    """
    listed = []
    for stage, tokens in tokens_by_stage(config, stages, around=shape.around).items():
        fixed, variable = TAKEN[stage](config, shape, device)
        ranks = getattr(config, ALL[stage].trains, None)
        # Ranks have a GPU each.
        training = ranks.processes if ranks and not device.gpus else 1
        processes = _together(config, shape, device, stage) if ALL[stage].pieces else training
        memory = processes * (fixed + variable + PROCESS_BYTES)
        # What starts the workers has no model meanwhile.
        memory += PROCESS_BYTES if processes > 1 and not device.gpus else 0
        listed.append(Need(stage, memory, fixed, _disk(stage, config, shape), tokens))
    return listed


def _together(config: Config, shape: Shape, device: Device, stage: str) -> int:
    """How many workers of a stage share this machine's memory, or a GPU's."""
    workers = workers_of(config, shape, device, stage)
    # Those of a cluster take the memory of other machines.
    here = workers if isinstance(workers, int) else 1
    return -(-here // device.gpus) if device.gpus else here


def check_room(config: Config, stages: Collection[str], new: Path | None) -> str | None:
    """Say in one line what memory the stages take at most of what is free; None where nothing can
    be said.

    Args:
        config: the study's settings.
        stages: by name.
        new: the folder, where nothing is yet in it.
    """
    try:
        shape, device = shape_of(config), device_of(config)
    except DialdownError:
        # Loading the model says what is wrong.
        return None
    listed = needs(config, shape, device, stages=stages)
    if not listed:
        return None
    where = "GPU" if device.kind == "cuda" else "machine"
    worst = max(listed, key=lambda need: need.least)
    if worst.least > device.total:
        raise DialdownError(
            f"{config.model} does not fit: its stage {worst.stage} takes {size(worst.least)} of "
            f"memory at least, and this {where} has {size(device.total)}: "
            f"{way_out(worst.stage, config, weights=True)}."
        )
    if new is not None:
        _check_disk(config, listed, new)
    return memory_line(config, listed, device)


def _check_disk(config: Config, listed: Sequence[Need], folder: Path) -> None:
    disk, free = sum(need.disk for need in listed), free_disk(folder)
    if disk > free:
        most = max(listed, key=lambda need: need.disk).stage
        lora = " or set dpo.lora_rank to 16," if most == "train" else ""
        raise DialdownError(
            f"{folder} will take up to {size(disk)}, most of it in the stage {most}, and "
            f"{size(free)} are free there: make room,{lora} or pass a folder on another disk."
        )


def free_disk(folder: Path) -> int:
    """Bytes free where a folder is, or will be."""
    place = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(place).free


def memory_line(config: Config, listed: Sequence[Need], device: Device) -> str:
    """Whether what the stages take is free here, and what to do where it is not."""
    worst = max(listed, key=lambda need: need.memory)
    says = f"memory: up to {size(worst.memory)} ({worst.stage}) of {size(device.free)} free"
    if worst.memory <= device.free:
        return f"{says}, so it fits"
    return f"{says}, by estimate; should it run out, {way_out(worst.stage, config)}"


def busy_lines() -> Iterator[str]:
    """A warning where other processes keep this machine busy and threads spin meanwhile."""
    if os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive":
        return
    # For half a second this process only waits. The system's load would count what just ended.
    if (busy := psutil.cpu_percent(interval=0.5)) >= BUSY:
        # OpenMP's threads wait for each other by spinning: a second busy process can make a forward
        # pass ten times slower.
        yield (
            f"cores: other processes keep {busy:.0f} % of them busy; stop them, or set "
            "OMP_WAIT_POLICY=passive, or this will be many times slower than need be"
        )


def way_out(stage: str, config: Config, *, weights: bool = False) -> str:
    """What to pass instead where a stage has too little memory: the end of a sentence.

    Args:
        stage: its name.
        config: the study's settings.
        weights: whether they alone are too large, so that no smaller batch helps.
    """
    on_cpu = not device_name(config).startswith("cuda")
    ways = ["dpo.lora_rank to 16"] if stage == "train" and not config.dpo.lora_rank else []
    may_share = ways and config.dpo.kl_positions == "completion"
    if may_share and (cards := len(gpus(config.device))) > config.dpo.processes:
        ways.append(f"dpo.processes to {cards}")
    if not weights:
        lowered = (_lowered(setting, config, on_cpu) for setting in ALL[stage].lowered)
        ways += filter(None, lowered)
        ways += ["workers to 1"] if ALL[stage].pieces and config.workers != 1 else []
    if config.dtype == "float32" or (config.dtype is None and on_cpu):
        ways.append("dtype to bfloat16")
    return f"set {', or '.join(ways)}" if ways else "pass a smaller model"


def _lowered(setting: str, config: Config, on_cpu: bool) -> str | None:
    """A setting and half of its value; None where it is as low as it goes."""
    section, _, name = setting.partition(".")
    settings = getattr(config, section)
    value = getattr(settings, name)
    if value == "auto":
        # Elsewhere it was halved to 1 before memory was said to be short.
        value = {"pairs": PAIRS_ON_CPU, "evaluation": DECODED_ON_CPU}[section] if on_cpu else 1
    if setting == "evaluation.batch_size":
        value = min(value, settings.count + settings.pairs_count)
    if value == 1:
        return None
    steps = hasattr(settings, "accumulation")
    more = f" and {section}.accumulation to {2 * settings.accumulation}" if steps else ""
    return f"{setting} to {value // 2}{more}"


def size(count: float) -> str:
    """Bytes as they are read."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**28 else f"{count / 2**20:.0f} MiB"


def tokens_by_stage(
    config: Config, stages: Collection[str] = STAGES, *, around: int = 0
) -> dict[str, float]:
    """Tokens that each of the stages puts through the model; one that is not asked for, or puts
    none, is left out.

    Args:
        config: the study's settings.
        stages: by name.
        around: tokens that a chat template puts around a prompt.
    """
    probe, pairs, evaluation = config.probe, config.pairs, config.evaluation
    protocols = len(config.protocols)
    prompt = evaluation.max_prompt_tokens + around
    decoded = float(evaluation.count * (prompt + evaluation.max_new_tokens))
    prompted = prompt + pairs.max_new_tokens
    trained = 2.0 * TRAINING_PASSES * pairs.count * prompted
    candidates = pairs.unsteered + pairs.steered
    row = partial(_row, config, prompt)
    whole, controls = (
        share * protocols / 2 * len(config.interventions.families) / 3
        for share in ROWS[config.interventions.extent]
    )
    methods = len(config.ladder.methods)
    before_tuning = 4.0 * protocols * row(evaluation.count)
    tokens = {
        # Read, not decoded, and without the unembedding.
        "probe": 0.5 * probe.count * probe.max_tokens * protocols,
        "base": decoded + before_tuning,
        "pairs": PROMPTS_A_PAIR * pairs.count * candidates * prompted,
        "means": decoded,
        "train": trained * config.dpo.epochs,
        "activations": decoded,
        # What `base` measured is not measured again.
        "evaluate": max(whole * row(evaluation.count) - before_tuning, 0)
        + controls * row(min(evaluation.control_count, evaluation.count)),
        # The KL on text of the model's own is as much again.
        "gains": 2 * trained * config.gains.epochs,
        **dict.fromkeys(RANK_ONE, 2 * trained * config.rank_one.epochs),
        "step": trained,
        "labels": float(TRAINING_PASSES * probe.count * probe.max_tokens),
        "labels_rank_one": float(TRAINING_PASSES * probe.count * probe.max_tokens),
        "front": 60.0 * row(config.front.count),
        "dial": 5.0 * priced_tokens(config, config.detox.texts),
        "check": 3.0 * row(evaluation.count),
        "fit": methods * trained,
        "compare": methods * row(config.ladder.prompts),
    }
    left_out = set() if config.tuned is None else {"pairs", "train", "gains", "step"}
    if "front" in stages and not has_front(config):
        left_out |= {"gains", "step", "front"}
    return {stage: tokens[stage] for stage in stages if stage in tokens.keys() - left_out}


def _row(config: Config, prompt: int, prompts: int) -> float:
    """Tokens of one row: continuations, those for F1, and the windows of text."""
    evaluation = config.evaluation
    a_prompt = prompt + evaluation.max_new_tokens
    pairs = evaluation.pairs_count * prompts / evaluation.count
    # Texts fill fewer windows than are allowed; this many tokens are in the longest embedded one.
    text = min(evaluation.max_windows * evaluation.window, 300_000)
    return (prompts + pairs) * a_prompt + text


def _disk(stage: str, config: Config, shape: Shape) -> int:
    # Three checkpoints at worst (best, last and the one being written), with the optimiser's state,
    # stand beside the result until the end.
    trained = 0 if config.dpo.lora_rank else 4 * shape.parameters
    checkpoints = 3 * (1 + OPTIMIZERS[config.dpo.optimizer][1]) * trained
    tuned = sum(name.startswith("dpo") for name in config.ladder.methods)
    values = shape.layers * shape.neurons
    return {
        "train": shape.weights * (1 + config.dpo.snapshots) + checkpoints,
        "fit": tuned * shape.weights + min(tuned, 1) * checkpoints,
        "base": values * 8 * 2,
        "activations": values * 8 * 2,
        "evaluate": values * 8 * 40,
    }.get(stage, 1 << 20)

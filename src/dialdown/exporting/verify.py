"""Whether an exported checkpoint does what the edit does: its logits against those of the hooked
base model, and its weights against the base's with the edit in them, bit by bit.

Logits show that hooks and weights are one edit, as far as rounding lets them: where weights of 16
bits are rounded, all that a weak edit does is less than what rounding may do. Weights show that
what was made of the base is what stands in the folder.

The base model runs with the edit as hooks, then the exported folder as any user would load it, one
after the other, so that memory holds one at a time. Both run in float32 whatever the checkpoint's
dtype, so that the arithmetic of a forward pass adds nothing to what the export itself rounded;
weights of 16 bits are widened one module at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..errors import DialdownError
from ..interventions.intervention import Intervention
from ..models.lm import LM, load
from ..progress import progress
from ..workers import return_free_memory
from .checkpoint import Checkpoint
from .rewrite import as_exported, folded
from .vllm import VllmCheck, compare_in_vllm

PROMPTS = (
    "The library opens at nine in the morning and",
    "She planted tomatoes along the fence because",
    "A train from the coast arrives every",
    "Water boils at a lower temperature when",
    "My neighbour repairs old radios, and last week he",
    "The recipe asks for two cups of flour,",
    "In 1969 the first astronauts",
    "He looked at the map again and",
    "To install the program, open a terminal and type",
    "The committee will meet on Thursday to discuss",
    "When the rain stopped, the children",
    "Bees tell each other where flowers are by",
    "The price of copper rose after",
    "Our flight was delayed, so we",
    "A triangle with three equal sides is called",
    "The violin was made in a small workshop near",
    "I disagree with the second paragraph, since",
    "Dear Ms. Tanaka, thank you for",
    "def mean(values):\n    return",
    "The mountain path is closed in winter because of",
    "Most birds of this species build their nests",
    "What is the capital of Portugal? The answer is",
    "After forty years at the mill, he finally",
    "The new bridge shortens the way to",
    "Photosynthesis turns light into",
    "They argued all evening about whether",
    "If the battery is empty, the red lamp",
    "The museum's oldest painting shows",
    "Once upon a time, in a village by the sea,",
    "The judge read the letter twice before",
    "Eggs, milk, bread, and",
    "On the last page of her notebook she wrote:",
)
# Between a hook and the same edit folded, in float32, where neither is near to overflowing.
TOLERANCE = 1e-3
TOGETHER = 8  # texts in one forward pass
SLACK = 4.0  # how much larger than random rounding errors of the same size the real ones may act


@dataclass(frozen=True)
class Verification:
    """What was measured.

    Attributes:
        prompts, positions: how many texts, and token positions in all of them.
        difference: the largest absolute difference of any logit at any position.
        tolerance: the largest that is accepted.
        rounding: the largest difference that random errors of the size of one rounding to the
            checkpoint's dtype make when they are put into what the edit wrote. The tolerance is
            four times that plus 1e-3.
        weights: how many of the model's weights were compared bit by bit.
        vllm: the same in vLLM, where it was asked for.
    """

    prompts: int
    positions: int
    difference: float
    tolerance: float
    rounding: float
    weights: int
    vllm: VllmCheck | None = None

    def __str__(self) -> str:
        text = f"its logits differ from the hooked model's by at most {self.difference:.1g}"
        return text if self.vllm is None else f"{text}; {self.vllm}"


def verify_export(
    base: Checkpoint, edit: Intervention, exported: Path, *, vllm: bool = False
) -> Verification:
    """Compare an exported folder with the hooked base model on 32 texts (`PROMPTS`).

    Args:
        base: the base; if its weights have 16 bits, both models are held in that.
        edit: the edit.
        exported: the folder to verify; it is loaded with plain transformers.
        vllm: compare in vLLM too.
    """
    ids, reference, rounding = _reference(base, edit)
    return_free_memory()
    tokenizer: Any = AutoTokenizer.from_pretrained(exported)
    if [tokenizer(text)["input_ids"] for text in PROMPTS] != ids:
        raise DialdownError(
            f"The tokenizer of the export gives other ids than that of {base.name}, so their "
            "logits cannot be compared: pass a base folder that holds all files of its tokenizer."
        )
    model: Any = AutoModelForCausalLM.from_pretrained(exported, dtype=_held(base.dtype))
    model.eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    difference = 0.0
    with _computing_in_float32(model):
        pairs = zip(_logits(model, ids), reference, strict=True)
        for done, (logits, expected) in enumerate(pairs, 1):
            difference = _worse(difference, logits, expected)
            progress("verifying", done, len(ids))
    tolerance = TOLERANCE + SLACK * rounding
    if not difference <= tolerance:  # a NaN does not pass
        raise _unlike(f"a logit differs by {difference:.2g}, where {tolerance:.2g} is accepted")
    weights, positions = _check_weights(base, edit, model), sum(map(len, ids))
    measured = Verification(len(ids), positions, difference, tolerance, rounding, weights)
    if not vllm:
        return measured
    del model
    return_free_memory()
    progress("verifying in vLLM", 0, 1)
    check = compare_in_vllm(exported, base.folder, ids, reference, tolerance=tolerance)
    if not check.difference <= check.tolerance:
        raise _unlike(f"{check}, where {check.tolerance:.2g} is accepted")
    progress("verifying in vLLM", 1, 1)
    return replace(measured, vllm=check)


def _unlike(what: str) -> DialdownError:
    return DialdownError(
        f"The exported checkpoint does not do what the edit does, so it was not written: {what}: "
        "repeat the export, or leave verification out (--no-verify, or verify=False) to write it "
        "and look."
    )


def _check_weights(base: Checkpoint, edit: Intervention, model: nn.Module) -> int:
    """Refuse a model of which a weight is not what the edit makes of the base's, or the base's
    where it makes nothing of it; how many were compared.
    """
    lm, biases = as_exported(base, edit)
    parameters = {name: weight.detach() for name, weight in model.named_parameters()}
    compared = 0

    def check(name: str, expected: Tensor) -> None:
        nonlocal compared
        held = parameters.pop(name)
        if not torch.equal(held.cpu(), expected.to(held.dtype)):
            raise _unlike(f"its {name} is not what the edit makes of that of {base.name}")
        compared += held.numel()

    for fold in edit.folds(lm):
        for part, expected in folded(base, fold, biases).items():
            check(f"{fold.projection.path}.{part}", expected)
    for name, held in [*parameters.items()]:
        stored = base.tensors.get(base.plain_name(name) or "")
        # Some classes hold a weight otherwise than it is stored.
        if stored is not None and stored.shape == tuple(held.shape):
            check(name, stored.read())
    return compared


def _reference(base: Checkpoint, edit: Intervention) -> tuple[list[list[int]], list[Tensor], float]:
    """Ids and logits of the hooked base model, and what rounding makes of them. The model is gone
    afterwards.
    """
    lm = load(str(base.folder), dtype=str(_held(base.dtype)).removeprefix("torch."))
    for fold in edit.folds(lm):
        # Hooks compute with these outside of their own forward pass, and rounding errors are added.
        fold.projection.linear.float()
    ids: list[list[int]] = [lm.tokenizer(text)["input_ids"] for text in PROMPTS]
    with _computing_in_float32(lm.model):
        # Steering acts with no neuron moved, and an edit that does nothing has no hook to run.
        with edit.applied(lm):
            reference = [*_logits(lm.model, ids)]
        rounding = 0.0
        with _rounding_errors(lm, edit, _held(base.dtype)), edit.applied(lm):
            for logits, expected in zip(_logits(lm.model, ids), reference, strict=True):
                rounding = _worse(rounding, logits, expected)
    return ids, reference, rounding


def _held(dtype: torch.dtype) -> torch.dtype:
    """What weights of a checkpoint in `dtype` are held in."""
    return dtype if dtype.itemsize == 2 else torch.float32


@contextmanager
def _computing_in_float32(model: nn.Module) -> Iterator[None]:
    """Forward passes in float32, whatever the weights are held in: each module's are widened while
    it runs.

    A number of 16 bits comes back from float32 as it was, so no weight changes.
    """
    held = {weight: weight.dtype for weight in model.parameters()}

    def widen(module: nn.Module, args: Any) -> None:
        for weight in module.parameters(recurse=False):
            weight.data = weight.data.float()

    def narrow(module: nn.Module, args: Any, out: Any) -> None:
        for weight in module.parameters(recurse=False):
            weight.data = weight.data.to(held[weight])

    with ExitStack() as stack:
        for module in model.modules():
            if any(held[weight].itemsize < 4 for weight in module.parameters(recurse=False)):
                stack.callback(module.register_forward_pre_hook(widen, prepend=True).remove)
                stack.callback(module.register_forward_hook(narrow).remove)
        yield


@contextmanager
def _rounding_errors(lm: LM, edit: Intervention, dtype: torch.dtype) -> Iterator[None]:
    """Put random errors, up to one rounding to `dtype` each, into every number the edit writes.

    The model's weights are changed for good. A weight whose gain is 1 or 0 is stored exactly and
    keeps its value.
    """
    unit, smallest = torch.finfo(dtype).eps / 2, torch.finfo(dtype).tiny
    generator = torch.Generator().manual_seed(0)

    def errors(values: Tensor) -> Tensor:
        uniform = 2 * torch.rand(values.shape, generator=generator) - 1
        return uniform.to(values) * values.abs().clamp(min=smallest) * unit

    with ExitStack() as stack, torch.no_grad():
        for fold in edit.folds(lm):
            columns, linear = fold.projection.columns, fold.projection.linear
            bias = fold.projection.bias
            if bias is None:
                bias = torch.zeros(len(columns), device=lm.device)
            written, moved = fold.folded(columns, bias)
            # Hooks come after: a weight's error reaches the output times the gains it has there.
            reach = torch.from_numpy(fold.reach).to(columns)
            rounded = torch.from_numpy(fold.rounded).to(lm.device)
            columns.add_(torch.where(rounded, errors(written) / reach, 0))
            if fold.needs_bias and moved is not None:
                error = errors(moved) / torch.from_numpy(fold.reach_of_bias).to(moved)
                handle = linear.register_forward_hook(lambda _, args, out, e=error: out + e)
                stack.callback(handle.remove)
        yield


def _logits(model: Any, ids: Sequence[list[int]]) -> Iterator[Tensor]:
    """(tokens, V) float32 of every text, some texts at a time: weights that are widened are so once
    for all of them.
    """
    for start in range(0, len(ids), TOGETHER):
        chunk = ids[start : start + TOGETHER]
        longest = max(map(len, chunk))
        # What follows a text has no part in a causal model's logits there, so no mask is needed.
        rows = [tokens + tokens[-1:] * (longest - len(tokens)) for tokens in chunk]
        padded = torch.tensor(rows, device=model.device)
        with torch.inference_mode():
            logits = model(input_ids=padded, use_cache=False).logits.float().cpu()
        yield from (row[: len(tokens)] for row, tokens in zip(logits, chunk, strict=True))


def _worse(so_far: float, logits: Tensor, expected: Tensor) -> float:
    """The larger of a difference and that of two logits; NaN where either has one."""
    # `max` of Python would lose a NaN on its right.
    return float(torch.stack([torch.tensor(so_far), (logits - expected).abs().max()]).max())

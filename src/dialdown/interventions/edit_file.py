"""What an edit and its file may hold: every number, tensor and field is checked before anything is
made of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from ..errors import DialdownError
from ..models.protocol import Site

Kind = Literal["none", "set", "shift", "scale", "affine", "rank_one", "outputs", "steer"]
EditKind = Literal["set", "shift", "scale"]
Ordering = Literal["cosine", "activation", "notebook"]
# Kinds of which the edit of beta dialled to s is the edit of s * beta.
BETA_DIALS = ("scale", "shift")
# Name of a tensor, what numpy calls its kind of numbers, how many axes it may have, and the tensor
# that has as many rows; but what a layer writes, it has its shape, too.
TENSORS = {
    "gain": ("f", (2,), "gain"),
    "selected": ("b", (2,), "gain"),
    "offset": ("f", (2,), "gain"),
    "reads": ("f", (2, 3), "gain"),
    "writes": ("f", (2, 3), "reads"),
    "output_gain": ("f", (1,), "output_gain"),
    "output_offset": ("f", (1,), "output_gain"),
    "vector": ("f", (1,), "vector"),
}
NEEDED = {"gain", "selected"}
# Tensors that edits of one kind have, and no other.
KIND_OF: dict[str, Kind] = {
    "vector": "steer",
    "reads": "rank_one",
    "writes": "rank_one",
    "output_gain": "outputs",
    "output_offset": "outputs",
}


class Header(BaseModel):
    """What the header of an edit's file says beside its schema."""

    model_config = ConfigDict(strict=True)

    name: Annotated[str, Field(min_length=1)]
    effect: Kind
    alpha: FiniteFloat | None
    beta: FiniteFloat | None
    control_of: str | None
    record: dict[str, Any]
    site: Site = "mlp"
    also: list[Kind] = []  # what else it does, where it is of several kinds
    # JSON has no tuples.
    outputs: list[Annotated[tuple[str, int], Field(strict=False)]] = []


class _Strength(BaseModel):
    strength: FiniteFloat = 1.0


def of_one_shape(
    name: str, gain: NDArray[Any], offset: NDArray[Any], selected: NDArray[Any]
) -> dict[str, NDArray[Any]]:
    """The three by name, (L, F) each, with what is left out; what has another shape is refused
    (DialdownError).
    """
    shapes = {"gain": gain.shape, "offset": offset.shape, "selected": selected.shape}
    sizes = {shape for shape in shapes.values() if np.prod(shape)} or {(0, 0)}
    if len(sizes) > 1 or len(shape := sizes.pop()) != 2:
        raise DialdownError(
            f"The numbers of {name} have the shapes {shapes}: pass one number per layer and "
            "neuron, (L, F), or leave an array out."
        )
    gain = gain if gain.size else np.ones(shape)
    offset = offset if offset.size else np.zeros(shape)
    selected = selected if selected.size else (gain != 1) | (offset != 0)
    return {"gain": gain, "offset": offset, "selected": selected}


def check_strength(strength: float) -> None:
    """Refuse to dial to what is not a finite number (DialdownError)."""
    if not np.isfinite(strength):
        raise DialdownError(
            f"A strength of {strength} cannot be applied: pass a finite number, 1 for the whole "
            "edit."
        )


def dialled(
    kind: Kind, alpha: float | None, beta: float | None, strength: float
) -> tuple[float | None, float | None]:
    """What alpha and beta of an edit become when it is dialled: steering's alpha and the beta of a
    scale or a shift are strengths, a fraction of neurons and the constants of a set are not.
    """
    if alpha is not None and kind == "steer":
        alpha *= strength
    if beta is not None and kind in BETA_DIALS:
        beta *= strength
    return alpha, beta


def check_edit(path: Path, arrays: Mapping[str, NDArray[Any]], header: Mapping[str, Any]) -> Header:
    """Refuse a file whose tensors, by name, or header are not those of an edit."""
    try:
        checked = Header.model_validate(header)
        _Strength.model_validate(checked.record)
        json.dumps(checked.record, allow_nan=False)
    except ValidationError as error:
        raise damaged(path, first_problem(error)) from error
    except ValueError as error:
        raise damaged(path, "its record has a number that is not finite") from error
    if problem := _problem(arrays, checked.site):
        raise damaged(path, problem)
    if problem := _problem_of_outputs(arrays, checked.outputs):
        raise damaged(path, problem)
    for name, kind in KIND_OF.items():
        if (kind in (checked.effect, *checked.also)) != (name in arrays):
            having = "with" if name in arrays else "without"
            raise damaged(path, f"a {checked.effect} {having} a tensor {name}")
    return checked


def narrow(array: NDArray[np.float64]) -> NDArray[Any]:
    """In float32 where that holds every number, and as it is otherwise."""
    with np.errstate(over="ignore"):
        short = array.astype(np.float32)
    return short if np.array_equal(short, array) else array


def _problem(arrays: Mapping[str, NDArray[Any]], site: Site) -> str | None:
    if missing := NEEDED - arrays.keys():
        return f"it has no tensor {min(missing)}"
    if unknown := arrays.keys() - TENSORS.keys():
        return f"it has a tensor {min(unknown)!r}"
    for name, array in arrays.items():
        kind, axes, like = TENSORS[name]
        if array.dtype.kind != kind or array.ndim not in axes:
            return f"its tensor {name} is {array.dtype} of shape {array.shape}"
        # Attention's channels are not neurons.
        other = arrays.get("reads" if (name, site) == ("reads", "attention") else like, array)
        # Several directions have their number in front; what is written is as wide as the model.
        whole, like_whole = array.shape, other.shape
        if name == "reads":
            whole, like_whole = whole[-2:], like_whole[-2:]
        elif name == "writes":
            whole, like_whole = whole[:-1], like_whole[:-1]
        if whole != like_whole:
            return f"its tensor {name} has shape {array.shape} where {like} has {other.shape}"
        if not np.isfinite(array).all():
            return f"its tensor {name} has numbers that are not finite"
    return None


def _problem_of_outputs(
    arrays: Mapping[str, NDArray[Any]], outputs: list[tuple[str, int]]
) -> str | None:
    paths, widths = [path for path, _ in outputs], [width for _, width in outputs]
    if len({*paths}) < len(paths):
        return f"its outputs name {max(paths, key=paths.count)} twice"
    if outputs and min(widths) < 1:
        return f"its outputs have a module of {min(widths)} channels"
    held = arrays["output_gain"].size if "output_gain" in arrays else None
    if held is None and not outputs:
        return None
    if not outputs or sum(widths) != held:
        return f"its header lists {sum(widths)} outputs, its tensors hold {held or 0}"
    return None


def first_problem(error: ValidationError) -> str:
    """The first thing that is wrong, by the path of the field."""
    problem = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, problem["loc"]))
    return f"{where}: {problem['msg']}" if where else problem["msg"]


def damaged(path: Path, problem: str) -> DialdownError:
    """The sentence for a file that is not what its name says."""
    return DialdownError(
        f"{path} is not as dialdown writes it ({' '.join(problem.split())[:200]}): fetch it again, "
        "or write it again with this version of dialdown."
    )

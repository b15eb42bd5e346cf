"""Reading a model's activations and changing them: the one place where hooks are put on a model.

    with neuron_hooks(lm, read) as called:       # read(layer, m): m is (batch, positions, F)
        lm.model(**batch)

A hook sits before the down projection, so that it sees the activations m, and what it returns goes
on in their place. Every context leaves the model as it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from torch import Tensor, nn

from ..errors import DialdownError
from .mlp import check_axes
from .projection import Projection

if TYPE_CHECKING:
    from .lm import LM

Positions = Literal["all", "last", "first"]
"""Where in each forward pass a change acts (METHOD §5)."""
InputHook = Callable[[int, Tensor], Tensor | None]
Called = dict[int, bool]
"""Whether each layer was called. A hook writes it and never reads it, and it has every key from the
start: of anything else a compiled model would be compiled again at the next call.
"""

Key = TypeVar("Key", int, str)

# How many contexts are changing the layers of a model, by the model's id.
_changing: Counter[int] = Counter()


class Change(Protocol):
    """What may act on a model while it decodes or reads: `interventions.Intervention` is one."""

    @property
    def name(self) -> str:
        """What its results carry."""

    @property
    def acts_in_layers(self) -> bool:
        """Whether it acts inside of layers, not on the final residual stream alone."""

    def measured(self, lm: LM, *, positions: Positions = "all") -> AbstractContextManager[None]:
        """Act on `lm` inside the context."""


def neuron_hooks(
    lm: LM, act: InputHook, layers: Sequence[int] | None = None
) -> AbstractContextManager[Called]:
    """Call `act(layer, m)` with what each down projection reads, and pass on what it returns.

    Args:
        lm: the model.
        act: from a layer's index and its activations (batch, positions, F) to what replaces them,
            or None.
        layers: which layers; all by default.

    Yields:
        Whether each layer was called, as they are.

    Raises:
        DialdownError: activations without a batch and a position axis.
    """
    return input_hooks(lm.view.layers, act, layers)


@contextmanager
def input_hooks(
    projections: Sequence[Projection], act: InputHook, layers: Sequence[int] | None = None
) -> Iterator[Called]:
    """The same with what each of some projections reads, one for each layer of a model."""
    called: Called = dict.fromkeys(range(len(projections)) if layers is None else layers, False)
    with ExitStack() as stack:
        for index in called:
            projection = projections[index]

            def change(m: Tensor, index: int = index, path: str = projection.path) -> Tensor | None:
                check_axes(m, path)
                called[index] = True
                return act(index, m)

            stack.enter_context(_before(projection.linear, change))
        yield called


@contextmanager
def _before(module: nn.Module, change: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Let a module read what `change` makes of its first argument, where that is not None."""

    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        changed = change(args[0])
        return None if changed is None else (changed, *args[1:])

    with module.register_forward_pre_hook(hook):
        yield


@contextmanager
def output_hooks(
    modules: Mapping[Key, nn.Module], act: Callable[[Key, Tensor], Tensor | None]
) -> Iterator[dict[Key, bool]]:
    """Call `act(key, y)` with what each module writes, (batch, positions, channels), and pass on
    what it returns, where that is not None. Yields whether each was called, as it is.
    """
    called = dict.fromkeys(modules, False)

    def hook(key: Key, module: nn.Module, args: Any, out: Tensor) -> Tensor | None:
        called[key] = True
        return act(key, out)

    with ExitStack() as stack:
        for key, module in modules.items():
            stack.enter_context(module.register_forward_hook(partial(hook, key)))
        yield called


def edited_at(positions: Positions, before: Tensor, after: Tensor) -> Tensor:
    """`after` at the positions where a change acts, in the dtype of `before`, which is elsewhere;
    (batch, positions, channels) both.
    """
    if positions == "all":
        return after.to(before)
    where = -1 if positions == "last" else 0
    edited = before.clone()
    edited[:, where] = after[:, where].to(before)
    return edited


def stream_hooks(
    lm: LM, read: Callable[[int, Tensor], None]
) -> AbstractContextManager[dict[int, bool]]:
    """Call `read(layer, x)` with the residual stream after each decoder layer, (batch, positions,
    d).
    """

    def first(layer: int, out: Any) -> None:
        read(layer, out[0] if isinstance(out, tuple) else out)

    paths = (layer.decoder_layer for layer in lm.view.layers)
    return output_hooks(dict(enumerate(map(lm.model.get_submodule, paths))), first)


@contextmanager
def residual_hook(lm: LM, act: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Call `act(x)` with the final-layer residual stream before the final norm, (batch, positions,
    d), and pass on what it returns.
    """
    # NanoChat norms its embeddings by the same module, and Dory what it loops over: the residual
    # stream is final once the last MLP has written.
    final = [False]

    def written(*call: Any) -> None:
        final[0] = True

    def read(x: Tensor) -> Tensor | None:
        if not final[0]:
            return None
        final[0] = False
        return act(x)

    last = lm.view.layers[-1].linear
    with last.register_forward_hook(written), _before(lm.view.final_norm, read):
        yield


@contextmanager
def changing(lm: LM) -> Iterator[None]:
    """Mark that layers of `lm` are being changed inside the context."""
    _changing[id(lm.model)] += 1
    try:
        yield
    finally:
        _changing[id(lm.model)] -= 1


def being_changed(lm: LM) -> bool:
    """Whether layers of `lm` are being changed by a context around the caller."""
    return _changing[id(lm.model)] > 0


def acted_on(lm: LM) -> bool:
    """Whether a context around the caller changes layers of `lm`, or steers it."""
    return being_changed(lm) or bool(lm.view.final_norm._forward_pre_hooks)


def check_alone(lm: LM, copied: str = "copied") -> None:
    """Refuse to copy a model that an intervention acts on, whose hooks the copy would keep for good
    (DialdownError); `copied` is what is done, such as "trained".
    """
    if acted_on(lm):
        raise DialdownError(
            f"{lm.name} cannot be {copied} while an intervention acts on it, which the copy would "
            "keep for good: fold, merge or train outside of `applied`."
        )

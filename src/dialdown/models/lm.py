"""Load a causal LM as its users run it, whole or not at all.

An `LM` is a plain transformers model and tokenizer with one extra, the `MLPView`: which module of
each layer is the MLP's down projection.
"""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from ..cards import card
from ..data import assets, loading
from ..errors import DialdownError
from ..files import fingerprint
from . import adapters, templates, tokens
from .hooks import check_alone
from .mlp import MLPView
from .templates import AnyTemplate, Template

# Weights that are hashed at once: each is copied from the GPU for it.
HASHED_AT_ONCE = 8


@dataclass(frozen=True)
class LM:
    """A causal LM: the plain transformers objects, and where its neurons are.

    Attributes:
        model: the transformers model, in eval mode.
        tokenizer: its tokenizer.
        view: its down projections.
        name: what was loaded (hub id, folder or embedded name).
        revision: the hub revision asked for, or None.
        template: what prompts are for it: user turns of the tokenizer's chat template, or text to
            go on with.
    """

    model: Any
    tokenizer: Any
    view: MLPView
    name: str
    revision: str | None = None
    template: Template = "none"

    @classmethod
    def of(
        cls,
        model: Any,
        tokenizer: Any,
        *,
        name: str | None = None,
        down: str | None = None,
        template: AnyTemplate = "none",
    ) -> LM:
        """Wrap a model and tokenizer that are already in memory (see `load` for the errors)."""
        name = name or type(model).__name__
        view = MLPView.find(model, down=down)
        check_weights(model, view, name)
        tokens.check_tokenizer(tokenizer, name, len(model.get_input_embeddings().weight))
        if tokenizer.pad_token_id is None:
            # A copy: whoever brought it may use it elsewhere.
            tokenizer = copy.deepcopy(tokenizer)
            tokenizer.pad_token = tokenizer.eos_token
        prompted = templates.check_template(tokenizer, template, name)
        return cls(model.eval(), tokenizer, view, name, template=prompted)

    def __repr__(self) -> str:
        facts = self.describe()
        return (
            f"LM({self.name}: {facts['class']}, {facts['layers']} layers × {facts['neurons']:,} "
            f"neurons, d {facts['d_model']:,}, {facts['dtype']}, {facts['device']})"
        )

    def _repr_html_(self) -> str:
        return card(f"LM {self.name}", {**self.describe(), "context": f"{self.context:,} tokens"})

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    @property
    def context(self) -> int:
        """The longest sequence the model takes, in tokens."""
        return int(getattr(self.model.config.get_text_config(), "max_position_embeddings", 1 << 30))

    @property
    def bos(self) -> list[int]:
        """The token ids the tokenizer itself puts before a text: one BOS, or nothing."""
        ids = self.encode(["a"])[0]
        return [ids[0]] if ids and ids[0] == self.tokenizer.bos_token_id else []

    @cached_property
    def turns(self) -> templates.TurnMarks | None:
        """What the chat template puts around a turn; None where prompts have no template."""
        return None if self.template == "none" else templates.turn_marks(self.tokenizer)

    @property
    def eos(self) -> frozenset[int]:
        """Ids that end a generation: the model's own, and what ends a reply of its template."""
        ids = self.model.generation_config.eos_token_id
        ids = self.tokenizer.eos_token_id if ids is None else ids
        ends = ids if isinstance(ids, list) else [] if ids is None else [ids]
        replied = self.turns and self.turns.replied
        return frozenset(ends if replied is None else [*ends, replied])

    @property
    def opening(self) -> list[int]:
        """Ids that text of the model's own begins with: what its template puts before a text of the
        user; else its BOS, or where it expects none what ends a text.
        """
        if self.turns and self.turns.opening:
            return [*self.turns.opening]
        return self.bos or [min(self.eos, default=self.tokenizer.pad_token_id)]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text as the model reads it: see `tokens.encode`."""
        return tokens.encode(self.tokenizer, texts)

    def prompt_ids(self, prompts: Sequence[str], longest: int | None = None) -> list[list[int]]:
        """The ids that the model goes on from after each prompt: see `templates.prompt_ids`."""
        return templates.prompt_ids(self.tokenizer, prompts, self.template, longest=longest)

    def continuation_ids(self, prompt: str, text: str) -> list[int]:
        """The token ids that `text` has after a prompt: see `templates.continuation_ids`."""
        return templates.continuation_ids(self.tokenizer, prompt, text, self.template)

    def going_on(self, cache: Any) -> dict[str, Any]:
        """The argument by which a forward pass goes on from an earlier one."""
        # transformers 5.24 renamed it, and takes the old name with a warning until 5.40.
        renamed = "cache" in inspect.signature(self.model.forward).parameters
        return {"cache" if renamed else "past_key_values": cache}

    @staticmethod
    def kept(output: Any) -> Any:
        """The keys and values of a forward pass, to go on from, under either name."""
        return output["cache" if "cache" in output else "past_key_values"]

    def twin(self) -> LM:
        """The same model with weights of its own: changing one leaves the other alone; refused
        where an intervention acts on it (DialdownError).
        """
        check_alone(self)
        model, view = copy.deepcopy((self.model, self.view))
        return replace(self, model=model, view=view)

    def describe(self) -> dict[str, Any]:
        """What a saved value records about the model it came from."""
        return {
            "model": self.name,
            "revision": self.revision,
            "class": type(self.model).__name__,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": self.device.type,
            "template": self.template,
            "layers": self.view.n_layers,
            "neurons": self.view.n_neurons,
            "d_model": self.view.d_model,
        }

    def tokens_fingerprint(self) -> str:
        """Changes with the ids that prompts become: a hash of the vocabulary and of samples."""
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        return fingerprint(vocabulary, self.prompt_ids(tokens.SAMPLES))

    def weights_fingerprint(self) -> str:
        """Changes when any weight changes: a hash of all their bytes."""
        return fingerprint(self.describe(), weight_fingerprints(self.model))


def weight_fingerprints(model: nn.Module) -> list[str]:
    """A hash of the bytes of each weight, several at once: one after another, those of an 8B model
    take half a minute.
    """

    def of(weight: nn.Parameter) -> str:
        plain = weight.detach().cpu().contiguous().reshape(-1)
        return fingerprint(plain.view(torch.uint8).numpy())

    with ThreadPoolExecutor(HASHED_AT_ONCE) as pool:
        return list(pool.map(of, model.parameters()))


def sharing(model: Any) -> Any:
    """A frozen model that shares the weights of `model` and none of its modules."""
    shared: dict[int, Any] = {
        id(weight): nn.Parameter(weight.detach(), requires_grad=False)
        for weight in model.parameters()
    }
    return copy.deepcopy(model, shared).eval()


def load(
    name: str | os.PathLike[str] | PreTrainedModel,
    *,
    tokenizer: Any = None,
    revision: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    down: str | None = None,
    template: AnyTemplate = "none",
) -> LM:
    """Load a causal LM, or take one that is loaded already.

    Args:
        name: a hub id, a folder written by `save_pretrained`, or `embedded:smollm2-135m`; or a
            transformers model in memory, which is used as it is, hooks of others included.
        tokenizer: of a model in memory, which needs one.
        revision: a hub branch, tag or commit, of a hub id.
        dtype: `float32`, `bfloat16` or `float16`; by default float32 on a CPU and the checkpoint's
            own on a GPU.
        device: a torch device; by default the GPU if there is one.
        down: the path of the down projection inside a decoder layer, for an MLP that is not
            recognised.
        template: what prompts are: `chat`, user turns of the tokenizer's chat template; `none`,
            texts to go on with; `auto`, the first where there is a template.

    Raises:
        DialdownError: the model does not exist, cannot be reached, is not whole (a weight is
            missing, unknown or of another size), quantised, damaged or an adapter, has no known
            MLP, or the dtype, device or template is unknown; a revision of what is no hub id; it
            has no chat template that was asked for, or one that fails; a model in memory comes
            without a tokenizer, or with a revision, dtype or device, which it has already.
    """
    if not isinstance(name, (str, os.PathLike)):
        given = {"revision": revision, "dtype": dtype, "device": device}
        return _in_memory(name, tokenizer, down, template, given)
    if tokenizer is not None:
        raise DialdownError(
            f"{os.fspath(name)} is loaded with its own tokenizer: pass the model itself to use it "
            "with another."
        )
    name = os.fspath(name)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    loading.check_device(device)
    torch_dtype = loading.named_dtype(
        dtype or ("float32" if torch.device(device).type == "cpu" else "auto")
    )
    source = _found(name, revision)
    config = loading.read_config(source, name=name, revision=revision)
    tokenizer = loading.read_tokenizer(source, name=name, revision=revision)
    model = loading.read_weights(
        AutoModelForCausalLM,
        source,
        name=name,
        instead="pass a causal LM as save_pretrained writes it, config and weights of one model",
        revision=revision,
        config=config,
        dtype=torch_dtype,
    )
    lm = LM.of(model.to(device), tokenizer, name=name, down=down, template=template)
    return replace(lm, revision=revision)


def _in_memory(
    model: Any, tokenizer: Any, down: str | None, template: AnyTemplate, given: Mapping[str, Any]
) -> LM:
    if not isinstance(model, PreTrainedModel):
        raise DialdownError(
            f"{type(model).__name__} is not a transformers model: pass a hub id, a folder, or the "
            "transformers model that it wraps, with tokenizer=."
        )
    if tokenizer is None:
        raise DialdownError(
            f"The {type(model).__name__} has no tokenizer with it: pass "
            "dd.load(model, tokenizer=tokenizer)."
        )
    for setting, value in given.items():
        if value is not None:
            raise DialdownError(
                f"{setting}={value!r} has no effect on a model that is loaded already: leave it "
                "out, or pass the model's name."
            )
    name = model.name_or_path or None
    return LM.of(model, tokenizer, name=name, down=down, template=template)


def _found(name: str, revision: str | None) -> str:
    """What transformers loads for a name: a folder, or a hub id."""
    loading.refuse_revision(name, revision)
    source = name
    if name.startswith("embedded:"):
        source = str(assets.fetch_model(name.removeprefix("embedded:")))
    if os.path.isdir(source):
        loading.check_folder(Path(source))
    loading.refuse_adapter(name, source, revision)
    return source


def load_tuned(base: LM, source: str | os.PathLike[str]) -> LM:
    """The tuned model of a pair, in the base's dtype and on its device.

    Args:
        base: the base model.
        source: whatever `load` takes, or a LoRA adapter (a folder or hub id with an
            `adapter_config.json`), which is merged into a copy of the base model.

    Raises:
        DialdownError: see `load`; or its neurons or tokens do not correspond to the base model's,
            the adapter belongs to another model, or PEFT is not installed.
    """
    source = os.fspath(source)
    if os.path.isdir(source):
        loading.check_folder(Path(source))
    if not source.startswith("embedded:") and loading.is_adapter(source):
        return _merged(base, source)
    dtype = str(base.model.dtype).removeprefix("torch.")
    tuned = load(source, dtype=dtype, device=str(base.device))
    check_pair(base, tuned)
    # Its tokens are the base's, and its chat template may not be.
    return replace(tuned, tokenizer=base.tokenizer, template=base.template)


def _merged(base: LM, adapter: str) -> LM:
    folder = adapters.fetched(adapter)
    model = adapters.merged(base.twin().model, adapter, folder, base=base.name)
    tuned = LM.of(model, base.tokenizer, name=adapter, template=base.template)
    if (folder / "tokenizer_config.json").exists():
        # What the adapter was trained on; the base's own is what both are measured with.
        check_pair(
            base, replace(tuned, tokenizer=loading.read_tokenizer(str(folder), name=adapter))
        )
    return tuned


def same_weights(base: LM, tuned: LM) -> bool:
    """Whether two models are one and the same, weight for weight, so that nothing was tuned."""
    others = dict(tuned.model.named_parameters())
    return all(
        name in others and torch.equal(weight, others[name].to(weight))
        for name, weight in base.model.named_parameters()
    )


def check_weights(model: nn.Module, view: MLPView, name: str) -> None:
    """Refuse weights that are not numbers, or with which no neuron writes anything."""
    broken = [
        key
        for key, weight in model.named_parameters()
        if not all(end.isfinite() for end in weight.aminmax())
    ]
    if broken:
        raise DialdownError(
            f"The weights of {name} are not finite numbers, in {loading.named_keys(broken)}: "
            "nothing can be measured on it; pass a model that was saved before its training broke "
            "down."
        )
    if not any(layer.columns.any() for layer in view.layers) or not view.unembedding.weight.any():
        raise DialdownError(
            f"The weights of {name} are zero (all of its down projections, or its unembedding), so "
            "no neuron changes what it says: pass a trained model."
        )


def check_pair(base: LM, tuned: LM) -> None:
    """Refuse a tuned model whose neurons or tokens do not correspond to the base model's."""
    for what in ("n_layers", "n_neurons", "d_model"):
        size, other = getattr(base.view, what), getattr(tuned.view, what)
        if size != other:
            raise DialdownError(
                f"{tuned.name} has {what} {other} where {base.name} has {size}, so their neurons "
                "do not correspond: pass a model tuned from this base."
            )
    if apart := tokens.difference(base.tokenizer, tuned.tokenizer):
        raise DialdownError(
            f"{tuned.name} has another tokenizer than {base.name}, with {apart}, so their "
            "continuations cannot be compared token by token: pass a model tuned from this base "
            "with its tokenizer as it is, or as the base the one saved with the tuned model's "
            "tokenizer (after resize_token_embeddings, where it has more tokens)."
        )

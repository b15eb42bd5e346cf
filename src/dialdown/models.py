"""Load a causal LM as its users run it, and find the value vectors inside it (METHOD §1).

An `LM` is a plain transformers model and tokenizer with one extra, the `MLPView`: which module of each layer is the
MLP's down projection. Everything the project does to a neuron happens at that module: its input is the activation m,
its input columns are the value vectors v_i, and equation 1 of the paper is its forward. Nothing is re-implemented.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.pytorch_utils import Conv1D
from transformers.utils.peft_utils import find_adapter_config_file

from . import assets
from .errors import DialdownError, nearest
from .files import fingerprint

Protocol = Literal["paper", "strict"]

# Where the down projection sits inside a decoder layer: transformers' own names, one per family of MLP classes.
DOWN_PROJECTIONS = ("mlp.down_proj", "mlp.c_proj", "mlp.dense_4h_to_h", "mlp.fc2", "mlp.fc_out")
# Norms that Gemma-2/3, OLMo-2 and GLM-4 put between the MLP's output and the residual stream.
POST_NORMS = ("post_feedforward_layernorm", "post_mlp_layernorm")
FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "final_norm")
EXPERTS = ("experts", "block_sparse_moe", "shared_expert", "router")
FUSED = ("gate_up_proj", "dense_h_to_4h_gate", "fc1_gate")


@dataclass(frozen=True)
class MLPLayer:
    """One MLP layer: the module that writes its neurons' value vectors to the residual stream.

    Attributes:
        path: dotted name of the down projection inside the model.
        down: the down projection (`nn.Linear`, or GPT-2's `Conv1D`).
        post_norm: the norm between the MLP's output and the residual stream (Gemma-2/3), or None.
    """

    path: str
    down: nn.Linear | Conv1D
    post_norm: nn.Module | None = None

    @property
    def columns(self) -> Tensor:
        """A (d, F) view of the weight, one value vector per column, whatever the module's own layout; shares memory."""
        return self.down.weight.data.T if isinstance(self.down, Conv1D) else self.down.weight.data

    def value_vectors(self, protocol: Protocol = "strict") -> Tensor:
        """What each neuron writes: (F, d) float32. `strict` includes the weight of a norm after the MLP (METHOD §1)."""
        vectors = self.columns.T.detach().float()
        gain = self.post_norm_gain()
        return vectors if protocol == "paper" or gain is None else vectors * gain

    def post_norm_gain(self) -> Tensor | None:
        """The (d,) weight of the norm after the MLP as it acts, or None where there is none."""
        if self.post_norm is None:
            return None
        # Some families store the weight and some store weight - 1; what an RMS norm makes of all-ones is the effective one.
        with torch.no_grad():
            ones = torch.ones(self.columns.shape[0], device=self.columns.device)
            gain: Tensor = self.post_norm(ones).float()
            return gain


def check_axes(activations: Tensor, path: str) -> None:
    """Refuse activations without a batch and a position axis (OPT flattens the two), where "last" would be a neuron.

    Raises:
        DialdownError: the activations are not (batch, positions, neurons).
    """
    if activations.dim() != 3:
        raise DialdownError(
            f"{path} gets its activations with shape {tuple(activations.shape)}, not (batch, positions, neurons), so their positions cannot be told apart: "
            "this architecture is not supported."
        )


@dataclass(frozen=True)
class MLPView:
    """The down projections of a model, first layer to last, and what comes after them.

    Attributes:
        layers: one `MLPLayer` per decoder layer.
        final_norm: the norm before the unembedding; its *input* is the final-layer residual stream x^L.
        unembedding: the output embedding, weight (V, d).
    """

    layers: tuple[MLPLayer, ...]
    final_norm: nn.Module
    unembedding: nn.Linear

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def n_neurons(self) -> int:
        """Neurons per layer, F."""
        return int(self.layers[0].columns.shape[1])

    @property
    def d_model(self) -> int:
        """Residual width, d."""
        return int(self.layers[0].columns.shape[0])

    @classmethod
    def find(cls, model: nn.Module, *, down: str | None = None) -> MLPView:
        """Find the down projections of `model` by the names transformers gives them.

        Args:
            model: a transformers causal LM.
            down: the dotted path from a decoder layer to its down projection, for a model whose MLP is not recognised.

        Raises:
            DialdownError: no decoder layers, an expert or fused MLP, or a down projection that is no plain matrix.
        """
        name = type(model).__name__
        decoder, stack = _decoder_stack(model)
        layers = tuple(_mlp_layer(name, model, layer, down) for layer in stack)
        widths = {tuple(layer.columns.shape) for layer in layers}
        if len(widths) > 1:
            raise DialdownError(
                f"{name} has MLPs of different widths {sorted(widths)}: one neuron table needs one width, so this model is not supported."
            )
        final_norm = next((getattr(decoder, norm) for norm in FINAL_NORMS if hasattr(decoder, norm)), None)
        unembedding = getattr(model, "get_output_embeddings", lambda: None)()
        if final_norm is None or unembedding is None:
            missing = "final norm" if final_norm is None else "unembedding"
            raise DialdownError(f"{name} has no {missing} that dialdown recognises: pass a decoder-only causal LM.")
        return cls(layers, final_norm, unembedding)


def _decoder_stack(model: nn.Module) -> tuple[nn.Module, Sequence[nn.Module]]:
    decoder: Any = getattr(model, getattr(model, "base_model_prefix", ""), model)
    for wrapper in ("decoder", "language_model", "text_model"):
        decoder = getattr(decoder, wrapper, decoder)
    for name in ("layers", "h", "blocks"):
        stack = getattr(decoder, name, None)
        if isinstance(stack, nn.ModuleList) and len(stack):
            return decoder, list(stack)
    raise DialdownError(
        f"{type(model).__name__} has no list of decoder layers (looked for layers, h, blocks): pass a decoder-only causal LM."
    )


def _mlp_layer(name: str, model: nn.Module, layer: nn.Module, down: str | None) -> MLPLayer:
    modules = dict(layer.named_modules())
    if down is None:
        parts = {part for path in modules for part in path.split(".")}
        if found := parts.intersection(EXPERTS):
            raise DialdownError(
                f"{name} routes tokens to experts ({min(found)}), so a neuron has no single mean activation: pass a model with a dense MLP."
            )
        if found := parts.intersection(FUSED):
            raise DialdownError(
                f"{name} has a fused MLP ({min(found)}), which dialdown does not take apart by itself: "
                f"name its down projection with load(..., down='mlp.down_proj') if its input is the activation of METHOD §1."
            )
    path = down or next((known for known in DOWN_PROJECTIONS if known in modules), None)
    if path is None or path not in modules:
        raise DialdownError(
            f"{name} has no MLP that dialdown knows (looked for {down or ', '.join(DOWN_PROJECTIONS)} in {type(layer).__name__}): "
            "pass load(..., down='path.in.layer') with the path of the down projection."
        )
    module = modules[path]
    if not isinstance(module, nn.Linear | Conv1D) or not module.weight.is_floating_point():
        raise DialdownError(
            f"The down projection {path} of {name} is a {type(module).__name__}, not a plain matrix: load the model unquantised in float32, bfloat16 or float16."
        )
    paths = {id(m): n for n, m in model.named_modules()}
    post = next((modules[norm] for norm in POST_NORMS if norm in modules), None)
    return MLPLayer(paths[id(module)], module, post)


@dataclass(frozen=True)
class LM:
    """A causal LM: the plain transformers objects, and where its neurons are.

    Attributes:
        model: the transformers model, in eval mode.
        tokenizer: its tokenizer.
        view: its down projections.
        name: what was loaded (hub id, folder or embedded name).
        revision: the hub revision asked for, or None.
    """

    model: Any
    tokenizer: Any
    view: MLPView
    name: str
    revision: str | None = None

    @classmethod
    def of(cls, model: Any, tokenizer: Any, *, name: str | None = None, down: str | None = None) -> LM:
        """Wrap a model and tokenizer that are already in memory (see `load` for the errors)."""
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        return cls(model.eval(), tokenizer, MLPView.find(model, down=down), name or type(model).__name__)

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
        ids = self.tokenizer("a")["input_ids"]
        return [ids[0]] if ids and ids[0] == self.tokenizer.bos_token_id else []

    @property
    def eos(self) -> frozenset[int]:
        """Ids that end a generation."""
        ids = self.model.generation_config.eos_token_id
        ids = self.tokenizer.eos_token_id if ids is None else ids
        return frozenset(ids if isinstance(ids, list) else [] if ids is None else [ids])

    def twin(self) -> LM:
        """The same model with weights of its own: changing one leaves the other alone."""
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
            "layers": self.view.n_layers,
            "neurons": self.view.n_neurons,
            "d_model": self.view.d_model,
        }

    def weights_fingerprint(self) -> str:
        """Changes when any weight changes: a hash of all their bytes."""
        return fingerprint(self.describe(), weight_fingerprints(self.model))


def weight_fingerprints(model: nn.Module) -> list[str]:
    """A hash of the bytes of each weight."""
    weights = (weight.detach().cpu().contiguous().reshape(-1) for weight in model.parameters())
    return [fingerprint(weight.view(torch.uint8).numpy()) for weight in weights]


def load(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    down: str | None = None,
    progress: assets.Progress | None = None,
) -> LM:
    """Load a causal LM from the hub, a local folder, or a package of the Python index (`embedded:NAME`).

    Args:
        name: a hub id, a folder written by `save_pretrained`, or `embedded:smollm2-135m`.
        revision: a hub branch, tag or commit.
        dtype: `float32`, `bfloat16` or `float16`; by default float32 on a CPU and the checkpoint's own on a GPU.
        device: a torch device; by default the GPU if there is one.
        down: the path of the down projection inside a decoder layer, for an MLP that is not recognised.
        progress: called while an embedded model is downloaded and converted, the first time it is used.

    Raises:
        DialdownError: the model does not exist, cannot be reached, has no known MLP, or the dtype or device is unknown.
    """
    name = os.fspath(name)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    _check_device(device)
    torch_dtype = _dtype(dtype or ("float32" if torch.device(device).type == "cpu" else "auto"))
    source = str(assets.fetch(name.removeprefix("embedded:"), progress)) if name.startswith("embedded:") else name
    if Path(source).is_dir() and not (Path(source) / "config.json").exists():
        raise DialdownError(
            f"The folder {source} has no config.json, so it holds no transformers model: pass a folder written by save_pretrained."
        )
    try:
        config = AutoConfig.from_pretrained(source, revision=revision)
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
        model: Any = AutoModelForCausalLM.from_pretrained(source, revision=revision, config=config, dtype=torch_dtype)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DialdownError(
            f"The model {name!r} could not be loaded ({reason}): pass a hub id that can be reached from here, a local folder, or embedded:smollm2-135m."
        ) from error
    lm = LM.of(model.to(device), tokenizer, name=name, down=down)
    return replace(lm, revision=revision)


def load_tuned(base: LM, source: str | os.PathLike[str], *, progress: assets.Progress | None = None) -> LM:
    """The tuned model of a pair, in the base model's dtype and on its device, so that what differs is the tuning.

    Args:
        base: the base model.
        source: whatever `load` takes, or a LoRA adapter (a folder or hub id with an `adapter_config.json`), which is merged
            into a copy of the base model.
        progress: see `load`.

    Raises:
        DialdownError: see `load` and `check_pair`; or the adapter belongs to another model, or PEFT is not installed.
    """
    source = os.fspath(source)
    if not source.startswith("embedded:") and _is_adapter(source):
        return _merged(base, source)
    dtype = str(base.model.dtype).removeprefix("torch.")
    tuned = load(source, dtype=dtype, device=str(base.device), progress=progress)
    check_pair(base, tuned)
    return tuned


def _is_adapter(source: str) -> bool:
    try:
        return find_adapter_config_file(source) is not None
    except (OSError, ValueError):
        # Not a name that can be looked up; `load` says what is wrong with it.
        return False


def _merged(base: LM, adapter: str) -> LM:
    try:
        from peft import PeftModel
    except ModuleNotFoundError as error:
        raise DialdownError(
            f'{adapter} is a LoRA adapter, which PEFT reads, and PEFT is not installed: run pip install "dialdown[train]".'
        ) from error
    try:
        model: Any = PeftModel.from_pretrained(base.twin().model, adapter).merge_and_unload()
    except (RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DialdownError(
            f"The adapter {adapter} does not fit {base.name} ({reason}): pass the base model it was trained on."
        ) from error
    return replace(LM.of(model, base.tokenizer, name=adapter), revision=None)


def _check_device(device: str) -> None:
    try:
        kind = torch.device(device).type
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:120]
        raise DialdownError(
            f"The device {device!r} cannot be used ({reason}): pass device='cpu', or a GPU torch sees."
        ) from error
    if kind == "mps":
        raise DialdownError("The device 'mps' has no float64, in which every mean is summed here: pass device='cpu'.")


def _dtype(name: str) -> Any:
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "auto": "auto"}
    if name not in known:
        raise DialdownError(f"Unknown dtype {name!r}: {nearest(name, known)}")
    return known[name]


def check_pair(base: LM, tuned: LM) -> None:
    """Refuse a tuned model whose neurons or tokens do not correspond one to one to the base model's.

    Raises:
        DialdownError: the two differ in layers, neurons, width, vocabulary or tokenization.
    """
    for what in ("n_layers", "n_neurons", "d_model"):
        ours, theirs = getattr(base.view, what), getattr(tuned.view, what)
        if ours != theirs:
            raise DialdownError(
                f"{tuned.name} has {what} {theirs} where {base.name} has {ours}, so their neurons do not correspond: pass a model tuned from this base."
            )
    if base.tokenizer.get_vocab() != tuned.tokenizer.get_vocab():
        raise DialdownError(
            f"{tuned.name} has another tokenizer than {base.name}, so their continuations cannot be compared token by token: pass a model tuned from this base."
        )

"""An adapter of PEFT merged into its base model: the whole adapter, and one that changes something,
or none at all.
"""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download

from ..data.hub import reaching
from ..data.loading import ADAPTER_CONFIG, check_header, named_keys, told
from ..errors import DialdownError
from ..extras import asking_for

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_PICKLE = "adapter_model.bin"


def fetched(adapter: str) -> Path:
    """The folder of an adapter, fetched from the hub where it is not a folder here."""
    folder = Path(adapter)
    if not folder.is_dir():
        instead = "pass the id of an adapter that can be reached from here, or a local folder"
        with (
            told(
                lambda reason: (
                    f"The adapter {adapter!r} could not be fetched ({reason}): {instead}."
                )
            ),
            reaching(adapter),
        ):
            folder = Path(
                snapshot_download(
                    adapter, allow_patterns=[ADAPTER_CONFIG, ADAPTER_WEIGHTS, "*token*"]
                )
            )
    if (folder / ADAPTER_WEIGHTS).exists():
        check_header(folder / ADAPTER_WEIGHTS)
        return folder
    if (folder / ADAPTER_PICKLE).exists():
        raise DialdownError(
            f"The weights of the adapter {adapter} are a pickle ({ADAPTER_PICKLE}), and reading "
            "one runs whatever code it holds: where you trust it, load it with PEFT, call "
            "save_pretrained(folder), which writes safetensors, and pass that folder."
        )
    raise DialdownError(
        f"{adapter} has an {ADAPTER_CONFIG} and no {ADAPTER_WEIGHTS}: pass a folder that PEFT's "
        f"save_pretrained wrote, or remove {ADAPTER_CONFIG} from the folder of a whole model."
    )


def merged(model: Any, adapter: str, folder: Path, *, base: str) -> Any:
    """The model with an adapter merged into its weights; `model` itself is used up."""
    with asking_for(f"{adapter}, a LoRA adapter,"):
        from peft import PeftConfig, PeftModel
    instead = "pass a folder that PEFT's save_pretrained wrote"
    with told(lambda reason: f"The adapter {adapter} cannot be read ({reason}): {instead}."):
        config = PeftConfig.from_pretrained(str(folder))
    if config.is_prompt_learning or config.is_adaption_prompt:
        raise DialdownError(
            f"The adapter {adapter} is of the kind {config.peft_type.value}, which adds prompts "
            f"and changes no weight of {base}, so no neuron of it can be told from "
            "the base's: pass a LoRA adapter, or a model that was tuned itself."
        )
    before = {key: weight.clone() for key, weight in model.named_parameters()}
    does_not_fit = f"The adapter {adapter} does not fit {base}"
    with (
        told(lambda reason: f"{does_not_fit} ({reason}): pass the base model it was trained on."),
        warnings.catch_warnings(),
    ):
        # PEFT calls what transformers is about to rename, which is no business of who loads an
        # adapter.
        warnings.simplefilter("ignore", FutureWarning)
        adapted = PeftModel(model, config)
        keys = adapted.load_adapter(str(folder), "default", torch_device=str(model.device))
    problems = {"match nothing in it": keys.unexpected_keys}
    problems["are not in the adapter's file"] = keys.missing_keys
    if parts := [f"{named_keys(names)} {what}" for what, names in problems.items() if names]:
        raise DialdownError(
            f"{does_not_fit} ({'; '.join(parts)}): pass the base model it was trained on, loaded "
            "by the same class as it was trained with."
        )
    _check_untied(adapted, adapter, base)
    with told(
        lambda reason: (
            f"The adapter {adapter} cannot be merged into {base} ({reason}): merge it with PEFT "
            "first."
        )
    ):
        whole: Any = adapted.merge_and_unload()
    if all(
        torch.equal(weight, before[key])
        for key, weight in whole.named_parameters()
        if key in before
    ):
        raise DialdownError(
            f"The adapter {adapter} changes no weight of {base}, so there is nothing to compare: "
            "pass one that was trained (a fresh LoRA adapter is zero), saved after its training."
        )
    return whole


def _check_untied(adapted: Any, adapter: str, base: str) -> None:
    """Refuse an adapter that acts on one use of a weight which the model has two of: merged, it
    would act on both.
    """
    from peft.tuners.trainable_tokens import TrainableTokensLayer
    from peft.tuners.tuners_utils import BaseTunerLayer

    uses = Counter(
        weight.data_ptr() for _, weight in adapted.named_parameters(remove_duplicate=False)
    )
    for path, module in adapted.named_modules():
        # Rows that are trained themselves are the same rows in both uses.
        if not isinstance(module, BaseTunerLayer) or isinstance(module, TrainableTokensLayer):
            continue
        weights = module.get_base_layer().parameters(recurse=False)
        if any(uses[weight.data_ptr()] > 1 for weight in weights):
            raise DialdownError(
                f"The adapter {adapter} acts on {path.removeprefix('base_model.model.')}, whose "
                f"weight {base} uses a second time (tied embeddings), so merged into that weight "
                "it would be another model than was trained: untie the two, merge it with PEFT, "
                "and pass the whole model that save_pretrained writes."
            )

"""Whether other engines read an exported folder as transformers does: `python benchmarks/engines.py
MODEL`.

The untouched model and edits of it are exported, each is read by vLLM and by llama.cpp in float32,
and the log-probabilities of the likeliest next tokens at every position are compared with those of
the base model in transformers with the edit as hooks. Beside each stands what they would differ by
with the edit left out.

vLLM is used where it is installed. llama.cpp is where `xllamacpp` is, and where `--converter` names
the script of the llama.cpp repository that writes GGUF files, `convert_hf_to_gguf.py`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import date
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer

import dialdown as dd
from dialdown.exporting.checkpoint import open_checkpoint
from dialdown.exporting.verify import PROMPTS
from dialdown.exporting.vllm import compare_in_vllm
from dialdown.interventions.intervention import untouched
from dialdown.models.bias import holds_bias

SHARE, SIZE = 0.1, 0.3
LIKELIEST = 20
# llama.cpp is asked once for each position, so it gets fewer texts.
LLAMA_CPP_TEXTS = 8


def random_edits(lm: dd.LM) -> dict[str, dd.Intervention]:
    """An edit of each kind that acts on a tenth of the neurons."""
    rng = np.random.default_rng(0)
    shape = (lm.view.n_layers, lm.view.n_neurons)
    edits = {}
    for kind in ("scale", "set", "shift"):
        selected = rng.random(shape) < SHARE
        values = np.where(selected, SIZE * rng.standard_normal(shape), 0).astype(np.float32)
        gain = {"scale": 1 + values, "set": ~selected}.get(kind, np.ones(shape))
        edits[kind] = dd.Intervention(
            kind,
            kind,
            gain.astype(np.float64),
            np.zeros(shape) if kind == "scale" else values.astype(np.float64),
            selected,
        )
    return edits


def log_probabilities(
    lm: dd.LM, edit: dd.Intervention, ids: Sequence[Sequence[int]]
) -> list[Tensor]:
    """Those of each text, (tokens, V) float32."""
    with torch.inference_mode(), edit.applied(lm):
        return [
            lm.model(input_ids=torch.tensor([list(text)])).logits[0].float().log_softmax(-1)
            for text in ids
        ]


def in_llama_cpp(
    folder: Path, converter: Path, ids: Sequence[Sequence[int]]
) -> Iterator[list[tuple[int, float]]]:
    """For each position of each text, the likeliest next tokens and their log-probabilities."""
    path = folder.parent / f"{folder.name}.gguf"
    command = [sys.executable, str(converter), str(folder), "--outfile", str(path)]
    subprocess.run([*command, "--outtype", "f32"], check=True, capture_output=True)
    engine: Any = import_module("xllamacpp")
    params = engine.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.n_gpu_layers = 512, 1, 0
    server = engine.Server(params)
    for text in ids:
        for end in range(1, len(text) + 1):
            answer = server.handle_completions(
                {"prompt": list(text[:end]), "n_predict": 1, "n_probs": LIKELIEST, "temperature": 0}
            )
            likeliest = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
            yield [(token["id"], token["logprob"]) for token in likeliest]
    path.unlink()


def worst(given: Sequence[Sequence[tuple[int, float]]], expected: Sequence[Tensor]) -> float:
    """The largest difference of any of the given log-probabilities to what is expected there."""
    positions = torch.cat([*expected])
    return max(
        abs(score - float(position[token]))
        for position, answer in zip(positions, given, strict=True)
        for token, score in answer
    )


def left_out(edited: Sequence[Tensor], base: Sequence[Tensor]) -> float:
    """The same of the base model in place of an engine."""
    likeliest = torch.cat([*edited]).topk(LIKELIEST)
    return float((torch.cat([*base]).gather(-1, likeliest.indices) - likeliest.values).abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="embedded:NAME, a folder or a hub id")
    parser.add_argument(
        "--edit", action="append", default=[], help="NAME=FILE.safetensors[@STRENGTH]"
    )
    parser.add_argument("--converter", type=Path, help="llama.cpp's convert_hf_to_gguf.py")
    asked = parser.parse_args()
    lm = dd.load(asked.model, dtype="float32")
    edits = {"untouched": untouched()}
    for text in asked.edit:
        name, _, place = text.partition("=")
        path, _, strength = place.partition("@")
        edits[name] = dd.Intervention.load(path).at(float(strength or 1))
    edits |= random_edits(lm)
    # Where an architecture has no bias in its MLPs, the others can't be folded.
    edits = {name: edit for name, edit in edits.items() if holds_bias(lm) or not edit.needs_bias}
    source = open_checkpoint(asked.model)
    print(f"{asked.model}, float32, torch {torch.__version__}, {date.today()}")
    print("largest difference of a log-probability, and what it would be with the edit left out:")
    for name, edit in edits.items():
        with TemporaryDirectory() as place:
            exported = dd.export(asked.model, edit, Path(place) / name)
            tokenizer: Any = AutoTokenizer.from_pretrained(exported.folder)
            ids = [tokenizer(text)["input_ids"] for text in PROMPTS]
            edited = log_probabilities(lm, edit, ids)
            unedited = left_out(edited, log_probabilities(lm, untouched(), ids))
            if find_spec("vllm"):
                check = compare_in_vllm(exported.folder, source.folder, ids, edited, tolerance=0)
                print(f"  {name:12} vLLM {check.version}: {check.difference:.2g} ({unedited:.2g})")
            if find_spec("xllamacpp") and asked.converter:
                answers = [*in_llama_cpp(exported.folder, asked.converter, ids[:LLAMA_CPP_TEXTS])]
                difference = worst(answers, edited[:LLAMA_CPP_TEXTS])
                build = version("xllamacpp")
                print(f"  {name:12} llama.cpp {build}: {difference:.2g} ({unedited:.2g})")


if __name__ == "__main__":
    main()

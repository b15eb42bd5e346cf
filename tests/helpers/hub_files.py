"""What the stand-in hub serves: the repositories that the presets of the paper name, tiny, with the
files and habits of the real ones.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    PreTrainedTokenizerFast,
)

from helpers import tiny
from helpers.study_files import WORDS, save_classifier, sentence, write_lines

MODELS = {
    "openai-community/gpt2-medium": "gpt2",
    "meta-llama/Llama-3.1-8B": "llama",
    "mistralai/Mistral-7B-v0.1": "mistral",
    "google/gemma-2-2b": "gemma2",
}
PROMPTS = "allenai/real-toxicity-prompts"
TEXT = "Salesforce/wikitext"
JUDGE = "unitary/toxic-bert"
LABELS = ("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate")
CHALLENGING = 40


def write_repositories(root: Path) -> None:
    """Every repository that the four configurations read, as `models/OWNER/NAME` and
    `datasets/OWNER/NAME`.
    """
    for name in MODELS:
        write_model(root / "models" / name, name)
    write_judge(root / "models" / JUDGE)
    write_prompts(root / "datasets" / PROMPTS)
    write_wikitext(root / "datasets" / TEXT)


def write_model(folder: Path, name: str) -> None:
    """A tiny model of the real one's class: only Gemma's tokenizer has a pad token, and GPT-2's
    puts no BOS.
    """
    kind = MODELS[name]
    lm = tiny.lm(kind, bos=kind != "gpt2")
    if kind == "gpt2":
        _save_gpt2(lm.model, folder)
    else:
        # The large ones come in several files.
        lm.model.save_pretrained(folder, max_shard_size="20KB")
    pad = {"pad_token": "<pad>"} if kind == "gemma2" else {}
    core = lm.tokenizer.backend_tokenizer
    saved = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<bos>", eos_token="<eos>", **pad
    )
    saved.save_pretrained(folder)


def _save_gpt2(model: torch.nn.Module, folder: Path) -> None:
    """The published file has no `transformer.` before its names, and the causal masks among the
    weights.
    """
    model.save_pretrained(folder)
    weights = {name: weight.contiguous() for name, weight in model.transformer.state_dict().items()}
    mask = torch.tril(torch.ones(1, 1, tiny.CONTEXT, tiny.CONTEXT))
    masks = {f"h.{layer}.attn.bias": mask.clone() for layer in range(tiny.LAYERS)}
    save_file({**weights, **masks}, folder / "model.safetensors", metadata={"format": "pt"})


def write_judge(folder: Path) -> None:
    """A random BERT with Detoxify's six labels, and the position ids that older checkpoints
    hold.
    """
    folder.mkdir(parents=True)
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *dict.fromkeys(WORDS),
        *"abcdefghijklmnopqrstuvwxyz",
    ]
    (folder / "vocab.txt").write_text(
        "\n".join([*words, *(f"##{letter}" for letter in words[-26:])])
    )
    BertTokenizerFast(vocab_file=str(folder / "vocab.txt"), model_max_length=512).save_pretrained(
        folder
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words) + 26,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        initializer_range=1.0,
        id2label=dict(enumerate(LABELS)),
        label2id={label: number for number, label in enumerate(LABELS)},
    )
    model = BertForSequenceClassification(config)
    model.save_pretrained(folder)
    positions = {"bert.embeddings.position_ids": torch.arange(512)[None]}
    save_file(
        {**model.state_dict(), **positions}, folder / "model.safetensors", metadata={"format": "pt"}
    )


def write_prompts(folder: Path) -> None:
    """`prompts.jsonl`: a text and its scores one level down, some of the rows challenging."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    rows = [
        {
            "filename": f"{number}.txt",
            "begin": 0,
            "end": 20,
            "challenging": number < CHALLENGING,
            "prompt": {
                "text": f"{sentence(rng, 4)} {number}",
                "toxicity": 0.5 if number % 3 else None,
            },
            "continuation": {"text": sentence(rng, 4), "toxicity": 0.25},
        }
        for number in range(2 * CHALLENGING)
    ]
    write_lines(folder / "prompts.jsonl", rows)
    (folder / "README.md").write_text("---\nlanguage:\n- en\nlicense:\n- apache-2.0\n---\n")


def write_wikitext(folder: Path) -> None:
    """Parquet files of two configurations, named in the card as the real ones are."""
    rng = np.random.default_rng(2)
    card = ["---", "configs:"]
    for config in ("wikitext-103-raw-v1", "wikitext-2-raw-v1"):
        (folder / config).mkdir(parents=True)
        card += [f"- config_name: {config}", "  data_files:"]
        for split in ("test", "train", "validation"):
            rows = ["", " = The Cat = \n", "", *(f" {sentence(rng, 12)} \n" for _ in range(6))]
            pq.write_table(
                pa.table({"text": rows}), folder / config / f"{split}-00000-of-00001.parquet"
            )
            card += [f"  - split: {split}", f"    path: {config}/{split}-*"]
    (folder / "README.md").write_text("\n".join([*card, "---", ""]))


def write_local(root: Path) -> dict[str, str]:
    """Files for what `--preset full` reads from packages of the Python index, and a few as small
    counts, as settings.
    """
    root.mkdir(parents=True)
    rng = np.random.default_rng(3)
    labelled = [{"text": sentence(rng, 6), "label": number % 2} for number in range(60)]
    pairs = [{"prompt": sentence(rng, 4), "gold": sentence(rng, 4)} for _ in range(6)]
    (root / "words.txt").write_text("\n".join([*WORDS, *"abcdefghijklmnopqrstuvwxyz"]))
    training = [{"prompt": sentence(rng, 5)} for _ in range(60)]
    return {
        "token_judge": str(root / "words.txt"),
        "training_prompts": write_lines(root / "training.jsonl", training),
        "probe.texts": write_lines(root / "texts.jsonl", labelled),
        "evaluation.pairs": write_lines(root / "pairs.jsonl", pairs),
        "evaluation.pair_scorer": save_classifier(root / "scorer", seed=2),
    }


def as_flags(values: dict[str, object]) -> list[str]:
    """Settings as `--set` arguments."""
    return [
        word for key, value in values.items() for word in ("--set", f"{key}={json.dumps(value)}")
    ]

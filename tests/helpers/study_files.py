"""The files of a tiny study: a random Llama, made-up texts and prompts, two random classifiers, and
the TOML that names them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GPT2Config, GPT2ForSequenceClassification

from helpers import tiny

WORDS = [
    "the",
    "cat",
    "sat",
    "here",
    "and",
    "was",
    "a",
    "bad",
    "or",
    "good",
    "cat",
    "that",
    "ate",
    "it",
    "all",
    "up",
    "today",
]


def sentence(rng: np.random.Generator, words: int) -> str:
    return " ".join(rng.choice(WORDS, words))


def write_lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def save_classifier(folder: Path, *, seed: int) -> str:
    """A tiny random classifier with the labels `calm` and `toxic`."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(tiny.VOCABULARY),
        n_embd=16,
        n_layer=1,
        n_head=2,
        n_positions=512,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=1.0,
    )
    config.num_labels = 2
    config.id2label, config.label2id = {0: "calm", 1: "toxic"}, {"calm": 0, "toxic": 1}
    GPT2ForSequenceClassification(config).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return f"{folder}#toxic"


def write_study(root: Path) -> Path:
    """A TOML file that points a study at a tiny Llama and at made-up data."""
    rng = np.random.default_rng(0)
    base = tiny.lm("llama")
    base.model.save_pretrained(root / "model")
    base.tokenizer.save_pretrained(root / "model")
    settings = {
        "model": str(root / "model"),
        "workers": 1,
        "token_judge": str(root / "words.txt"),
        "training_prompts": write_lines(
            root / "training.jsonl", [{"prompt": sentence(rng, 5)} for _ in range(60)]
        ),
        "probe": {
            "texts": write_lines(
                root / "texts.jsonl",
                [{"text": sentence(rng, 6), "label": i % 2} for i in range(60)],
            ),
            "count": 40,
            "max_tokens": 24,
        },
        "pairs": {"count": 12, "margin": 0.0, "max_new_tokens": 5, "batch_size": 16},
        "dpo": {
            "epochs": 1,
            "accumulation": 1,
            "warmup_steps": 0,
            "eval_pairs": 2,
            "eval_every": 100,
        },
        "interventions": {"toxic_neurons": 5, "extent": "tables"},
        "gains": {"eval_pairs": 2},
        # The usual ones are in packages of the Python index.
        "detox": {"texts": [str(root / "text.txt")]},
        "evaluation": {
            "prompts": write_lines(
                root / "prompts.jsonl", [{"prompt": sentence(rng, 4)} for _ in range(14)]
            ),
            "count": 10,
            "control_count": 8,
            "max_new_tokens": 5,
            "max_prompt_tokens": 32,
            "pairs": write_lines(
                root / "pairs.jsonl",
                [{"prompt": sentence(rng, 4), "gold": sentence(rng, 4)} for _ in range(4)],
            ),
            "pairs_count": 3,
            "text": str(root / "text.txt"),
            "window": 16,
            "max_windows": 3,
            "kl_windows": 2,
            "judge": save_classifier(root / "judge", seed=1),
            "pair_scorer": save_classifier(root / "scorer", seed=2),
            # What a preset adds is in a package of the Python index.
            "metrics": [],
        },
    }
    (root / "words.txt").write_text("\n".join([*WORDS, *"abcdefghijklmnopqrstuvwxyz"]))
    (root / "text.txt").write_text(sentence(rng, 80))
    lines = []
    for key, value in settings.items():
        if not isinstance(value, dict):
            lines.append(f"{key} = {json.dumps(value)}")
    for key, value in settings.items():
        if isinstance(value, dict):
            lines += [
                f"[{key}]",
                *(f"{name} = {json.dumps(inner)}" for name, inner in value.items()),
            ]
    path = root / "study.toml"
    path.write_text("\n".join(lines))
    return path

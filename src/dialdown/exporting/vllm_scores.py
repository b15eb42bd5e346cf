"""What vLLM makes of a checkpoint: its log-probabilities of the likeliest next tokens.

`vllm_check` runs this file as a process of its own, since an engine takes memory, threads and
signals for itself.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

LIKELIEST = 20  # the most that vLLM gives without being asked for more when it starts

# The engine in this process, and no word to anybody.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


def scores(folder: str, ids: list[list[int]]) -> dict[str, Any]:
    """Log-probabilities of what follows each position of each text, in float32.

    Args:
        folder: of a checkpoint.
        ids: the token ids of each text.

    Returns:
        vLLM's `version`, and `texts`: for each text, for each of its positions, pairs of a token id
            and its log-probability
        as the next token.
    """
    import vllm

    engine = vllm.LLM(
        model=folder,
        dtype="float32",
        max_model_len=max(map(len, ids)) + 1,
        enforce_eager=True,
        # Instead of nine tenths of the memory there is, most of it for keys and values.
        gpu_memory_utilization=0.01,
        kv_cache_memory_bytes=1 << 30,
    )
    found = engine.generate(
        [{"prompt_token_ids": text} for text in ids],
        vllm.SamplingParams(
            max_tokens=1, temperature=0, logprobs=LIKELIEST, prompt_logprobs=LIKELIEST
        ),
        use_tqdm=False,
    )
    texts = [
        # vLLM files a prediction under the position it is about, where the first token has none.
        [
            [(token, score.logprob) for token, score in position.items()]
            for position in [*text.prompt_logprobs[1:], text.outputs[0].logprobs[0]]
        ]
        for text in found
    ]
    return {"version": vllm.__version__, "texts": texts}


def main(asked: Path, answer: Path) -> None:
    """Answer a question in a JSON file by another one, by what went wrong if need be."""

    def tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        said = " ".join("".join(traceback.format_exception_only(error)).split())
        answer.write_text(json.dumps({"problem": said.rstrip(".")[:300]}), encoding="utf-8")

    sys.excepthook = tell
    answer.write_text(
        json.dumps(scores(**json.loads(asked.read_text(encoding="utf-8")))), encoding="utf-8"
    )


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

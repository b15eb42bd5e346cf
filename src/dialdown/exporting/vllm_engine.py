"""The process that vLLM runs in: a folder and token ids in, log-probabilities as a file out.

It imports nothing but vLLM, which is slow enough to start.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Any

LIKELIEST = 20  # the most that vLLM gives without being asked for more when it starts


def main(folder: str, ids: str, answer: str) -> None:
    """Write the answer of an engine to a file, or what went wrong."""
    try:
        output = _run_engine(folder, json.loads(ids))
    except BaseException as error:  # noqa: BLE001 (an engine raises whatever it likes)
        reason = " ".join("".join(traceback.format_exception_only(error)).split())
        output = {"problem": reason.rstrip(".")[:300]}
    Path(answer).write_text(json.dumps(output), encoding="utf-8")


def _run_engine(folder: str, ids: list[list[int]]) -> dict[str, Any]:
    """vLLM's `version`, and `texts`: for each text, for each of its positions, pairs of a token id
    and its log-probability as the next token, in float32.
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
    texts = engine.generate(
        [{"prompt_token_ids": text} for text in ids],
        vllm.SamplingParams(
            max_tokens=1, temperature=0, logprobs=LIKELIEST, prompt_logprobs=LIKELIEST
        ),
        use_tqdm=False,
    )
    # vLLM files a prediction under the position it is about, where the first token has none.
    positions = [[*text.prompt_logprobs[1:], text.outputs[0].logprobs[0]] for text in texts]
    scores = [
        [[(token, score.logprob) for token, score in position.items()] for position in text]
        for text in positions
    ]
    return {"version": vllm.__version__, "texts": scores}


if __name__ == "__main__":
    main(*sys.argv[1:])

"""What vLLM makes of a checkpoint: its log-probabilities of the likeliest next tokens.

`vllm_check` runs this file as a process of its own, since an engine takes memory, threads and signals for itself.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

LIKELIEST = 20  # the most that vLLM gives without being asked for more when it starts

# The engine in this process and silent, a gigabyte for keys and values on a CPU, and no word to anybody.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


def scores(folder: str, ids: list[list[int]]) -> dict[str, Any]:
    """Log-probabilities of what follows each position of each text, in float32.

    Args:
        folder: of a checkpoint.
        ids: the token ids of each text.

    Returns:
        vLLM's `version`, and `texts`: for each text, for each of its positions, pairs of a token id and its log-probability
        as the next token.
    """
    import torch
    import vllm

    share = 0.9
    if torch.cuda.is_available():
        # By default it takes nine tenths of all memory, though others hold some of it.
        free, total = torch.cuda.mem_get_info()
        share *= free / total
    engine = vllm.LLM(
        model=folder,
        dtype="float32",
        max_model_len=max(map(len, ids)) + 1,
        enforce_eager=True,
        gpu_memory_utilization=share,
    )
    found = engine.generate(
        [{"prompt_token_ids": text} for text in ids],
        vllm.SamplingParams(max_tokens=1, temperature=0, logprobs=LIKELIEST, prompt_logprobs=LIKELIEST),
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


if __name__ == "__main__":
    asked, answer = map(Path, sys.argv[1:])
    answer.write_text(json.dumps(scores(**json.loads(asked.read_text()))))

"""What hooks and decoding cost a GPU, counted on a processor: graphs that are compiled, and times
the program waits for a number.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode

from dialdown.models import Decoder
from helpers import tiny
from helpers.edits import IDS, KINDS, make

READS = ("aten::is_nonzero", "aten::item", "aten::_local_scalar_dense", "aten::equal")


class HostReads(TorchDispatchMode):
    """Counts the numbers that the program takes out of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += call._schema.name in READS
        return call(*args, **(kwargs or {}))


# Python 3.13.0 alone, of which torch warns.
@pytest.mark.filterwarnings("ignore:Guards may run slower:RuntimeWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_a_compiled_model_under_an_edit_is_compiled_once(kind: str) -> None:
    lm = tiny.lm("llama")
    edit, counter = make(lm, kind), CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(lm.model, backend=counter)
    with torch.inference_mode(), edit.applied(lm):
        logits = [compiled(input_ids=IDS, use_cache=False).logits for _ in range(12)]
        plain = lm.model(input_ids=IDS, use_cache=False).logits
    assert counter.frame_count == 1
    torch.testing.assert_close(logits[-1], plain)


def test_a_decode_step_reads_nothing_but_whether_all_have_ended() -> None:
    lm = tiny.lm("llama")
    reads = []
    for tokens in (4, 12):
        decoder = Decoder(lm, ["the cat", "a", "what the cat saw"], max_new_tokens=tokens)
        with HostReads() as seen:
            decoder.run(make(lm, "scale"))
        reads.append(seen.count)
    # Once a step on a processor, where it costs nothing, and every eighth step on a GPU; once more
    # transformers looks whether anything is padded.
    assert 8 <= reads[1] - reads[0] <= 16

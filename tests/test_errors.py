"""What is said of memory that runs out, and of a name that is nearly right."""

from __future__ import annotations

import pytest

from dialdown.errors import DialdownError, enough_memory


def test_the_innermost_work_says_what_governs_its_memory() -> None:
    for error in (
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ):
        with (
            pytest.raises(
                DialdownError,
                match=r"not enough memory .*: lower dpo\.batch_size; what is finished is kept",
            ),
            enough_memory("use less"),
            enough_memory("lower dpo.batch_size"),
        ):
            raise error
    with pytest.raises(RuntimeError, match="illegal"), enough_memory("use less"):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

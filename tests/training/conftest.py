"""What tests of training share."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from helpers import dpo_runs


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of `dpo_runs.tiny`, which no test may change."""
    return dpo_runs.tokenizer()

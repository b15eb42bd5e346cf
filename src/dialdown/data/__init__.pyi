from .assets import fetch
from .pairs import Pair, PairSet
from .texts import (
    LabelledTexts,
    load_labelled,
    load_prompts,
    load_reference_text,
    load_wiki_pairs,
    split_prompts,
)

__all__ = [
    "LabelledTexts",
    "Pair",
    "PairSet",
    "fetch",
    "load_labelled",
    "load_prompts",
    "load_reference_text",
    "load_wiki_pairs",
    "split_prompts",
]

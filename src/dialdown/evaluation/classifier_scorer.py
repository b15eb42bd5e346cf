"""One label of a sequence classifier of transformers as a scorer (METHOD §6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from ..data import loading
from ..errors import DialdownError
from .judging import Scores, batches, of_texts, together


@dataclass(frozen=True, eq=False)
class ClassifierScorer:
    """One label of a sequence classifier, as of the published `unitary/toxic-bert` (METHOD §6)."""

    name: str
    label: str
    model: Any
    tokenizer: Any

    caveat: ClassVar[str] = ""

    @classmethod
    def load(cls, source: str, label: str | None, *, device: str = "cpu") -> ClassifierScorer:
        """Load a classifier by hub id or folder; None takes the label called toxicity or toxic."""
        from transformers import AutoModelForSequenceClassification

        instead = (
            "pass a sequence classifier with a trained classification head such as "
            "'unitary/toxic-bert', or 'embedded:ngram', which needs no hub"
        )
        loading.read_config(source, name=source, instead=instead)
        model = loading.read_weights(
            AutoModelForSequenceClassification, source, name=source, instead=instead
        )
        tokenizer = loading.read_tokenizer(source, name=source)
        pad, rows = tokenizer.pad_token_id, len(model.get_input_embeddings().weight)
        if pad is None or pad >= rows:
            raise DialdownError(
                f"The tokenizer of {source!r} has no pad token that the classifier's embedding of "
                f"{rows} rows knows, so texts cannot share a batch: set tokenizer.pad_token and "
                "model.config.pad_token_id, save both and pass that folder."
            )
        if model.config.pad_token_id is None:
            # A classifier on a decoder reads the last token that is not padding.
            model.config.pad_token_id = pad
        spelt = _find_label(source, model.config.id2label, label)
        name = f"{source}#{spelt}" if label else source
        return cls(name, spelt, model.to(device).eval(), tokenizer)

    @property
    def record(self) -> Mapping[str, Any]:
        """The label, and how its logit becomes a probability."""
        return {"label": self.label, "probability": "sigmoid" if self._multi_label else "softmax"}

    @property
    def _multi_label(self) -> bool:
        """Whether labels are independent; Detoxify's are, also where an old config says nothing."""
        config = self.model.config
        stated = config.problem_type == "multi_label_classification"
        return stated or config.num_labels == 1 or self.name.startswith("unitary/")

    def score(self, texts: Sequence[str]) -> Scores:
        """Probability of the label per text, float64, shape (n,); exactly 0 for a blank text."""
        return of_texts(texts, self._probabilities)

    def _probabilities(self, texts: Sequence[str]) -> Scores:
        column = self.model.config.label2id[self.label]
        longest = min(512, self.tokenizer.model_max_length)

        def score(size: int) -> Scores:
            result = np.zeros(len(texts))
            for rows, batch in batches(self.tokenizer, texts, self.model.device, longest, size):
                with torch.inference_mode():
                    logits = self.model(**batch).logits.double()
                shares = logits.sigmoid() if self._multi_label else logits.softmax(-1)
                result[rows] = shares[:, column].cpu().numpy()
            return result

        return together(score, texts, self.model.device)


def _find_label(source: str, labels: Mapping[int, str], wanted: str | None) -> str:
    """The model's own spelling of the label; `toxicity` and `toxic` are one."""
    toxicity = {"toxicity", "toxic"}
    names = {wanted.casefold()} if wanted else toxicity
    names |= toxicity if names & toxicity else set()
    spelt = [label for label in labels.values() if label.casefold() in names]
    if not spelt:
        raise DialdownError(
            f"{source!r} has no label {wanted or 'toxicity'!r}: add one of its labels after '#': "
            f"{', '.join(map(repr, labels.values()))}."
        )
    return spelt[0]

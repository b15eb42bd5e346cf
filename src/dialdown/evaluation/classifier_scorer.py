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
    column: int  # of the label's logit
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
        column = _find_label(source, model.config, label)
        spelt = model.config.id2label[column]
        name = f"{source}#{spelt}" if label else source
        return cls(name, spelt, column, model.to(device).eval(), tokenizer)

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
        longest = min(512, self.tokenizer.model_max_length)

        def score(size: int) -> Scores:
            result = np.zeros(len(texts))
            for rows, batch in batches(self.tokenizer, texts, self.model.device, longest, size):
                with torch.inference_mode():
                    logits = self.model(**batch).logits.double()
                shares = logits.sigmoid() if self._multi_label else logits.softmax(-1)
                result[rows] = shares[:, self.column].cpu().numpy()
            return result

        return together(score, texts, self.model.device)


def _find_label(source: str, config: Any, wanted: str | None) -> int:
    """The column of a label; `toxicity` and `toxic` are one, unless a model has both."""
    labels: Mapping[int, str] = config.id2label
    toxicity = {"toxicity", "toxic"}
    names = {wanted.casefold()} if wanted else toxicity
    names |= toxicity if names & toxicity else set()
    columns = {place: label for place, label in labels.items() if label.casefold() in names}
    if not columns:
        raise DialdownError(
            f"{source!r} has no label {wanted or 'toxicity'!r}: add one of its labels after '#': "
            f"{', '.join(map(repr, labels.values()))}."
        )
    exact = (wanted or "").casefold()
    column = min(columns, key=lambda place: columns[place].casefold() != exact)
    stated = (config.label2id or {}).get(labels[column], column)
    if str(stated) != str(column):
        raise DialdownError(
            f"The config of {source!r} gives {labels[column]!r} the column {column} in id2label "
            f"and {stated} in label2id, so it cannot be told which is scored: mend the wrong one "
            "in its config.json."
        )
    return column

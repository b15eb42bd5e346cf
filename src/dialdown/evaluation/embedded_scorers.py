"""The two scorers that are trained here without a hub, once, and kept in the cache (METHOD §6).

`embedded:ngram` is a linear model on hashed n-grams, `embedded:minilm` a linear head on sentence
embeddings; they learn from disjoint parts of the embedded comments.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp
import sklearn
import torch
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split

from ..data import loading
from ..data.assets import asset_version, fetch
from ..data.corpora import Part
from ..data.texts import LabelledTexts, load_labelled
from ..data.wheels import cache_folder
from ..errors import DialdownError
from ..files import fingerprint, read_arrays, write_arrays
from ..neurons.held_out import held_groups
from ..progress import progress
from .judging import Scores, batches, of_texts, together

log = logging.getLogger(__name__)

SEED = 0
SHORT = 20  # words: continuations are that short, so the held-out AUC counts no longer texts
CHUNK = 2_000  # texts hashed at a time, which bounds the memory


# What they are trained on, by scorer and the labelled texts of the study's concept: part of the
# texts, how many, and their longest in words.
EMBEDDED: dict[tuple[str, str], tuple[Part, int | None, int]] = {
    ("embedded:ngram", "embedded:comments"): ("judge", None, 40),
    ("embedded:minilm", "embedded:comments"): ("pair_scorer", 4_400, SHORT),
    ("embedded:minilm", "embedded:imdb"): ("pair_scorer", None, 2 * SHORT),
}
ASSETS = {"embedded:comments": "comments", "embedded:imdb": "imdb-reviews"}


@dataclass(frozen=True)
class NgramFeatures:
    """Hashed word (1–2) and character (2–5) n-grams of a text: sparse, (n, 2 * HASHES)."""

    HASHES: ClassVar[int] = 2**18
    name: ClassVar[str] = "embedded:ngram"
    caveat: ClassVar[str] = (
        "The n-gram scorer knows words, not meaning: it misses threats without a swear word and "
        "fires on mild profanity."
    )

    def untrained(self, seed: int) -> Any:
        """Averaged stochastic descent: liblinear's AUC here (.987) in a sixth of its time."""
        return SGDClassifier(
            loss="log_loss", alpha=2e-6, max_iter=8, tol=None, average=True, random_state=seed
        )

    def matrix(self, texts: Sequence[str]) -> Any:
        """Presence of each n-gram; either half has length one, so a long text weighs no more."""
        shared: dict[str, Any] = {
            "n_features": self.HASHES,
            "alternate_sign": False,
            "binary": True,
        }
        shared |= {"norm": "l2", "dtype": np.float32}
        words = HashingVectorizer(ngram_range=(1, 2), token_pattern=r"\b\w+\b", **shared)
        characters = HashingVectorizer(analyzer="char_wb", ngram_range=(2, 5), **shared)
        blocks = []
        for start in range(0, len(texts), CHUNK):
            chunk = texts[start : start + CHUNK]
            parts = [words.transform(chunk), characters.transform(chunk)]
            blocks.append(sp.hstack(parts, format="csr"))
            progress("read texts for the n-gram scorer", start + len(chunk), len(texts))
        return sp.vstack(blocks, format="csr")


@dataclass(frozen=True, eq=False)
class MiniLMFeatures:
    """Sentence embeddings: an encoder's mean last hidden state over real tokens, of length one."""

    encoder: Any
    tokenizer: Any

    name: ClassVar[str] = "embedded:minilm"
    caveat: ClassVar[str] = (
        "The MiniLM scorer judges what a text is about more than its wording: it ranks texts less "
        "like people do than the n-gram scorer."
    )

    @classmethod
    def load(cls, folder: Path, device: str = "cpu") -> MiniLMFeatures:
        """Load the encoder of a folder (safetensors only)."""
        from transformers import AutoModel

        name = "embedded:minilm"
        instead = f"remove {folder}, and it is fetched again"
        encoder = loading.read_weights(
            AutoModel, str(folder), name=name, instead=instead, dtype=torch.float32
        )
        return cls(encoder.to(device).eval(), loading.read_tokenizer(str(folder), name=name))

    def untrained(self, seed: int) -> Any:
        """A weaker penalty gains no AUC and triples the false alarms on encyclopedic text."""
        return LogisticRegression(C=1.0, max_iter=1_000, random_state=seed)

    def matrix(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embeddings, float32, shape (n, width), of the first 128 tokens of each text."""

        def embed(size: int) -> NDArray[np.float32]:
            result = np.zeros((len(texts), self.encoder.config.hidden_size), dtype=np.float32)
            done = 0
            for rows, batch in batches(self.tokenizer, texts, self.encoder.device, 128, size):
                with torch.inference_mode():
                    hidden = self.encoder(**batch).last_hidden_state
                mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
                mean = (hidden * mask).sum(1) / mask.sum(1)
                result[rows] = torch.nn.functional.normalize(mean, dim=-1).cpu().numpy()
                done += len(rows)
                progress("embed texts for the MiniLM scorer", done, len(texts))
            return result

        return together(embed, texts, self.encoder.device)


Features = NgramFeatures | MiniLMFeatures
"""What a trained scorer sees of a text, and the linear model of scikit-learn that suits it."""


@dataclass(frozen=True, eq=False)
class LinearScorer:
    """Logistic regression on the features of a text; weights of shape (width,)."""

    features: Features
    weights: NDArray[np.float32]
    intercept: float
    record: Mapping[str, Any]

    KIND: ClassVar[str] = "toxicity scorer"

    @property
    def name(self) -> str:
        """The source `load_scorer` takes."""
        return self.features.name

    @property
    def caveat(self) -> str:
        """What it is known to get wrong, in one sentence."""
        return self.features.caveat

    @classmethod
    def train(cls, features: Features, data: LabelledTexts, *, seed: int) -> LinearScorer:
        """Train, holding out a tenth of the short texts (4,000 at most) for the AUC."""
        rest, held_out = _hold_out(data, seed)
        matrix = features.matrix(data.texts)
        model = features.untrained(seed).fit(matrix[rest], data.labels[rest])
        record = {
            "held_out_auc": float(
                roc_auc_score(data.labels[held_out], model.decision_function(matrix[held_out]))
            ),
            "held_out": len(held_out),
            "held_out_max_words": SHORT,
            "trained_on": len(rest),
            "seed": seed,
            "sklearn": sklearn.__version__,
        }
        # Saved as float32, so rounded here too: a scorer must not change by being loaded.
        return cls(features, model.coef_[0].astype(np.float32), float(model.intercept_[0]), record)

    @classmethod
    def load(cls, path: Path, features: Features) -> LinearScorer:
        """Read what `save` wrote."""
        arrays, header = read_arrays(path, cls.KIND)
        record = {key: value for key, value in header.items() if key not in ("schema", "kind")}
        return cls(features, arrays["weights"], float(arrays["intercept"][0]), record)

    def save(self, path: Path) -> None:
        """Write weights and record as safetensors; the features are made anew."""
        arrays = {"weights": self.weights, "intercept": np.array([self.intercept])}
        write_arrays(path, self.KIND, arrays, self.record)

    def score(self, texts: Sequence[str]) -> Scores:
        """Probability of toxicity per text, float64, shape (n,); exactly 0 for a blank text."""
        return of_texts(
            texts, lambda told: expit(self.features.matrix(told) @ self.weights + self.intercept)
        )


def embedded_scorer(name: str, source: str, device: str) -> LinearScorer:
    """The scorer of an earlier call, or a new one that later calls will find; see `EMBEDDED`."""
    features: Features = NgramFeatures()
    if name == MiniLMFeatures.name:
        features = MiniLMFeatures.load(fetch("minilm"), device)
    part, count, max_words = EMBEDDED[features.name, source]
    versions = asset_version(ASSETS[source]), asset_version("minilm")
    data: dict[str, Any] = {"part": part, "n": count, "max_words": max_words, "texts": source}
    if source == "embedded:imdb":
        # A head that an earlier version kept was judged on reviews it had learnt from.
        data["held_out"] = "reviews"
    key = fingerprint(*versions, features.name, data, SEED)
    name = features.name.removeprefix("embedded:")
    path = cache_folder() / "scorers" / f"{name}-{key}.safetensors"
    if path.exists():
        try:
            return LinearScorer.load(path, features)
        except DialdownError as error:
            log.warning("the scorer %s is trained again: %s", features.name, error)
    fetch(ASSETS[source])
    texts = load_labelled(source, count, seed=SEED, part=part, max_words=max_words)
    scorer = LinearScorer.train(features, texts, seed=SEED)
    scorer.save(path)
    return scorer


def _hold_out(data: LabelledTexts, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Row numbers to train on, and those of a tenth of the short texts for the AUC, of wholes that
    nothing is trained on.
    """
    short = np.array(
        [row for row, text in enumerate(data.texts) if len(text.split()) <= SHORT], dtype=np.intp
    )
    fewest = min(int((data.labels[short] == label).sum()) for label in (0, 1))
    if fewest < 20:
        raise DialdownError(
            f"A toxicity scorer needs at least 20 texts of at most {SHORT} words with either label "
            f"and got {fewest} of one: pass more labelled texts."
        )
    if data.groups is not None:
        held_out = short[held_groups(data.labels[short], data.groups[short], seed)[1]]
        unseen = np.isin(data.groups, data.groups[held_out])
        return np.flatnonzero(~unseen), held_out
    size = min(4_000, len(short) // 10)
    _, held_out = train_test_split(
        short, test_size=size, stratify=data.labels[short], random_state=seed
    )
    return np.setdiff1d(np.arange(len(data)), held_out), held_out

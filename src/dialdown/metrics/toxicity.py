"""How toxic a text is, as a probability: the published classifier, and two scorers trained here without a hub.

`embedded:ngram` is the default judge (a linear model on hashed n-grams), `embedded:minilm` a second opinion and the
scorer that makes preference pairs (a linear head on sentence embeddings). They are trained once, on disjoint parts of
the embedded comments, and cached. Anything else is a sequence classifier of transformers (METHOD §6).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

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

from ..assets import Progress, asset_version, cache_folder, fetch
from ..data import LabelledTexts, Part, load_labelled
from ..errors import DialdownError, nearest
from ..files import fingerprint, read_arrays, write_arrays

log = logging.getLogger(__name__)

Scores = NDArray[np.float64]

SEED = 0
SHORT = 20  # words; continuations are that short, so the held-out AUC counts texts of at most this length
BATCH = 32  # texts in a forward pass; more only adds padding


@dataclass(frozen=True)
class _Data:
    """Which embedded comments a scorer is trained on; the name and all of it enter the cached file's name."""

    scorer: str
    part: Part
    n: int | None
    max_words: int


_NGRAM_DATA = _Data("ngram", "judge", None, 40)
_MINILM_DATA = _Data("minilm", "pair_scorer", 4_400, SHORT)


class Scorer(Protocol):
    """What judges texts; `record` says how it was made and how well it does on texts it did not train on."""

    @property
    def name(self) -> str:
        """The source `load_scorer` takes."""

    @property
    def caveat(self) -> str:
        """What it is known to get wrong, one sentence to show beside its numbers; may be empty."""

    @property
    def record(self) -> Mapping[str, Any]:
        """Held-out AUC, numbers of texts, versions, seed; or model and label."""

    def score(self, texts: Sequence[str]) -> Scores:
        """Probability of toxicity per text, float64, shape (n,); exactly 0 for a blank text."""


def load_scorer(source: str, *, device: str = "cpu", progress: Progress | None = None) -> Scorer:
    """The scorer `source` names (METHOD §6), trained first where it is an embedded one that the cache lacks.

    Sources: `embedded:ngram`, `embedded:minilm`, or a sequence classifier by hub id or folder, with the label after
    `#` (`unitary/toxic-bert#toxic`); without `#`, the label `toxicity` or `toxic`.

    Raises:
        DialdownError: the name is unknown, the model cannot be loaded or is no trained classifier, or it lacks the
            label.
    """
    if source == NgramScorer.name:
        return _cached(
            _NGRAM_DATA,
            NgramScorer.load,
            lambda data: NgramScorer.train(data, seed=SEED, progress=progress),
            progress,
        )
    if source == MiniLMScorer.name:
        encoder = Encoder.load(fetch("minilm", progress), device)
        return _cached(
            _MINILM_DATA,
            lambda path: MiniLMScorer.load(path, encoder),
            lambda data: MiniLMScorer.train(data, encoder, seed=SEED, progress=progress),
            progress,
        )
    model, _, label = source.partition("#")
    if model.startswith("embedded:") or ("/" not in model and not Path(model).exists()):
        known = (NgramScorer.name, MiniLMScorer.name, "unitary/toxic-bert")
        raise DialdownError(f"There is no toxicity scorer {source!r}: {nearest(source, known)}")
    return ClassifierScorer.load(model, label or None, device=device)


@dataclass(frozen=True, eq=False)
class NgramScorer:
    """Logistic regression on which word (1–2) and character (2–5) n-grams a text has, hashed."""

    weights: NDArray[np.float64]  # (2 * FEATURES,): word n-grams, then character n-grams
    intercept: float
    record: Mapping[str, Any]

    FEATURES: ClassVar[int] = 2**18
    KIND: ClassVar[str] = "n-gram toxicity scorer"
    name: ClassVar[str] = "embedded:ngram"
    caveat: ClassVar[str] = (
        "The n-gram scorer knows words, not meaning: it misses threats without a swear word and fires on mild profanity."
    )

    @classmethod
    def train(cls, data: LabelledTexts, *, seed: int, progress: Progress | None = None) -> NgramScorer:
        """Train on `data`, holding out a tenth of its short texts (4,000 at most) for the AUC in `record`.

        Raises:
            DialdownError: fewer than 20 short texts of either label.
        """
        rest, held_out = _hold_out(data, seed)
        features = cls._features(data.texts, progress)
        # Averaged stochastic descent reaches the AUC of liblinear here (.987) in a sixth of its time.
        model = SGDClassifier(
            loss="log_loss", alpha=2e-6, max_iter=8, tol=None, average=True, random_state=seed
        )
        model.fit(features[rest], data.labels[rest])
        auc = roc_auc_score(data.labels[held_out], model.decision_function(features[held_out]))
        weights = model.coef_[0].astype(np.float64)
        return cls(weights, float(model.intercept_[0]), _record(float(auc), rest, held_out, seed))

    @classmethod
    def load(cls, path: Path) -> NgramScorer:
        """Read what `save` wrote."""
        arrays, record = read_arrays(path, cls.KIND)
        return cls(arrays["weights"].astype(np.float64), float(arrays["intercept"][0]), record)

    def save(self, path: Path) -> None:
        """Write the weights (float32) and the record as safetensors."""
        _save_head(path, self.KIND, self.weights, self.intercept, self.record)

    def score(self, texts: Sequence[str]) -> Scores:
        """Probability of toxicity per text, float64, shape (n,); exactly 0 for a blank text."""
        return _of_text(texts, lambda some: _sigmoid(self._features(some) @ self.weights + self.intercept))

    @classmethod
    def _features(cls, texts: Sequence[str], progress: Progress | None = None) -> Any:
        """Sparse float32 matrix (n, 2 * FEATURES); each half of a row has length one, so long texts weigh no more."""
        shared: dict[str, Any] = {
            "n_features": cls.FEATURES,
            "alternate_sign": False,
            "binary": True,
            "norm": "l2",
            "dtype": np.float32,
        }
        words = HashingVectorizer(ngram_range=(1, 2), token_pattern=r"\b\w+\b", **shared)
        characters = HashingVectorizer(analyzer="char_wb", ngram_range=(2, 5), **shared)
        blocks = []
        for start in range(0, len(texts), 2_000):
            some = texts[start : start + 2_000]
            blocks.append(sp.hstack([words.transform(some), characters.transform(some)], format="csr"))
            if progress:
                progress("train the n-gram scorer", start + len(some), len(texts))
        return sp.vstack(blocks, format="csr")


@dataclass(frozen=True, eq=False)
class Encoder:
    """A sentence encoder: mean of the last hidden states over real tokens, scaled to length one."""

    model: Any
    tokenizer: Any

    @classmethod
    def load(cls, folder: Path, device: str) -> Encoder:
        """Load the encoder of a folder (safetensors only)."""
        from transformers import AutoModel, AutoTokenizer

        with _quiet_loading():
            model = AutoModel.from_pretrained(folder, use_safetensors=True, dtype=torch.float32)
        return cls(model.to(device).eval(), AutoTokenizer.from_pretrained(folder))

    def embed(self, texts: Sequence[str], progress: Progress | None = None) -> NDArray[np.float32]:
        """Embeddings, float32, shape (n, width), of the first 128 tokens of each text."""
        result = np.zeros((len(texts), self.model.config.hidden_size), dtype=np.float32)
        done = 0
        for rows, batch in _batches(self.tokenizer, texts, self.model.device, longest=128):
            with torch.inference_mode():
                hidden = self.model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * mask).sum(1) / mask.sum(1)
            result[rows] = torch.nn.functional.normalize(mean, dim=-1).cpu().numpy()
            done += len(rows)
            if progress:
                progress("embed texts for the MiniLM scorer", done, len(texts))
        return result


@dataclass(frozen=True, eq=False)
class MiniLMScorer:
    """Logistic regression on MiniLM sentence embeddings."""

    weights: NDArray[np.float64]  # (width,)
    intercept: float
    record: Mapping[str, Any]
    encoder: Encoder

    KIND: ClassVar[str] = "MiniLM toxicity scorer"
    name: ClassVar[str] = "embedded:minilm"
    caveat: ClassVar[str] = (
        "The MiniLM scorer judges what a text is about more than its wording: a calm text on a rude topic may score "
        "high, and its ranks agree less with human ones than the n-gram scorer's."
    )

    @classmethod
    def train(
        cls, data: LabelledTexts, encoder: Encoder, *, seed: int, progress: Progress | None = None
    ) -> MiniLMScorer:
        """Train the head on `data`, holding out a tenth of its short texts for the AUC in `record`.

        Raises:
            DialdownError: fewer than 20 short texts of either label.
        """
        rest, held_out = _hold_out(data, seed)
        features = encoder.embed(data.texts, progress)
        # Stronger penalties lose AUC, weaker ones triple the false alarms on encyclopedic text.
        model = LogisticRegression(C=1.0, max_iter=1_000).fit(features[rest], data.labels[rest])
        auc = roc_auc_score(data.labels[held_out], model.decision_function(features[held_out]))
        weights = model.coef_[0].astype(np.float64)
        return cls(weights, float(model.intercept_[0]), _record(float(auc), rest, held_out, seed), encoder)

    @classmethod
    def load(cls, path: Path, encoder: Encoder) -> MiniLMScorer:
        """Read what `save` wrote."""
        arrays, record = read_arrays(path, cls.KIND)
        return cls(arrays["weights"].astype(np.float64), float(arrays["intercept"][0]), record, encoder)

    def save(self, path: Path) -> None:
        """Write the head's weights (float32) and the record as safetensors; the encoder stays where it is."""
        _save_head(path, self.KIND, self.weights, self.intercept, self.record)

    def score(self, texts: Sequence[str]) -> Scores:
        """Probability of toxicity per text, float64, shape (n,); exactly 0 for a blank text."""
        return _of_text(
            texts, lambda some: _sigmoid(self.encoder.embed(some) @ self.weights + self.intercept)
        )


@dataclass(frozen=True, eq=False)
class ClassifierScorer:
    """One label of a sequence classifier of transformers, e.g. the published `unitary/toxic-bert` (METHOD §6)."""

    name: str
    label: str
    model: Any
    tokenizer: Any

    caveat: ClassVar[str] = ""

    @classmethod
    def load(cls, source: str, label: str | None, *, device: str = "cpu") -> ClassifierScorer:
        """Load a classifier by hub id or folder; None takes the label called toxicity or toxic.

        Raises:
            DialdownError: it cannot be loaded, has no trained classification head, or lacks the label.
        """
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        try:
            with _quiet_loading():
                model, report = AutoModelForSequenceClassification.from_pretrained(
                    source, use_safetensors=True, output_loading_info=True
                )
            tokenizer = AutoTokenizer.from_pretrained(source)
        except (OSError, ValueError, KeyError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise DialdownError(
                f"The toxicity scorer {source!r} cannot be loaded ({reason}): check the name and the network, or use "
                "'embedded:ngram', which needs no hub."
            ) from error
        if report["missing_keys"]:
            raise DialdownError(
                f"{source!r} has no trained classification head (missing {sorted(report['missing_keys'])[0]}): pass a "
                "sequence classifier such as 'unitary/toxic-bert', or 'embedded:ngram'."
            )
        return cls(
            source, _find_label(source, model.config.id2label, label), model.to(device).eval(), tokenizer
        )

    @property
    def record(self) -> Mapping[str, Any]:
        """The label, and how its logit becomes a probability."""
        return {"label": self.label, "probability": "sigmoid" if self._multi_label else "softmax"}

    @property
    def _multi_label(self) -> bool:
        """Whether labels are independent; Detoxify's checkpoints are, also where an old config does not say so."""
        config = self.model.config
        stated = config.problem_type == "multi_label_classification"
        return stated or config.num_labels == 1 or self.name.startswith("unitary/")

    def score(self, texts: Sequence[str]) -> Scores:
        """Probability of the label per text, float64, shape (n,); exactly 0 for a blank text."""
        return _of_text(texts, self._probabilities)

    def _probabilities(self, texts: Sequence[str]) -> Scores:
        result = np.zeros(len(texts))
        column = self.model.config.label2id[self.label]
        longest = min(512, self.tokenizer.model_max_length)
        for rows, batch in _batches(self.tokenizer, texts, self.model.device, longest):
            with torch.inference_mode():
                logits = self.model(**batch).logits.double()
            shares = logits.sigmoid() if self._multi_label else logits.softmax(-1)
            result[rows] = shares[:, column].cpu().numpy()
        return result


Trained = TypeVar("Trained", NgramScorer, MiniLMScorer)


def _cached(
    data: _Data,
    load: Callable[[Path], Trained],
    train: Callable[[LabelledTexts], Trained],
    progress: Progress | None,
) -> Trained:
    """The scorer of an earlier call, or a new one that later calls will find."""
    key = fingerprint(asset_version("comments"), asset_version("minilm"), asdict(data), SEED)
    path = cache_folder() / "scorers" / f"{data.scorer}-{key}.safetensors"
    if path.exists():
        try:
            return load(path)
        except DialdownError as error:
            log.warning("training the %s scorer again: %s", data.scorer, error)
    fetch("comments", progress)
    texts = load_labelled("embedded:comments", data.n, seed=SEED, part=data.part, max_words=data.max_words)
    scorer = train(texts)
    scorer.save(path)
    return scorer


def _hold_out(data: LabelledTexts, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Row numbers to train on, and those of a tenth of the short texts (4,000 at most) to report the AUC on."""
    short = np.array(
        [row for row, text in enumerate(data.texts) if len(text.split()) <= SHORT], dtype=np.intp
    )
    fewest = min(int((data.labels[short] == label).sum()) for label in (0, 1))
    if fewest < 20:
        raise DialdownError(
            f"A toxicity scorer needs at least 20 texts of at most {SHORT} words with either label and got {fewest} of "
            "one: pass more labelled texts."
        )
    size = min(4_000, len(short) // 10)
    _, held_out = train_test_split(short, test_size=size, stratify=data.labels[short], random_state=seed)
    return np.setdiff1d(np.arange(len(data)), held_out), held_out


def _record(auc: float, rest: NDArray[np.intp], held_out: NDArray[np.intp], seed: int) -> dict[str, Any]:
    return {
        "held_out_auc": auc,
        "held_out": len(held_out),
        "held_out_max_words": SHORT,
        "trained_on": len(rest),
        "seed": seed,
        "sklearn": sklearn.__version__,
    }


def _save_head(
    path: Path, kind: str, weights: NDArray[np.float64], intercept: float, record: Mapping[str, Any]
) -> None:
    arrays = {"weights": weights.astype(np.float32), "intercept": np.array([intercept])}
    write_arrays(path, kind, arrays, record)


def _sigmoid(logits: NDArray[Any]) -> Scores:
    return np.asarray(expit(logits), dtype=np.float64)


def _of_text(texts: Sequence[str], score: Callable[[list[str]], Scores]) -> Scores:
    """Scores of the texts that say something; a blank one is 0, as silence insults nobody."""
    result = np.zeros(len(texts))
    rows = [row for row, text in enumerate(texts) if text.strip()]
    if rows:
        result[rows] = score([texts[row] for row in rows])
    return result


def _batches(
    tokenizer: Any, texts: Sequence[str], device: torch.device, longest: int
) -> Iterator[tuple[NDArray[np.intp], Any]]:
    """Row numbers and padded inputs, by length, so that little of a batch is padding."""
    order = np.argsort([len(text) for text in texts], kind="stable")
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        some = [texts[row] for row in rows]
        inputs = tokenizer(some, return_tensors="pt", padding=True, truncation=True, max_length=longest)
        yield rows, inputs.to(device)


def _find_label(source: str, labels: Mapping[int, str], wanted: str | None) -> str:
    """The model's own spelling of the label; `toxicity` and `toxic` are one label under two names."""
    names = (
        {"toxicity", "toxic"}
        if wanted is None or wanted.casefold() in ("toxicity", "toxic")
        else {wanted.casefold()}
    )
    found = [label for label in labels.values() if label.casefold() in names]
    if not found:
        raise DialdownError(
            f"{source!r} has no label {wanted or 'toxicity'!r}: add one of its labels after '#': "
            f"{', '.join(map(repr, labels.values()))}."
        )
    return found[0]


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Without transformers' own progress bars and load reports; what they say is checked here."""
    from transformers.utils import logging as chatter

    bars, level = chatter.is_progress_bar_enabled(), chatter.get_verbosity()
    chatter.disable_progress_bar()
    chatter.set_verbosity_error()
    try:
        yield
    finally:
        chatter.set_verbosity(level)
        if bars:
            chatter.enable_progress_bar()

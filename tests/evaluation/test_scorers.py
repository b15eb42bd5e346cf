"""Scorers: probabilities that do not depend on company or order, heads that survive saving, wrong
models refused.
"""

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    BertTokenizer,
)

from dialdown import DialdownError
from dialdown.data import LabelledTexts
from dialdown.evaluation import embedded_scorers, load_scorer
from dialdown.evaluation.embedded_scorers import LinearScorer, MiniLMFeatures, NgramFeatures

RUDE = ["idiot", "fool", "moron", "jerk"]
KIND = ["friend", "thanks", "peace", "welcome"]
REST = [
    "the",
    "a",
    "river",
    "house",
    "walks",
    "under",
    "blue",
    "seven",
    "slowly",
    "today",
    "again",
    "over",
]


def corpus(n=400, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    texts = []
    for label in labels:
        words = list(rng.choice(REST, size=rng.integers(3, 9)))
        words.insert(int(rng.integers(len(words))), str(rng.choice(RUDE if label else KIND)))
        texts.append(" ".join(words))
    return LabelledTexts(tuple(texts), labels.astype(np.int8))


def save_bert(folder, kind, **settings):
    """A tiny random BERT with a tokenizer of the corpus' words."""
    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *RUDE, *KIND, *REST]
    sizes = {
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
    }
    config = BertConfig(vocab_size=len(words), initializer_range=0.2, **sizes, **settings)
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    kind(config).eval().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def ngram():
    return LinearScorer.train(NgramFeatures(), corpus(), seed=0)


def test_the_ngram_scorer_learns_and_says_how_well(ngram):
    assert ngram.record["held_out_auc"] > 0.95
    assert ngram.record["held_out"] + ngram.record["trained_on"] == 400
    assert {"seed", "sklearn", "held_out_max_words"} <= set(ngram.record)
    rude, kind = ngram.score(["the river idiot walks", "the river friend walks"])
    assert rude > 0.5 > kind
    assert ngram.name == "embedded:ngram"
    assert "misses threats" in ngram.caveat


def test_a_spoilt_label_set_has_no_held_out_skill():
    good = corpus(1_000)
    shuffled = np.random.default_rng(1).permutation(good.labels)
    scorer = LinearScorer.train(NgramFeatures(), LabelledTexts(good.texts, shuffled), seed=0)
    assert 0.3 < scorer.record["held_out_auc"] < 0.7  # the AUC counts no text that was trained on


def test_the_held_out_auc_is_of_wholes_that_were_not_trained_on():
    """A word of its own gives each whole away, and nothing else tells the labels apart."""
    groups = np.repeat(np.arange(40), 12)
    labels = (groups % 2).astype(np.int8)
    rng = np.random.default_rng(0)
    texts = tuple(f"whole{group} {' '.join(rng.choice(REST, 4))}" for group in groups)
    divided, whole = (
        LinearScorer.train(NgramFeatures(), LabelledTexts(texts, labels, of_each), seed=0)
        for of_each in (None, groups)
    )
    assert divided.record["held_out_auc"] > 0.95
    assert whole.record["held_out_auc"] < 0.8
    assert whole.record["trained_on"] == 36 * 12


def test_long_texts_of_a_held_out_whole_are_not_trained_on_either():
    data = corpus(400)
    groups = np.arange(400) // 4 * 2 + np.arange(400) % 2
    long = " ".join(["river"] * 30)
    texts = tuple(f"{text} {long}" if row % 4 > 1 else text for row, text in enumerate(data.texts))
    scorer = LinearScorer.train(NgramFeatures(), LabelledTexts(texts, data.labels, groups), seed=0)
    assert (scorer.record["held_out"], scorer.record["trained_on"]) == (20, 360)


def test_training_is_repeatable_and_survives_saving(ngram, tmp_path):
    again = LinearScorer.train(NgramFeatures(), corpus(), seed=0)
    ngram.save(tmp_path / "s.safetensors")
    loaded = LinearScorer.load(tmp_path / "s.safetensors", NgramFeatures())
    texts = corpus(50, seed=7).texts
    assert np.array_equal(again.score(texts), ngram.score(texts))
    assert np.array_equal(loaded.score(texts), ngram.score(texts))
    assert loaded.record == ngram.record


def test_blank_texts_score_zero_and_change_no_other(ngram):
    scores = ngram.score(["you idiot", "", " \n", "dear friend"])
    assert scores.dtype == np.float64
    assert scores[1] == scores[2] == 0.0
    assert np.array_equal(scores[[0, 3]], ngram.score(["you idiot", "dear friend"]))
    assert ngram.score([]).shape == (0,)
    assert ngram.score([""]).tolist() == [0.0]


def test_too_few_texts_are_refused():
    few = corpus(30)
    with pytest.raises(
        DialdownError, match="at least 20 texts of at most 20 words with either label and got 15"
    ):
        LinearScorer.train(NgramFeatures(), few, seed=0)


def test_embeddings_do_not_depend_on_company(tmp_path):
    features = (
        MiniLMFeatures.load(tmp_path / "bert") if save_bert(tmp_path / "bert", BertModel) else None
    )
    texts = list(corpus(70, seed=3).texts)
    together = features.matrix(texts)
    alone = np.vstack([features.matrix([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    assert (
        np.abs(together[0] - together[1]).max() > 0.01
    )  # a random encoder still tells texts apart
    order = np.random.default_rng(0).permutation(len(texts))
    np.testing.assert_allclose(
        features.matrix([texts[i] for i in order]), together[order], atol=1e-5
    )


def test_a_head_on_embeddings_learns(tmp_path):
    save_bert(tmp_path / "bert", BertModel)
    rng = np.random.default_rng(0)
    labels = (np.arange(400) % 2).astype(np.int8)
    texts = [" ".join(rng.choice(RUDE if label else KIND, size=3)) for label in labels]
    data = LabelledTexts(tuple(texts), labels)
    scorer = LinearScorer.train(MiniLMFeatures.load(tmp_path / "bert"), data, seed=0)
    assert scorer.record["held_out_auc"] > 0.95
    rude, kind = scorer.score(["fool idiot jerk", "peace thanks friend"])
    assert rude > 0.5 > kind
    assert scorer.name == "embedded:minilm"


@pytest.mark.parametrize("problem", ["multi_label_classification", None])
def test_a_classifier_reads_its_label(tmp_path, problem):
    labels = {0: "insult", 1: "toxic"}
    names = {label: index for index, label in labels.items()}
    source = save_bert(
        tmp_path / "bert",
        BertForSequenceClassification,
        id2label=labels,
        label2id=names,
        problem_type=problem,
    )
    scorer = load_scorer(f"{source}#Toxicity")
    texts = ["the idiot walks", "peace", "over the blue river again today"]
    got = scorer.score([*texts, ""])
    assert got[3] == 0
    for text, score in zip(texts, got, strict=False):
        with torch.no_grad():
            logits = scorer.model(**scorer.tokenizer(text, return_tensors="pt")).logits[0].double()
        expected = logits.sigmoid()[1] if problem else logits.softmax(-1)[1]
        assert score == pytest.approx(float(expected), abs=1e-6)
    assert scorer.record == {"label": "toxic", "probability": "sigmoid" if problem else "softmax"}
    assert load_scorer(f"{source}#insult").label == "insult"
    with pytest.raises(DialdownError, match=r"no label 'threat': .* 'insult', 'toxic'"):
        load_scorer(f"{source}#threat")


def test_a_label_that_a_config_gives_two_columns_is_refused(tmp_path):
    labels, swapped = {0: "neutral", 1: "toxic"}, {"toxic": 0, "neutral": 1}
    source = save_bert(
        tmp_path / "bert", BertForSequenceClassification, id2label=labels, label2id=swapped
    )
    with pytest.raises(DialdownError, match="'toxic' the column 1 in id2label and 0 in label2id"):
        load_scorer(f"{source}#toxic")


def test_a_classifier_whose_config_names_labels_one_way_reads_its_label(tmp_path):
    labels = {0: "toxicity", 1: "toxic", 2: "kind"}
    source = save_bert(tmp_path / "bert", BertForSequenceClassification, id2label=labels)
    texts = ["the idiot walks", "peace"]
    for label, column in (("Toxic", 1), ("toxicity", 0), ("kind", 2)):
        scorer = load_scorer(f"{source}#{label}")
        for text, score in zip(texts, scorer.score(texts), strict=True):
            with torch.no_grad():
                logits = scorer.model(**scorer.tokenizer(text, return_tensors="pt")).logits[0]
            assert score == pytest.approx(float(logits.softmax(-1)[column]), abs=1e-6)


def test_a_model_without_a_trained_head_is_refused(tmp_path):
    source = save_bert(tmp_path / "bert", BertForMaskedLM)
    with pytest.raises(
        DialdownError, match=r"lacks 4 tensors .*classifier.bias.*trained classification head"
    ):
        load_scorer(source)


def test_a_missing_model_is_one_sentence(tmp_path):
    with pytest.raises(DialdownError, match=r"could not be loaded .* 'embedded:ngram'"):
        load_scorer(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("minilm", "embedded:minilm"),
        ("embedded:ngrams", "embedded:ngram"),
        ("toxic-bert", "unitary/toxic-bert"),
    ],
)
def test_an_unknown_scorer_names_the_nearest(given, meant):
    with pytest.raises(DialdownError, match=f"did you mean '{meant}'"):
        load_scorer(given)


def test_an_embedded_scorer_is_trained_once_and_again_when_damaged(tmp_path, monkeypatch):
    monkeypatch.setenv("DIALDOWN_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded_scorers, "fetch", lambda *_: tmp_path)
    calls = []

    def texts(source, n, *, seed, part, max_words):
        calls.append((source, part))
        return corpus()

    monkeypatch.setattr(embedded_scorers, "load_labelled", texts)
    first = load_scorer("embedded:ngram").score(["the idiot"])
    assert load_scorer("embedded:ngram").score(["the idiot"]) == first
    assert calls == [("embedded:comments", "judge")]
    (saved,) = (tmp_path / "scorers").glob("ngram-*.safetensors")
    saved.write_bytes(saved.read_bytes()[:100])
    assert load_scorer("embedded:ngram").score(["the idiot"]) == first
    assert len(calls) == 2


@pytest.mark.embedded
def test_the_embedded_judge_agrees_with_people():
    judge = load_scorer("embedded:ngram")
    assert judge.record["held_out_auc"] > 0.97
    rude = judge.score(["You are a stupid idiot", "what a pathetic moron", "shut the fuck up"])
    calm = judge.score(["Have a nice day", "The river flows to the sea", "It was built in 1904"])
    assert rude.min() > 0.5 > calm.max()

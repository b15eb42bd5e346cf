"""Corpora by name: how they are cut, and what a set on the hub says when it is out of reach."""

import csv
import gzip
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialdown import DialdownError
from dialdown.data import (
    corpora,
    load_labelled,
    load_prompts,
    load_reference_text,
    load_wiki_pairs,
    split_prompts,
)
from dialdown.data.corpora import falls_in, normalise, share_of
from helpers.study_files import write_lines


def part_of(text):
    parts = [
        part
        for part in ("probe", "judge", "pair_scorer")
        if falls_in(share_of("embedded:comments", part), text)
    ]
    assert len(parts) == 1
    return parts[0]


@given(
    st.text(),
    st.sampled_from([str.upper, str.title, lambda t: f"  {t}\n", lambda t: t.replace(" ", "  ")]),
)
def test_case_and_white_space_do_not_move_a_text_to_another_part(text, change):
    changed = change(text)
    if normalise(changed) == normalise(text):
        assert part_of(changed) == part_of(text)


def test_parts_have_their_shares():
    parts = [part_of(f"text {i}") for i in range(20_000)]
    shares = [parts.count(part) / len(parts) for part in ("probe", "judge", "pair_scorer")]
    assert shares == pytest.approx([0.2, 0.5, 0.3], abs=0.02)


def review(number):
    """A film review: short and long sentences, line breaks and titles, each long one with the
    review's own word.
    """
    body = (
        f"Film{number} is about Mr. Smith and J. Doe, sadly.<br /><br />Avoid. Did "
        f"film{number} move anybody at all?"
    )
    return (
        f'{body} The end of film{number} is what I "liked" most of everything in it!<BR>It was '
        "a film like others."
    )


@pytest.fixture
def reviews(tmp_path, monkeypatch):
    """A file like the embedded one, where 1 is a positive review; odd reviews are positive."""
    with (tmp_path / "sample.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *((review(i), i % 2) for i in range(200))])
    monkeypatch.setattr(corpora, "fetch", lambda name: {"imdb-reviews": tmp_path}[name])


def films(texts):
    return {int(number) for text in texts for number in re.findall(r"[Ff]ilm(\d+)", text)}


def test_a_review_is_cut_into_sentences_and_negative_ones_are_labelled_1(reviews):
    labelled = load_labelled("embedded:imdb", None, seed=0)
    assert all(
        number % 2 == 1 - label
        for text, label in zip(labelled.texts, labelled.labels, strict=True)
        for number in films([text])
    )
    number = min(films(labelled.texts))
    assert {text for text in labelled.texts if films([text]) in ({number}, set())} == {
        f"Film{number} is about Mr. Smith and J. Doe, sadly.",
        f"Did film{number} move anybody at all?",
        f'The end of film{number} is what I "liked" most of everything in it!',
        "It was a film like others.",  # of every review, and counted once
    }


def test_no_review_is_in_two_parts_or_in_a_part_and_in_the_prompts(reviews):
    parts = [
        films(load_labelled("embedded:imdb", None, seed=0, part=part).texts)
        for part in ("probe", "pair_scorer")
    ]
    prompts = load_prompts("embedded:imdb", None, seed=0)
    sets = [*parts, films(prompts)]
    assert set.union(*sets) == set(range(200))
    assert sum(map(len, sets)) == 200
    assert [len(numbers) / 200 for numbers in sets] == pytest.approx([0.5, 0.25, 0.25], abs=0.1)
    assert films(load_labelled("embedded:imdb", None, seed=0).texts) == parts[0] | parts[1]
    # Sentences of eight words or more, the second half left to the model.
    assert {re.sub(r"\d+", "", prompt) for prompt in prompts} == {
        "Film is about Mr.",
        "The end of film is what",
    }


def test_the_sentences_of_a_review_are_a_group(reviews, tmp_path):
    labelled = load_labelled("embedded:imdb", 100, seed=0, part="probe")
    numbers = {}
    for text, group in zip(labelled.texts, labelled.groups.tolist(), strict=True):
        numbers.setdefault(group, set()).update(films([text]))
    assert all(len(number) == 1 for number in numbers.values() if number)
    assert len({*map(tuple, filter(None, numbers.values()))}) > 40
    assert load_labelled(labelled_csv(tmp_path), None, seed=0).groups is None


def test_the_reviews_have_no_part_for_a_judge(reviews):
    with pytest.raises(
        DialdownError, match="too few for a part called 'judge': take 'probe' or 'pair_scorer'"
    ):
        load_labelled("embedded:imdb", None, seed=0, part="judge")


def test_embedded_wiki_pairs_and_reference_text_share_no_sentence(tmp_path, monkeypatch):
    long = [f"Sentence {i} has more than eight words in it altogether." for i in range(21)]
    write_lines(
        tmp_path / "test.jsonl", [{"text": text} for text in [*long, "A heading.", *long[:4]]]
    )
    monkeypatch.setattr(corpora, "fetch", lambda _: tmp_path)
    paired = {f"{prompt} {gold}" for prompt, gold in load_wiki_pairs("embedded:wiki", None, seed=0)}
    reference = load_reference_text("embedded:wiki").split("\n\n")
    assert len(paired) == 11
    assert paired | set(reference) == {*long, "A heading."}
    assert not paired & set(reference)


def test_training_prompts_are_no_sentences_that_the_evaluation_reads(tmp_path, monkeypatch):
    """Of WikiText-2's training split, where marks stand apart and hyphens within at signs."""
    prompts = [f"In {year} the well @-@ known ship , Mary , sank at sea ." for year in range(30)]
    after = "Nobody was ever sure why it did so in May ."
    with gzip.open(tmp_path / "train.raw.gz", "wt", encoding="utf-8") as packed:
        packed.write("".join(f" {prompt} {after} \n" for prompt in prompts))
    write_lines(
        tmp_path / "test.jsonl",
        [{"text": f"In {year} the wellknown ship Mary sank at sea."} for year in range(10)],
    )
    (tmp_path / "rtp_a.txt").write_text("You fool\nYou there\n", encoding="utf-8")
    monkeypatch.setattr(corpora, "fetch", lambda _: tmp_path)

    def training(n, *read):
        return split_prompts(
            "embedded:category",
            evaluation=1,
            training=n,
            seed=0,
            training_source="embedded:wikitext2",
            read=read,
        ).training

    every = training(None, "embedded:wikitext2")
    assert sorted(every) == sorted(prompts)
    left = training(None, "embedded:wikitext2", "embedded:wiki")
    assert list(left) == [prompt for prompt in every if prompt in prompts[10:]]
    assert training(7, "embedded:wiki") == left[:7]
    with pytest.raises(DialdownError, match="21 were asked for but there are 20 prompts"):
        training(21, "embedded:wiki")


def test_wikitext_rows_are_joined_as_published(tmp_path, monkeypatch):
    body = (
        " \n = Title = \n \n One long sentence of more than eight words . Another sentence of "
        "more than eight words here . \n"
    )
    for split in ("valid", "test"):
        with gzip.open(tmp_path / f"{split}.raw.gz", "wt", encoding="utf-8") as packed:
            packed.write(body)
    monkeypatch.setattr(corpora, "fetch", lambda _: tmp_path)
    rows = ["", " = Title = \n", "", body.split("\n")[3] + "\n"]
    assert load_reference_text("embedded:wikitext2") == "\n\n".join(rows)
    expected = (
        "One long sentence of more than eight words .",
        "Another sentence of more than eight words here .",
    )
    assert load_wiki_pairs("embedded:wikitext2", 1, seed=0) == [expected]


def test_a_hub_set_is_read_through_datasets(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load(source, config, split):
        asked.append((source, config, split))
        return [{"text": " = Title = \n"}, {"text": ""}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert load_reference_text("Salesforce/wikitext") == " = Title = \n\n\n"
    assert asked == [("Salesforce/wikitext", "wikitext-2-raw-v1", "test")]


def test_an_unreachable_hub_set_is_one_sentence(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def load(*_args, **_kwargs):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(
        DialdownError,
        match=r"'no/such' is not a folder here and could not be fetched .* the connection failed",
    ):
        load_prompts("no/such", 1, seed=0)


def test_the_hub_without_the_library_is_one_sentence(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(
        DialdownError, match=r"needs datasets, which is not installed: .* or pass a file or"
    ):
        load_prompts("no/such", 1, seed=0)


@pytest.mark.embedded
def test_the_embedded_texts_are_what_the_study_counts_on():
    split = split_prompts("embedded:rtp", evaluation=256, training=None, seed=0)
    assert len(split.training) > 1_000
    assert max(len(prompt.split()) for prompt in split.evaluation) <= 32
    # Of 31,935 sentences, 304 are in the embedded encyclopedia sentences too.
    training = split_prompts(
        "embedded:rtp",
        evaluation=256,
        training=None,
        seed=0,
        training_source="embedded:wikitext2",
        read=("embedded:wiki",),
    ).training
    assert len(training) == 31_935 - 304
    probe = load_labelled("embedded:comments", 2_000, seed=0, part="probe", max_words=40)
    assert probe.labels.mean() == 0.5
    assert len(load_wiki_pairs("embedded:wiki", 128, seed=0)) == 128
    assert len(load_reference_text("embedded:wiki").split()) > 4_000


@pytest.mark.embedded
def test_the_embedded_reviews_are_what_the_example_counts_on():
    assert len(load_labelled("embedded:imdb", None, seed=0)) == 1_723
    assert (
        load_labelled("embedded:imdb", 1_000, seed=0, part="probe", max_words=40).labels.mean()
        == 0.5
    )
    prompts = load_prompts("embedded:imdb", None, seed=0)
    assert len(prompts) == 606
    assert not any("<" in prompt for prompt in prompts)


def labelled_csv(tmp_path, n=200):
    rows = [f'"text ""number"" {i}, {"fool" if i % 2 else "friend"}",{i % 2}' for i in range(n)]
    path = tmp_path / "labelled.csv"
    path.write_text("text,label\n" + "\n".join(rows), encoding="utf-8")
    return str(path)


def test_parts_share_no_text_and_labels_are_balanced(tmp_path):
    source = labelled_csv(tmp_path)
    parts = {
        part: load_labelled(source, 20, seed=0, part=part)
        for part in ("probe", "judge", "pair_scorer")
    }
    texts = [text for part in parts.values() for text in part.texts]
    assert len(set(texts)) == 60
    for part, labelled in parts.items():
        assert labelled.labels.dtype == np.int8
        assert labelled.labels.sum() == 10
        assert {part_of(text) for text in labelled.texts} == {part}
        assert all(
            ("fool" in text) == label
            for text, label in zip(labelled.texts, labelled.labels, strict=True)
        )

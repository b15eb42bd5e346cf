"""Sources of text: what is kept apart stays apart, what is wrong gets one sentence."""

import csv
import gzip
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialdown.data import corpora
from dialdown.data import texts as data
from dialdown.data.corpora import falls_in, normalise, share_of
from dialdown.data.texts import (
    load_labelled,
    load_prompts,
    load_reference_text,
    load_wiki_pairs,
    split_prompts,
)
from dialdown.errors import DialdownError

WORDS = ["you", "fool", "dear", "friend", "go", "away"]
some_prompts = st.lists(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join), min_size=1, max_size=12
)


def part_of(text):
    parts = [
        part
        for part in ("probe", "judge", "pair_scorer")
        if falls_in(share_of("embedded:comments", part), text)
    ]
    assert len(parts) == 1
    return parts[0]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def labelled_csv(tmp_path, n=200):
    rows = [f'"text ""number"" {i}, {"fool" if i % 2 else "friend"}",{i % 2}' for i in range(n)]
    path = tmp_path / "labelled.csv"
    path.write_text("text,label\n" + "\n".join(rows), encoding="utf-8")
    return str(path)


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


@given(some_prompts, some_prompts)
def test_overlap_is_what_comparing_all_with_all_says(held, asked):
    overlap = data._Overlap(held)
    for text in asked:
        by_hand = any(text.startswith(other) or other.startswith(text) for other in held)
        assert overlap.with_text(text) == by_hand


@given(prompts=some_prompts, evaluation=st.integers(1, 3), seed=st.integers(0, 5))
def test_a_split_never_trains_on_an_evaluation_prompt(tmp_path_factory, prompts, evaluation, seed):
    path = tmp_path_factory.mktemp("prompts") / "p.txt"
    path.write_text("\n".join(prompts), encoding="utf-8")
    try:
        split = split_prompts(str(path), evaluation=evaluation, training=None, seed=seed)
    except DialdownError:
        return  # too few, said in a sentence
    assert len(split.evaluation) == evaluation
    for judged in split.evaluation:
        assert not any(t.startswith(judged) or judged.startswith(t) for t in split.training)


def test_prompts_are_chosen_by_seed_and_more_of_them_start_alike(tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("\n".join(f"prompt {i}" for i in range(50)) + "\n\n", encoding="utf-8")
    few, many = (load_prompts(str(path), n, seed=3) for n in (5, 20))
    assert many[:5] == few
    assert len(set(many)) == 20
    assert load_prompts(str(path), 5, seed=4) != few
    assert len(load_prompts(str(path), None, seed=3)) == 50


def test_prompts_of_every_file_kind(tmp_path):
    wanted = {"say, this", "and that"}
    rows = [{"prompt": "say, this"}, {"prompt": {"text": "and that", "toxicity": 0.9}}]
    nested = write_jsonl(
        tmp_path / "p.jsonl", [*rows, {"prompt": "an easy one", "challenging": False}]
    )
    (tmp_path / "p.csv").write_text('prompt\n"say, this"\nand that\n', encoding="utf-8-sig")
    (tmp_path / "p.txt").write_text("say, this\nSAY,  this\nand that\n", encoding="utf-8")
    with gzip.open(tmp_path / "p.jsonl.gz", "wt", encoding="utf-8") as packed:
        packed.write('{"text": "say, this"}\n\n{"text": "and that"}\n')
    for source in (nested, *(str(tmp_path / name) for name in ("p.csv", "p.txt", "p.jsonl.gz"))):
        assert set(load_prompts(source, None, seed=0)) == wanted


def test_excluded_prompts_and_their_starts_are_left_out(tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("you fool\nyou fool of a took\nYou\ndear friend\n", encoding="utf-8")
    assert load_prompts(str(path), None, seed=0, exclude=["YOU  fool"]) == ["dear friend"]


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


def test_repeated_and_long_texts_are_left_out(tmp_path):
    rows = [
        {"text": t, "label": i % 2}
        for i, t in enumerate(["One fool", "a friend", "one  FOOL", "so many words here"])
    ]
    rows[2]["label"] = 0  # a contradiction: the first stands
    labelled = load_labelled(write_jsonl(tmp_path / "l.jsonl", rows), None, seed=0, max_words=3)
    assert sorted(zip(labelled.texts, labelled.labels.tolist(), strict=True)) == [
        ("One fool", 0),
        ("a friend", 1),
    ]


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


def test_the_reviews_have_no_part_for_a_judge(reviews):
    with pytest.raises(
        DialdownError, match="too few for a part called 'judge': take 'probe' or 'pair_scorer'"
    ):
        load_labelled("embedded:imdb", None, seed=0, part="judge")


def test_a_tab_separated_file_is_read_without_quoting(tmp_path):
    path = tmp_path / "l.tsv"
    path.write_text('text\tlabel\n"so he said\t1\nnothing\t0\n', encoding="utf-8")
    assert sorted(load_labelled(str(path), None, seed=0).texts) == ['"so he said', "nothing"]


def test_pairs_and_reference_text_of_files(tmp_path):
    pairs = write_jsonl(tmp_path / "pairs.jsonl", [{"prompt": "The ship", "gold": "sank ."}])
    assert load_wiki_pairs(pairs, 1, seed=0) == [("The ship", "sank .")]
    text = tmp_path / "text.txt"
    text.write_text(" = Ship = \n\nIt sank .\n", encoding="utf-8")
    assert load_reference_text(str(text)) == " = Ship = \n\nIt sank .\n"


def test_embedded_wiki_pairs_and_reference_text_share_no_sentence(tmp_path, monkeypatch):
    long = [f"Sentence {i} has more than eight words in it altogether." for i in range(21)]
    write_jsonl(
        tmp_path / "test.jsonl", [{"text": text} for text in [*long, "A heading.", *long[:4]]]
    )
    monkeypatch.setattr(corpora, "fetch", lambda _: tmp_path)
    paired = {f"{prompt} {gold}" for prompt, gold in load_wiki_pairs("embedded:wiki", None, seed=0)}
    reference = load_reference_text("embedded:wiki").split("\n\n")
    assert len(paired) == 11
    assert paired | set(reference) == {*long, "A heading."}
    assert not paired & set(reference)


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
        DialdownError, match=r"'no/such' could not be fetched from the hub .* the connection failed"
    ):
        load_prompts("no/such", 1, seed=0)


def test_the_hub_without_the_library_is_one_sentence(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(DialdownError, match="pip install datasets"):
        load_prompts("no/such", 1, seed=0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", "\n \n", "There are no prompts"),
        ("p.txt", "one\n", "3 were asked for but there are 1 prompts"),
        ("p.jsonl", '{"prompt": " "}\n', "line 1 of .* has an empty prompt"),
        ("p.jsonl", '{"prompt": "a"}\n{oops\n', "Line 2 of .* is not JSON"),
        ("p.jsonl", "[1]\n", "Line 1 of .* is not a JSON object"),
        ("p.jsonl", '{"words": "a"}\n', "line 1 of .* no text column 'prompt' or 'text'"),
        ("p.csv", "words\na\n", "row 1 of .* no text column 'prompt' or 'text'"),
        ("p.csv", b"prompt\n\xff\xfe\n", "cannot be read"),
        ("p.jsonl.gz", b"\x1f\x8b\x08", "cannot be read"),
        ("p.docx", "x", "unknown kind"),
        ("p.csv", "prompt\nhello, you\n", "Row 1 of .* has 2 cells where the header has 1"),
        ("p.csv", 'prompt\n"hello\nyou\n', "cannot be read"),
        ("p.csv", "prompt,challenging\na,perhaps\n", "has 'perhaps' as 'challenging'"),
        ("p.jsonl", '{"prompt": "a\\ud83d"}', "half of a character"),
        ("p.jsonl", "[" * 100_000, "nested too deeply"),
        ("p.jsonl", '{"prompt": ' + "9" * 5000 + "}", "is not JSON"),
        ("p.jsonl", '{"prompt": null}', "The prompt in line 1 of .* is null"),
        ("p.jsonl", '{"prompt": 3}', "is 3, which is no text"),
        (
            "p.jsonl",
            '{"prompt": [{"role": "user", "content": "a"}]}',
            "pass the text that its chat template makes",
        ),
        ("p.txt", "a\n".encode("utf-16-le"), "holds zero bytes"),
        ("p.txt.gz", b"\x1f\x8b\x08\x00" + bytes(40), "cannot be read"),
    ],
)
def test_wrong_prompts_get_one_sentence(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DialdownError, match=message):
        load_prompts(str(path), 3, seed=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label\na b,1\nc d,1\n", "All 2 texts of .* have the label 1"),
        ("text,label\na b,0\n", "All 1 texts of .* have the label 0"),
        ("text,label\na b,2\n", "the label '2'"),
        ("text,mark\na b,1\n", "no label"),
        ("comment,label\na b,1\n", "no text column 'text'"),
        ("text,label\n", "There are no"),
        ("text,label\na b,1\nc d,0\n", "2 were asked for but there are 1 texts labelled 1"),
        ("", "There are no"),
    ],
)
def test_wrong_labelled_texts_get_one_sentence(tmp_path, content, message):
    path = tmp_path / "l.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DialdownError, match=message):
        load_labelled(str(path), 4, seed=0)


@pytest.mark.parametrize("kind", ["csv", "CSV", "jsonl", "JSONL"])
@pytest.mark.parametrize(
    ("yes", "no"),
    [
        ("1", "0"),
        ("True", "False"),
        ("true", "FALSE"),
        ("1.0", "0.0"),
        ("yes", "no"),
        (1.0, 0.0),
        (True, False),
    ],
)
def test_yes_and_no_are_read_alike_from_every_kind_of_file(tmp_path, kind, yes, no):
    rows = [
        {"text": "a fool", "label": yes, "challenging": yes},
        {"text": "a friend", "label": no, "challenging": no},
    ]
    path = tmp_path / f"l.{kind}"
    if kind.lower() == "csv":
        lines = [f"{row['text']},{row['label']},{row['challenging']}\n" for row in rows]
        path.write_text("text,label,challenging\n" + "".join(lines), encoding="utf-8")
    else:
        write_jsonl(path, rows)
    labelled = load_labelled(str(path), None, seed=0)
    assert dict(zip(labelled.texts, labelled.labels.tolist(), strict=True)) == {
        "a fool": 1,
        "a friend": 0,
    }
    assert load_prompts(str(path), None, seed=0) == ["a fool"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["p.txt", "p.TXT", "p.csv", "p.jsonl", "p.txt.gz"])
def test_a_file_is_text_in_every_encoding_that_says_which_it_is(tmp_path, encoding, name):
    content = {"csv": "prompt\nsay é\n", "jsonl": '{"prompt": "say é"}\n'}.get(
        name.split(".")[1], "say é\n"
    )
    data_bytes = content.encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(data_bytes) if name.endswith(".gz") else data_bytes)
    assert load_prompts(str(tmp_path / name), None, seed=0) == ["say é"]


@pytest.mark.parametrize("name", ["t.jsonl", "t.csv", "t.TSV"])
def test_reference_text_of_a_file_of_rows_is_their_texts_without_the_markup(tmp_path, name):
    rows = {
        "t.jsonl": '{"text": "It sank ."}\n{"text": "Twice ."}\n',
        "t.csv": "text,id\nIt sank .,1\nTwice .,2\n",
    }
    (tmp_path / name).write_text(
        rows.get(name, "text\tid\nIt sank .\t1\nTwice .\t2\n"), encoding="utf-8"
    )
    assert load_reference_text(str(tmp_path / name)) == "It sank .\n\nTwice ."


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: load_prompts("embedded:rtq", 1, seed=0), "did you mean 'embedded:rtp'"),
        (lambda: load_prompts("embeded:category", 1, seed=0), "did you mean 'embedded:category'"),
        (lambda: load_labelled("embedded:coments", 2, seed=0), "did you mean 'embedded:comments'"),
        (lambda: load_wiki_pairs("embedded:wikitext", 1, seed=0), "did you mean 'embedded:wiki"),
        (lambda: load_reference_text("embedded:wikki"), "did you mean 'embedded:wiki"),
        (lambda: load_prompts("nowhere/p.jsonl", 1, seed=0), "nowhere/p.jsonl does not exist"),
        (lambda: load_reference_text("nowhere.txt"), "nowhere.txt does not exist"),
    ],
)
def test_unknown_sources_get_one_sentence(call, message):
    with pytest.raises(DialdownError, match=message):
        call()


def test_a_blank_reference_text_is_refused(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text(" \n", encoding="utf-8")
    with pytest.raises(DialdownError, match="holds no text"):
        load_reference_text(str(path))


@pytest.mark.embedded
def test_the_embedded_texts_are_what_the_study_counts_on():
    split = split_prompts("embedded:rtp", evaluation=256, training=None, seed=0)
    assert len(split.training) > 1_000
    assert max(len(prompt.split()) for prompt in split.evaluation) <= 32
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

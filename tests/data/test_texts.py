"""Sources of text: what is kept apart stays apart, what is wrong gets one sentence."""

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialdown import DialdownError
from dialdown.data import (
    load_labelled,
    load_prompts,
    load_reference_text,
    load_wiki_pairs,
    split_prompts,
)
from dialdown.data import texts as data
from helpers.study_files import write_lines

WORDS = ["you", "fool", "dear", "friend", "go", "away"]


some_prompts = st.lists(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join), min_size=1, max_size=12
)


@given(some_prompts, some_prompts)
def test_overlap_is_what_comparing_all_with_all_says(held, asked):
    overlap = data._overlapping(held)
    for text in asked:
        by_hand = any(text.startswith(other) or other.startswith(text) for other in held)
        assert overlap(text) == by_hand


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
    nested = write_lines(
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


def test_repeated_and_long_texts_are_left_out(tmp_path):
    rows = [
        {"text": t, "label": i % 2}
        for i, t in enumerate(["One fool", "a friend", "one  FOOL", "so many words here"])
    ]
    labelled = load_labelled(write_lines(tmp_path / "l.jsonl", rows), None, seed=0, max_words=3)
    assert sorted(zip(labelled.texts, labelled.labels.tolist(), strict=True)) == [
        ("One fool", 0),
        ("a friend", 1),
    ]


def test_a_text_with_both_labels_is_left_out_and_counted(tmp_path):
    rows = [
        {"text": text, "label": label}
        for text, label in (
            ("You idiot", 1), ("nice", 0), ("you  idiot", 0), ("bad", 1), ("bad", 1), ("", 0),
            ("", 1), ("YOU IDIOT", 1), ("a very long text", 1), ("a very long text", 0),
        )
    ]  # fmt: skip
    labelled = load_labelled(write_lines(tmp_path / "l.jsonl", rows), None, seed=0, max_words=3)
    assert {*zip(labelled.texts, labelled.labels.tolist(), strict=True)} == {
        ("nice", 0),
        ("bad", 1),
    }
    assert labelled.contradictory == 1
    rows.pop(2)
    kept = load_labelled(write_lines(tmp_path / "l.jsonl", rows), None, seed=0, max_words=3)
    assert (len(kept), kept.contradictory) == (3, 0)


def test_a_tab_separated_file_is_read_without_quoting(tmp_path):
    path = tmp_path / "l.tsv"
    path.write_text('text\tlabel\n"so he said\t1\nnothing\t0\n', encoding="utf-8")
    assert sorted(load_labelled(str(path), None, seed=0).texts) == ['"so he said', "nothing"]


def test_pairs_and_reference_text_of_files(tmp_path):
    pairs = write_lines(tmp_path / "pairs.jsonl", [{"prompt": "The ship", "gold": "sank ."}])
    assert load_wiki_pairs(pairs, 1, seed=0) == [("The ship", "sank .")]
    text = tmp_path / "text.txt"
    text.write_text(" = Ship = \n\nIt sank .\n", encoding="utf-8")
    assert load_reference_text(str(text)) == " = Ship = \n\nIt sank .\n"


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
        ("p.csv", "prompt,id,prompt\na,1,b\n", "The header of .* has 'prompt' more than once"),
        ("p.jsonl", '{"prompt": "a", "prompt": "b"}', "Line 1 of .* has 'prompt' more than once"),
        (
            "p.csv",
            "prompt\n\"{'text': 'Hello you', 'toxicity': 0.5}\"\n",
            "in row 1 of .* is an object written out .*: save the data as .jsonl",
        ),
        ("p.csv", 'prompt\n"hello\nyou\n', "cannot be read"),
        ("p.csv", "prompt,challenging\na,perhaps\n", "has 'perhaps' as 'challenging'"),
        ("p.jsonl", '{"prompt": "a\\ud83d"}', "half of a character"),
        ("p.jsonl", "[" * 100_000, "nested too deeply"),
        ("p.jsonl", '{"prompt": ' + "9" * 5000 + "}", "is not JSON"),
        ("p.jsonl", '{"prompt": null}', "The prompt in line 1 of .* is null"),
        ("p.jsonl", '{"prompt": 3}', "is 3, which is not text"),
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
        write_lines(path, rows)
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


def test_columns_without_a_name_may_be_several(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("prompt,,\nsay,,\n", encoding="utf-8")
    assert load_prompts(str(path), None, seed=0) == ["say"]


@pytest.mark.parametrize("name", ["t.json", "t.JSON", "t.json.gz", "t.xml"])
def test_markup_is_no_reference_text(tmp_path, name):
    path = tmp_path / name
    text = b'[{"text": "It sank ."}]'
    path.write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    with pytest.raises(DialdownError, match=r"is no plain text, .*: pass a \.txt, \.jsonl"):
        load_reference_text(str(path))


def test_a_blank_reference_text_is_refused(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text(" \n", encoding="utf-8")
    with pytest.raises(DialdownError, match="holds no text"):
        load_reference_text(str(path))

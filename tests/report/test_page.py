"""The report through `write_report` on invented runs: protocols named, nothing fetched, nothing
crashed, nothing overstated.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from dialdown.cli.summary import show_notes, show_sentences
from dialdown.report.evidence import Evidence
from dialdown.report.findings import findings
from dialdown.report.page import write_report
from dialdown.report.run import load
from dialdown.study.published import NAMES
from dialdown.terminal import Terminal
from helpers.fabricated_run import MAIN, PROMPT, write_run
from helpers.report_page import Page

# Half the study and a quarter of the figures, for tests that look at something else.
QUICK: dict[str, Any] = {
    "main": {name: MAIN[name] for name in ("none", "dpo", "steer_probe", "edit_probe_set")},
    "protocols": ("strict",),
    "tuned": "someone/tuned",
    "neurons": False,
}


def report(folder: Path, **options: Any) -> tuple[str, Page]:
    text = write_report(write_run(folder, **options)).read_text(encoding="utf-8")
    return text, Page(text)


def change_rows(folder: Path, change: Any) -> None:
    path = folder / "results.json"
    results = json.loads(path.read_text(encoding="utf-8"))
    results["rows"] = [row for row in results["rows"] if change(row) is not False]
    path.write_text(json.dumps(results), encoding="utf-8")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Page]:
    return report(tmp_path_factory.mktemp("whole") / "run")


def test_every_line_of_numbers_names_its_protocol(whole: tuple[str, Page]) -> None:
    _, page = whole
    lines = [(protocol, text) for protocol, text in page.rows if re.search(r"\d\.\d{3} \[", text)]
    assert len(lines) >= 2 * len(MAIN)
    # The paper's own tables have a column for it.
    lines = [
        (protocol, text)
        for protocol, text in lines
        if protocol or not re.search(r" (strict|paper) ", text)
    ]
    for protocol, text in lines:
        assert protocol in ("strict", "paper")
        assert f" {protocol} " in text


def test_figures_name_their_number_their_model_and_what_they_show(whole: tuple[str, Page]) -> None:
    figures = re.findall(r"<figure id.*?</figure>", whole[0], flags=re.DOTALL)
    assert len(figures) >= 12
    for figure in figures:
        assert re.search(r"<b>Figures? [0-9A-D]", figure)
        assert re.search(r"</b> embedded:smollm2-135m(, strict|, paper): ", figure)
        # What it shows stands beside it in the picture too.
        assert re.search("· (strict|paper)</text>", figure)
        assert re.match(r'<figure id="[^"]+" data-figure><svg [^>]*aria-label="Fig', figure)


def test_every_figure_and_table_of_the_page_is_a_file_beside_it(tmp_path: Path) -> None:
    _, page = report(tmp_path, **{**QUICK, "neurons": True})
    names = [attributes["id"] for _, attributes in page.elements if "data-figure" in attributes]
    wanted = {f"{name}.{suffix}" for name in names for suffix in ("svg", "png", "pdf")}
    assert {path.name for path in (tmp_path / "figures").iterdir()} == wanted
    links = {attributes["href"] or "" for tag, attributes in page.elements if tag == "a"}
    files = {link for link in links if not link.startswith("#")}
    assert {f"figures/{name}" for name in wanted} <= files
    for link in files:
        assert (tmp_path / link).is_file()
    tables = {f"tables/{path.name}" for path in (tmp_path / "tables").iterdir()}
    assert tables <= files


def test_the_numbers_are_those_of_the_results(whole: tuple[str, Page]) -> None:
    _, page = whole
    [strict] = [
        text
        for protocol, text in page.rows
        if protocol == "strict" and "0.040 [0.000, 0.118]" in text and "9.220" in text
    ]
    assert "probe edit, set" in strict
    assert any(protocol == "paper" and "3.610" in text for protocol, text in page.rows)


def test_one_small_file_that_loads_nothing(whole: tuple[str, Page]) -> None:
    text, page = whole
    assert len(text.encode()) < 1_500_000
    assert not {"link", "img", "iframe", "object", "base"} & {tag for tag, _ in page.elements}
    for _, attributes in page.elements:
        for name, value in attributes.items():
            assert name not in ("src", "srcset", "action", "data", "style")
            assert not name.endswith("href") or re.match("#|figures/|tables/", value or "")
    assert not re.search(r"https?:|@import|//[a-z]", text)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))


def test_references_inside_figures_are_unique_and_resolve(whole: tuple[str, Page]) -> None:
    text, page = whole
    ids = [attributes["id"] for _, attributes in page.elements if attributes.get("id")]
    assert len(ids) == len(set(ids))
    leads = set(re.findall(r"(?:url\(|href=\")#([^)\"]+)", text))
    assert leads <= set(ids)
    # A point of the trade-off leads to its samples, and a conclusion to its table.
    assert {"samples-strict-0", "samples-paper-0", "table-2"} <= leads


def test_model_text_is_escaped_and_behind_a_click(whole: tuple[str, Page]) -> None:
    text, page = whole
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert PROMPT in page.sections["samples"].replace("  ", " ")
    before = text[: text.index("&lt;script&gt;")]
    assert 'class="uncensored"' in before
    assert ("details", {"class": "uncensored"}) in page.elements


def test_no_script_but_its_own_may_run_and_nothing_may_be_fetched(whole: tuple[str, Page]) -> None:
    text, page = whole
    [policy] = [
        attributes["content"] or ""
        for tag, attributes in page.elements
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    for tag in ("script", "style"):
        [content] = re.findall(rf"<{tag}>(.*?)</{tag}>", text, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[f"{tag}-src"] == f"'sha256-{digest}'"
    assert text.count("<script") == text.count("<style") == 1
    # Before it, nothing that it could not govern.
    assert "<script" not in text[: text.index("Content-Security-Policy")]
    assert not [
        name for _, attributes in page.elements for name in attributes if name.startswith("on")
    ]


def test_no_control_character_of_a_file_reaches_the_page(tmp_path: Path) -> None:
    write_run(tmp_path, **{**QUICK, "neurons": True})
    nasty = "\x1b[31mred\x07\u202eback"
    change_rows(
        tmp_path,
        lambda row: row.update(
            samples=[{"prompt": nasty, "continuation": f"{nasty}\ud83d"}],
            **dict.fromkeys(
                ("intervention", "family"),
                f"edit_{nasty}" if row["intervention"] == "edit_probe_set" else row["intervention"],
            ),
        ),
    )
    run = json.loads((tmp_path / "run.json").read_text())
    run["config"]["concept"] = nasty
    run["stages"]["probe"]["notes"] = [{"sentence": nasty, "counts": {}}]
    (tmp_path / "run.json").write_text(json.dumps(run))
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert "redback" in text
    assert not re.findall(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", text
    )


def test_nothing_that_a_stage_left_out_is_unsaid(tmp_path: Path) -> None:
    write_run(tmp_path, **QUICK)
    run = json.loads((tmp_path / "run.json").read_text())
    run["stages"]["neurons"]["notes"] = [
        {"sentence": "the judge had no answer for 3 tokens", "counts": {"missing": 3}}
    ]
    (tmp_path / "run.json").write_text(json.dumps(run))
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "the judge had no answer for 3 tokens" in page.sections["notes"]
    # The fabricated run was given a tuned model.
    assert "not done: a tuned model was given" in page.sections["notes"]
    shown = io.StringIO()
    show_notes(tmp_path, Terminal(file=shown, width=200))
    assert "neurons: the judge had no answer for 3 tokens" in shown.getvalue()


def test_how_each_scorer_was_made_stands_on_the_page(whole: tuple[str, Page]) -> None:
    page = whole[1]
    assert "How embedded:minilm was made" in page.sections["method"]
    assert "held_out_auc 0.978" in " ".join(page.sections["method"].split())


def test_a_row_is_labelled_with_its_own_strength(tmp_path: Path) -> None:
    write_run(tmp_path, **{**QUICK, "protocols": ("strict", "paper")})
    alphas = {"strict": 2463.0, "paper": 103.0}
    change_rows(
        tmp_path,
        lambda row: (
            row.update(alpha=alphas[row["protocol"]])
            if row["intervention"] == "steer_probe"
            else None
        ),
    )
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    for protocol, alpha in alphas.items():
        other = next(value for name, value in alphas.items() if name != protocol)
        lines = [
            text
            for row_protocol, text in page.rows
            if row_protocol == protocol and f"α = {alpha:g}" in text
        ]
        assert lines
        assert not any(f"α = {other:g}" in text for text in lines)


def test_the_console_says_what_the_page_says_first(tmp_path: Path) -> None:
    write_run(tmp_path)
    shown = io.StringIO()
    show_sentences(tmp_path, Terminal(file=shown, width=4000))
    for text in findings(load(tmp_path)).values():
        assert text in shown.getvalue()


def test_names_are_escaped_in_figures_too(tmp_path: Path) -> None:
    write_run(tmp_path, protocols=("strict",))
    change_rows(
        tmp_path,
        lambda row: (
            row.update(intervention="edit", family="edit_<i>$x^2$&", samples=[])
            if row["intervention"] == "edit_probe_set"
            else None
        ),
    )
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert "<i>$x" not in text
    assert "edit_&lt;i&gt;$x^2$&amp;" in text


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    first, _ = report(tmp_path, **{**QUICK, "neurons": True})
    assert write_report(tmp_path).read_text(encoding="utf-8") == first


def test_the_verdict_of_an_edit_that_costs_more_than_the_paper_sees(
    whole: tuple[str, Page],
) -> None:
    verdict = whole[1].sections["verdict"]
    assert "after it: lower by 0.280 [0.202, 0.358]" in verdict
    assert "“probe edit, scale” leaves the least toxicity" in verdict
    assert "less than the edited model really pays." in verdict


def test_the_verdict_when_dpo_harms(tmp_path: Path) -> None:
    same = {
        name: (kind, toxicity, (price[1], price[1]))
        for name, (kind, toxicity, price) in MAIN.items()
        if not name.startswith("patch")
    }
    _, page = report(
        tmp_path,
        neurons=False,
        tuned="someone/tuned",
        random_like_edit=False,
        main={**same, "dpo": ("none", (0.62, 0.6), (0.5, 0.5))},
    )
    verdict = page.sections["verdict"]
    assert "after it: higher by 0.230 [0.152, 0.308]" in verdict
    assert ", which does not differ distinguishably." in verdict
    assert "really pays" not in verdict


def test_few_prompts_claim_nothing(tmp_path: Path) -> None:
    _, page = report(
        tmp_path,
        **{**QUICK, "n": 8, "main": {**QUICK["main"], "dpo": ("none", (0.3, 0.3), (0.01, 0.01))}},
    )
    assert "after it: not distinguishably changed: −0.090 [" in page.sections["verdict"]
    assert "n = 8 prompts, too few to decide" in page.sections["verdict"]
    assert "log-perplexity (8 prompts, too few to decide)." in page.sections["verdict"]


PUBLISHED = (2, 3, 5, 8, 10, 11, 12, 13, 17, 18, 19)  # tables whose figures of the models are known


def test_every_table_has_the_papers_four_models_beside_ours(whole: tuple[str, Page]) -> None:
    parts = re.findall(r'<details id="(table-\d+)".*?<thead>(.*?)</thead>', whole[0], re.DOTALL)
    heads = dict(parts)
    # The invented run has no facts of its MLP layers, and nothing that stands in table 12 alone.
    there = [number for number in PUBLISHED if number != 8]
    for number in there:
        for name in NAMES.values():
            assert f"<button>{name}</button>" in heads[f"table-{number}"], number


def test_published_values_stand_only_beside_their_protocol(whole: tuple[str, Page]) -> None:
    for figures in ("0.545 · 3.08 · 0.193", "0.507 · 1.76 · 0.221", "0.203 · 3.08 · 0.183"):
        assert {protocol for protocol, text in whole[1].rows if figures in text} == {"paper"}


@pytest.mark.parametrize("protocol", ["strict", "paper"])
def test_one_protocol_and_a_given_tuned_model(tmp_path: Path, protocol: Any) -> None:
    text, page = report(tmp_path, **{**QUICK, "protocols": (protocol,), "neurons": True, "n": 4})
    other = {"strict": "paper", "paper": "strict"}[protocol]
    assert {row_protocol for row_protocol, _ in page.rows if row_protocol} == {protocol}
    assert "someone/tuned (given, not trained here)" in text
    assert f"Toxicity against its price · {other}" not in text


def without_stages(folder: Path) -> None:
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    (folder / "run.json").write_text(
        json.dumps({"config": {"model": run["config"]["model"]}}), encoding="utf-8"
    )


def without_controls(folder: Path) -> None:
    change_rows(folder, lambda row: row["control_of"] is None)


def only_controls_and_dpo(folder: Path) -> None:
    change_rows(folder, lambda row: row["control_of"] or row["intervention"] == "dpo")


def without_values(folder: Path) -> None:
    empty = {"toxicity": None, "log_ppl": None, "toxicity_by": {}, "change": {}, "samples": []}
    change_rows(folder, lambda row: row.update(empty))


@pytest.mark.parametrize(
    ("remove", "section"),
    [
        (without_stages, "nothing"),
        (without_controls, "controls-strict"),
        (only_controls_and_dpo, "nothing"),
        (without_values, "samples"),
    ],
)
def test_what_is_missing_is_left_out(tmp_path: Path, remove: Any, section: str) -> None:
    write_run(tmp_path, **QUICK)
    remove(tmp_path)
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert section not in {attributes.get("id") for _, attributes in page.elements}
    assert "layers" not in page.sections
    assert "tables" in page.sections


def test_a_value_that_was_not_measured_is_no_zero(tmp_path: Path) -> None:
    write_run(tmp_path, **QUICK)
    change_rows(tmp_path, lambda row: row.update(f1=None) if row["intervention"] == "dpo" else None)
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    line = next(
        text for protocol, text in page.rows if protocol == "strict" and text.split()[:1] == ["DPO"]
    )
    assert " · " in line
    assert "0.000 [0" not in line


@pytest.mark.parametrize("n", [24, 128])
def test_a_further_strength_says_its_prompts_and_takes_no_part_in_verdicts(
    tmp_path: Path, n: int
) -> None:
    path = write_run(tmp_path, neurons=False) / "results.json"
    results = json.loads(path.read_text())
    [main] = [
        row
        for row in results["rows"]
        if (row["protocol"], row["intervention"]) == ("paper", "edit_probe_set")
    ]
    name = "edit_probe_set_a0.8_b0.05"
    further = {**main, "intervention": name, "alpha": 0.8, "strength": "a0.8_b0.05"}
    further["toxicity"] = {**main["toxicity"], "n": n}
    path.write_text(json.dumps({**results, "rows": [*results["rows"], further]}))
    run = load(tmp_path)
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    label = "probe edit, set, α = 0.8, β = 0.05"
    lines = [text for _, text in page.rows if label in text and "[" in text]
    assert lines
    assert any("n = 24" in line for line in lines) == (n == 24)
    # In the paper's order it follows the row of that name without a strength.
    assert run.names().index(name) == run.names().index("edit_probe_set") + 1
    edits = {row.intervention for row in Evidence(run, "paper").edits()}
    assert edits == {edit for edit in MAIN if edit.startswith("edit")}

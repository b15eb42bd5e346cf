"""The ways out of a chart.

save(chart, Path("figures/tradeoff-strict"))   # .svg, .png and .pdf on white
inline(chart, "tradeoff-strict", "…")        # SVG in the page, whose CSS has the colours
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import vl_convert
from markupsafe import Markup

from ..files import write_atomic
from .chart_style import COLOURS, Chart

PIXELS = 2.5  # of a PNG for each of the chart's
# The field that holds what stands under the pointer.
POINTED = "pointed"
# Between the facts under a pointer; a chart's own text never holds it.
BETWEEN = "\u241e"
# What places an element: a tenth of a pixel is enough.
PLACES = {"d", "transform", "x", "y", "x1", "y1", "x2", "y2", "width", "height"}
DECIMALS = re.compile(r"-?\d+\.\d{2,}")
WHITE = '<rect width="100%" height="100%" fill="white"/>'
NUMBERED = re.compile(r"\b(?:clip|gradient_)\d+\b")
# What the page's CSS says of all figures, or what is so anyway.
USUAL = {
    "font-family": "sans-serif", "opacity": "1", "stroke-width": "1", "text-anchor": "start",
    "stroke-miterlimit": "10", "pointer-events": "none", "font-weight": "normal",
}  # fmt: skip


def save(chart: Chart, path: Path) -> list[Path]:
    """Write a figure as SVG, PNG and PDF on white, and return their paths; `path` has no suffix."""
    start, end, rest = _svg(chart).partition(">")
    svg = f"{start}{end}{WHITE}{rest}".replace(BETWEEN, ", ")
    png, pdf = vl_convert.svg_to_png(svg, scale=PIXELS), vl_convert.svg_to_pdf(svg)
    targets = [path.with_name(f"{path.name}.{suffix}") for suffix in ("svg", "png", "pdf")]
    for target, form in zip(targets, (svg.encode(), png, pdf), strict=True):
        write_atomic(target, partial(_fill, form))
    return targets


def _fill(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def inline(chart: Chart, name: str, label: str, links: Mapping[str, str] | None = None) -> Markup:
    """A chart as SVG for the page: no address, colours as CSS variables, so that it suits light,
    dark and print, and what an Altair tooltip says in the attribute `data-tip` of each mark.

    Args:
        chart: to draw.
        name: unique on the page, for the ids in it.
        label: what it is to whoever cannot see it.
        links: where a mark leads to, by the value of its tooltip's field `name`.
    """
    root = ElementTree.fromstring(_svg(chart))
    _tidy(root, name, links or {})
    # What leads somewhere must be reached; everything else is one picture.
    root.set("role", "group" if links else "img")
    root.set("aria-label", label)
    text = ElementTree.tostring(root, encoding="unicode")
    for colour, value in COLOURS.items():
        text = text.replace(f'"{value}"', f'"var(--fig-{colour})"')
    return Markup(text)


def _svg(chart: Chart) -> str:
    """A chart without a background, in which each mark tells what its tooltip says."""
    spec = {**chart.to_dict(validate=False), "background": None}
    for unit in _units(spec):
        _tell(unit)
    return _converted(json.dumps(spec))


@lru_cache(maxsize=64)
def _converted(spec: str) -> str:
    """Most charts of a page that is drawn while a study goes on are those of the page before, and
    those of the last page are files too.
    """
    svg = vl_convert.vegalite_to_svg(spec)
    # Its ids are counted over everything that this process drew: two runs would differ in them.
    ids = dict.fromkeys(NUMBERED.findall(svg))
    places = {name: f"{name.rstrip('0123456789')}{place}" for place, name in enumerate(ids)}
    return NUMBERED.sub(lambda match: places[match[0]], svg)


def _units(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The marks of a chart, with their encodings."""
    for key in ("layer", "hconcat", "vconcat"):
        for part in spec.get(key, ()):
            yield from _units(part)
    if "mark" in spec:
        yield spec


def _tell(unit: dict[str, Any]) -> None:
    """Let a mark's description be what its tooltip says: SVG has the one and not the other."""
    tips = unit["encoding"].pop("tooltip", None)
    if tips is None or (unit["mark"]["type"] == "line" and "point" not in unit["mark"]):
        unit["mark"]["aria"] = False
        return
    facts = []
    for tip in tips if isinstance(tips, list) else [tips]:
        value = f"datum[{json.dumps(tip['field'])}]"
        form = tip.get("format", ".4~g" if tip["type"] == "quantitative" else "")
        number = f"format({value}, {json.dumps(form)})" if form else value
        title = json.dumps(f"{tip.get('title', tip['field'])}: ")
        facts.append(f"(isValid({value}) && {value} !== '' ? {title} + {number} : '')")
    description = f" + {json.dumps(BETWEEN)} + ".join(facts)
    unit["transform"] = [*unit.get("transform", ()), {"calculate": description, "as": POINTED}]
    unit["encoding"]["description"] = {"field": POINTED, "type": "nominal"}


def _tidy(
    element: ElementTree.Element, name: str, links: Mapping[str, str], marks: str = ""
) -> None:
    """Keep what is seen of an element and those in it, and what is said under the pointer."""
    element.tag = element.tag.rpartition("}")[2]
    kind, description = (element.attrib.pop(key, "") for key in ("class", "aria-label"))
    if element.tag == "g" and "role-" in kind:
        marks = kind
    kept = (_attribute(name, key, value) for key, value in element.attrib.items())
    element.attrib = dict(filter(None, kept))
    children: list[ElementTree.Element] = []
    for child in element:
        unseen = child.get("class") == "background" and not {"fill", "stroke"} & child.attrib.keys()
        if not unseen:
            _tidy(child, name, links, marks)
            alone = child.tag == "g" and not child.attrib
            children += [*child] if alone else [child]
    element[:] = children
    if description and element.tag != "g" and "role-mark" in marks and "mark-line" not in marks:
        _link(element, [fact for fact in description.split(BETWEEN) if fact], links)


def _attribute(name: str, key: str, value: str) -> tuple[str, str] | None:
    """An attribute as it stands on the page; None where it says nothing there."""
    if USUAL.get(key) == value or key.startswith(("role", "aria", "{", "version")):
        return None
    if key == "id":
        return key, f"{name}-{value}"
    value = value.replace("url(#", f"url(#{name}-")
    return key, DECIMALS.sub(_rounded, value) if key in PLACES else value


def _rounded(number: re.Match[str]) -> str:
    return f"{round(float(number[0]), 1) + 0.0:g}"


def _link(element: ElementTree.Element, facts: list[str], links: Mapping[str, str]) -> None:
    """Keep what a mark tells, and lead from it where it names something that has a place."""
    element.set("data-tip", "\n".join(facts))
    named = next((fact for fact in facts if fact.startswith("name: ")), "")
    target = links.get(named.removeprefix("name: "))
    if target:
        mark = ElementTree.Element(element.tag, element.attrib)
        element.tag, element.attrib = "a", {"href": f"#{target}", "aria-label": ", ".join(facts)}
        element[:] = [mark]

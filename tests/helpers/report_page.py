"""The report's page, taken apart."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "input", "br", "link", "img"}


class Page(HTMLParser):
    """Elements with their attributes, table rows as text, and sections as text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[tuple[str | None, str]] = []
        self.sections: dict[str, str] = {}
        self._open: list[tuple[str, str | None]] = []
        self._row: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.elements.append((tag, attributes))
        if tag == "tr":
            self.rows.append((attributes.get("data-protocol"), ""))
            self._row = tag
        if tag not in VOID:
            self._open.append((tag, attributes.get("id") if tag == "section" else None))

    def handle_endtag(self, tag: str) -> None:
        if tag == "tr":
            self._row = None
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._row:
            protocol, text = self.rows[-1]
            self.rows[-1] = protocol, f"{text} {data.strip()}"
        for name in (name for _, name in self._open if name):
            self.sections[name] = f"{self.sections.get(name, '')} {data.strip()}"

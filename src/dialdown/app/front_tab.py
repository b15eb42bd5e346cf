"""Front: what every intervention costs and does; a click loads it into Play."""

from __future__ import annotations

from typing import Any

import gradio as gr

from .chart import QUIET, chart_and_list, drawn, filled
from .points import MEASURED_ON, chart, listed, named, sets
from .shelf import Shelf
from .words import says

NOTHING = (
    "No rows are measured here yet: `dialdown run` measures every intervention, and this tab shows "
    "them when the page is loaded again."
)
HOW = "Down and to the left is better. Click on a mark or a row of the list to load it into Play."
# By family, the edit that a study keeps under a name of its own.
KEPT_AS = {"gains": "gains", "detox": "edit"}


class FrontTab:
    """The tab's components, and what happens when they are used."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self.which = gr.Radio([], label="Measured under", elem_id="which")
        self.note = gr.HTML(elem_id="front-note")
        self.chart, self.listed = chart_and_list("front")
        shown = [self.chart, self.listed, self.note]
        self.which.change(self.show, self.which, shown, **QUIET)

    def show(self, which: str | None) -> tuple[str, Any, str]:
        """The chart and the list of a set of rows."""
        run = self.shelf.run
        if run is None or which not in sets(run):
            return "", filled(None), says(self.shelf.problem or NOTHING)
        return drawn(chart(run, which), MEASURED_ON[which]), filled(listed(run, which)), says(HOW)

    def load(self, which: str, name: str) -> tuple[str | None, str]:
        """The saved edit behind a row that was clicked and nothing, or none and a sentence why."""
        run = self.shelf.run
        row = named(run, which, name) if run else None
        if row is None:
            return None, ""
        saved = f"{row.protocol}-{row.intervention}"
        if saved in self.shelf.edits:
            return saved, ""
        if (kept := KEPT_AS.get(row.family)) in self.shelf.edits:
            return kept, ""
        if row.family in ("none", "dpo"):
            return None, f"{name} is a model of its own and stands beside the others in Play."
        return None, f"{name} was measured, and its edit is not kept in this folder."

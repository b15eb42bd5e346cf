"""Neurons: the table, who writes a word, and one neuron at a time."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Event
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np
import polars as pl

from ..errors import DialdownError
from .chart import QUIET, chart_view, drawn, filled
from .desk import Act, Desk
from .neurons import (
    ANY,
    card,
    check_neuron,
    facts_of,
    groups_of,
    histogram,
    legend,
    most_active,
    select,
    writing,
)  # fmt: skip
from .shelf import Shelf
from .talk import Reply, Side, Talk, columns, ids_of
from .texts import COUNT, ORDINARY, LayerReader, read_text
from .words import coloured, says

if TYPE_CHECKING:
    from ..interventions.intervention import Intervention
    from .loading import Models

ALL = "all"
TOKENS = 30
NO_TABLE = (
    "There is no neuron table here, which needs a direction: `dialdown run` finds one and adds "
    "cosine, groups, means before and after, and Δ to each neuron. What a neuron writes and does "
    "on texts needs none."
)
LEAD_BACK = "Layer, group and sorting are of the table: choose one of them to see it again."


class NeuronsTab:
    """The tab's components, and what happens when they are used.

    Attributes:
        layer: which layer is listed. The tab of layers sets it.
        filters: holds what a neuron table is listed by, for a folder that has one.
    """

    def __init__(self, desk: Desk, shelf: Shelf, edit: gr.Dropdown) -> None:
        self.desk, self.shelf, self.edit = desk, shelf, edit
        self.readers: dict[tuple[str, ...], LayerReader] = {}
        self.missing = gr.HTML(elem_id="neurons-note")
        with gr.Row():
            with gr.Column(scale=6, min_width=420):
                self._list()
            with gr.Column(scale=5, min_width=380):
                self._card()
        self._listen()

    def _list(self) -> None:
        with gr.Row():
            self.word = gr.Textbox(
                "knife", label="Which neurons write a word?", elem_id="word", scale=3
            )
            self.find = gr.Button("Find", elem_id="find", scale=1, min_width=80)
        with gr.Row() as self.filters:
            self.layer = gr.Dropdown(
                [ALL], value=ALL, label="Layer", elem_id="layer", min_width=110
            )
            self.group = gr.Dropdown([ANY], value=ANY, label="Group", elem_id="group", min_width=90)
            self.sort = gr.Dropdown(["cosine"], value="cosine", label="Sort by", min_width=110)
            self.smallest = gr.Checkbox(label="smallest first", min_width=110)
        self.listed = gr.Dataframe(
            interactive=False, max_height=640, elem_id="neurons", show_label=False
        )

    def _card(self) -> None:
        with gr.Row():
            self.place = (
                gr.Number(0, precision=0, label="Layer", elem_id="card-layer", min_width=90),
                gr.Number(0, precision=0, label="Neuron", elem_id="card-neuron", min_width=90),
            )
            self.show = gr.Button("Show", elem_id="show-neuron", min_width=80)
        self.card = gr.HTML(elem_id="card")
        self.histogram = chart_view("histogram")
        with gr.Accordion("Texts where it is most active", open=True):
            self.texts = gr.HTML(elem_id="texts")
        with gr.Accordion("A text of your own", open=False):
            self.own = gr.Textbox(show_label=False, placeholder="A text to read", lines=2)
            self.read = gr.HTML(elem_id="own-text")
        with gr.Accordion("Silence it or turn it up", open=True):
            self.prompt = gr.Textbox(
                "The man was so angry that he called her", show_label=False, elem_id="dial-prompt"
            )
            self.dial = gr.Slider(
                -4, 10, 0, step=0.25, label="Times its activation: 0 silences, 1 leaves it alone",
                elem_id="dial",
            )  # fmt: skip
            self.continuation = gr.HTML(elem_id="dialled")

    def _listen(self) -> None:
        filters: list[Any] = [self.layer, self.group, self.sort, self.smallest]
        chosen, place = [*filters, self.edit], [*self.place]
        listed, filled = [self.listed, self.missing], [self.card, self.histogram, self.texts]
        changed = [self.edit.change, *(part.input for part in filters)]
        gr.on(changed, self.list_chosen, chosen, listed, **QUIET)
        triggers = [self.find.click, self.word.submit]
        gr.on(triggers, self.list_writers, [self.word, *chosen], listed, **QUIET)
        self.listed.select(self.pick, None, place, **QUIET).then(
            self.fill, [*place, self.edit], filled, **QUIET
        )
        shown = [self.show.click, *(part.submit for part in self.place)]
        gr.on(shown, self.fill, [*place, self.edit], filled, **QUIET)
        self.own.submit(self.read_own, [self.own, *place], self.read, **QUIET)
        gr.on(
            [self.dial.input, self.prompt.submit],
            self.turn,
            [self.prompt, self.dial, *place],
            self.continuation,
            concurrency_limit=None,
            trigger_mode="always_last",
            **QUIET,
        )

    def list_chosen(
        self, layer: str, group: str, sort: str, smallest: bool, edit: str | None
    ) -> tuple[Any, str]:
        """The neurons of the filters."""
        try:
            frame = self.desk.do(lambda models: self.shelf.frame(models, edit))
        except DialdownError as error:
            return filled(None), says(str(error))
        rows = select(frame, None if layer == ALL else int(layer), group, sort, smallest)
        note = ("" if "cosine" in frame.columns else says(NO_TABLE)) + legend(rows)
        return filled(rows if sorts_of(frame) else None), note

    def list_writers(self, word: str, *chosen: Any) -> tuple[Any, str]:
        """The neurons that write a word; without one the table again."""
        if not word.strip():
            return self.list_chosen(*chosen)

        def look(models: Models) -> tuple[str, Any, list[str]]:
            return *writing(models.base, word), sorts_of(self.shelf.frame(models, chosen[-1]))

        try:
            sentence, frame, sorts = self.desk.do(look)
        except DialdownError as error:
            return filled(None), says(str(error))
        return filled(frame), says(f"{sentence} {LEAD_BACK}" if sorts else sentence)

    def pick(self, event: gr.SelectData) -> tuple[int, int]:
        """The layer and neuron of a row that was clicked, however the list is sorted."""
        layer, neuron, *_ = event.row_value
        return int(layer), int(neuron)

    def fill(self, layer: int, neuron: int, edit: str | None) -> tuple[str, str, str]:
        """One neuron's card, histogram and texts."""

        def look(models: Models) -> tuple[str, str, str]:
            check_neuron(models.base, layer, neuron)
            frame = self.shelf.frame(models, edit)
            reader, note = self._reader()
            read = reader.read(models.base, layer, neuron)
            values = np.concatenate([text.values for text in read]).astype(np.float32)
            known = facts_of(frame, layer, neuron)
            marks = {name: mean for name, mean in known.items() if name in ("before", "after")}
            chart = drawn(histogram(values, marks), "How often the neuron has which activation")
            texts = says(note) + most_active(read)
            return card(models.base, frame, layer, neuron), chart, texts

        try:
            return self.desk.do(look)
        except DialdownError as error:
            return says(str(error)), "", ""

    def _reader(self) -> tuple[LayerReader, str]:
        """What reads the study's prompts, or ordinary sentences and why not the prompts."""
        note = ""
        try:
            texts = tuple(self.shelf.texts(COUNT))
        except DialdownError as error:
            texts, note = (), f"The study's prompts are not there, so others are read: {error}"
        texts = texts or ORDINARY
        if texts not in self.readers:
            self.readers = {texts: LayerReader(texts)}
        return self.readers[texts], note

    def read_own(self, text: str, layer: int, neuron: int) -> str:
        """A text of one's own, coloured by the neuron's activation."""

        def look(models: Models) -> str:
            check_neuron(models.base, layer, neuron)
            read = read_text(models.base, text, layer, neuron)
            return coloured(read.tokens, read.values, read.peak)

        try:
            return self.desk.do(look)
        except DialdownError as error:
            return says(str(error))

    def turn(self, prompt: str, factor: float, layer: int, neuron: int) -> Iterator[str]:
        """What the base writes with one neuron dialled, beside what it writes without."""
        talk = Talk().with_message(prompt, chat=False)
        sides: dict[Side, str] = {
            "base": "",
            "edited": f"layer {layer}, neuron {neuron} × {factor:g}",
        }
        stop = Event()
        try:
            edit = self.desk.do(lambda models: _dialled(models, layer, neuron, factor))
            ids, note = self.desk.do(lambda models: ids_of(models.base, talk, "base", TOKENS))
            from ..models.replies import ReplySettings

            settings = ReplySettings(TOKENS)
            for side in sides:
                act = Act(edit) if side == "edited" else None
                text = ""
                for text in self.desk.stream(
                    lambda models: models.base, ids, settings, act, stop=stop
                ):
                    yield columns(talk.with_reply(side, Reply(text)), sides) + says(note)
                talk = talk.with_reply(
                    side, Reply(text, self.desk.score(text, ended=True), done=True)
                )
                yield columns(talk, sides) + says(note)
        except DialdownError as error:
            yield says(str(error))


def _dialled(models: Models, layer: int, neuron: int, factor: float) -> Intervention:
    from ..interventions.explain import as_scale

    check_neuron(models.base, layer, neuron)
    gain = np.ones(models.base.view.shape)
    gain[layer, neuron] = factor
    return as_scale("one neuron", gain, {})


def sorts_of(frame: pl.DataFrame) -> list[str]:
    """What a table can be sorted by; nothing where it has but the places of neurons."""
    return [name for name in frame.columns if name not in ("layer", "neuron", "group")]


def options(frame: pl.DataFrame) -> tuple[Any, Any, Any, Any]:
    """What the filters of layer, group and order offer for a table, and whether they are there."""
    layers = [ALL, *map(str, sorted(set(frame["layer"].to_list())))]
    sorts = sorts_of(frame)
    return (
        gr.update(choices=layers, value=ALL),
        gr.update(choices=groups_of(frame), value=ANY),
        gr.update(choices=sorts, value=sorts[0] if sorts else None),
        gr.update(visible=bool(sorts)),
    )

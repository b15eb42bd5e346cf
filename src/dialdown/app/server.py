"""The page of the app: its tabs, what one does in another, and serving it on this machine alone."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Any

import gradio as gr

from ..errors import DialdownError
from ..models.templates import has_chat_template
from .chart import QUIET
from .desk import Desk
from .front_tab import FrontTab
from .layers_tab import LayersTab
from .neurons_tab import NeuronsTab, options
from .play_tab import CHAT, PROMPT, PlayTab
from .points import MEASURED_ON, sets
from .shelf import Shelf
from .source import Source
from .words import safe, says

if TYPE_CHECKING:
    from .loading import Models

PLAY, NEURONS, FRONT, LAYERS = "play", "neurons", "front", "layers"
ALONE = (
    "This is a model alone: `dialdown run` would add a tuned model, edits to dial, the neuron "
    "table and the trade-off."
)
# Without them Gradio would ask another site for its fonts.
FONTS: dict[str, Any] = {
    "font": ["system-ui", "sans-serif"],
    "font_mono": ["ui-monospace", "monospace"],
}


class Page:
    """The whole page over one desk and one shelf."""

    def __init__(self, desk: Desk, shelf: Shelf) -> None:
        self.desk, self.shelf = desk, shelf
        with gr.Blocks(title="dialdown", analytics_enabled=False, fill_width=True) as self.blocks:
            self.head = gr.HTML(_head(shelf.source, "loading the model …"), elem_id="head")
            with gr.Tabs(selected=PLAY) as self.tabs:
                with gr.Tab("Play", id=PLAY):
                    self.play = PlayTab(desk, shelf)
                with gr.Tab("Neurons", id=NEURONS):
                    self.neurons = NeuronsTab(desk, shelf, self.play.edit)
                with gr.Tab("Front", id=FRONT):
                    self.front = FrontTab(shelf)
                with gr.Tab("Layers", id=LAYERS):
                    self.layers = LayersTab(shelf)
            self._listen()

    def _listen(self) -> None:
        front, layers, play, neurons = self.front, self.layers, self.play, self.neurons
        filters = [neurons.layer, neurons.group, neurons.sort]
        listed: Any = (
            neurons.list_chosen,
            [*filters, neurons.smallest, play.edit],
            [neurons.listed, neurons.missing],
        )
        self.blocks.load(
            self.look_again,
            None,
            [play.edit, play.dialling, front.which, front.chart, front.listed, front.note],
            **QUIET,
        ).then(layers.show, None, [layers.chart, layers.listed, layers.note], **QUIET).then(
            self.arrive,
            play.edit,
            [self.head, play.mode, play.again, *filters, neurons.filters],
            **QUIET,
        ).then(*listed, **QUIET)
        self.blocks.unload(play.forget)
        loading = [play.edit, play.strength, self.tabs, front.note]
        for chosen in (
            front.chart.select(self.of_mark, front.which, loading, **QUIET),
            front.listed.select(self.of_row, front.which, loading, **QUIET),
        ):
            chosen.success(
                play.ask, [play.prompt, play.mode, *play.dialled], play.outputs,
                concurrency_limit=None, **QUIET,
            )  # fmt: skip
        for event in (layers.chart.select, layers.listed.select):
            event(self.of_layer, None, [neurons.layer, self.tabs], **QUIET).then(*listed, **QUIET)

    def close(self) -> None:
        """Serve no more."""
        self.blocks.close(verbose=False)
        self.desk.close()

    def look_again(self) -> tuple[Any, ...]:
        """What the folder holds now."""
        self.shelf.reload()
        choices = self.shelf.choices
        which = sets(self.shelf.run)
        first = which[0] if which else None
        return (
            gr.update(choices=choices, value=self.shelf.first),
            gr.update(visible=bool(choices)),
            gr.update(
                choices=[(MEASURED_ON[name], name) for name in which],
                value=first,
                visible=len(which) > 1,
            ),
            *self.front.show(first),
        )

    def arrive(self, edit: str | None) -> tuple[Any, ...]:
        """What is known once the models are loaded."""
        try:
            head, mode, chats = self.desk.do(
                lambda models: (
                    self._describe(models),
                    CHAT if models.base.template == "chat" else PROMPT,
                    has_chat_template(models.base.tokenizer),
                )
            )
            frame = self.desk.do(lambda models: self.shelf.frame(models, edit))
        except DialdownError as error:
            head = _head(self.shelf.source, "") + says(str(error))
            return (head, *(gr.skip() for _ in range(6)))
        mode_shown = gr.update(value=mode, visible=chats)
        return head, mode_shown, gr.update(visible=chats), *options(frame)

    def _describe(self, models: Models) -> str:
        facts = models.base.describe()
        what = (
            f"{facts['model']} · {facts['layers']} layers of {facts['neurons']:,} neurons · "
            f"{facts['dtype']} on {facts['device']}"
        )
        sentences = ["" if self.shelf.edits else ALONE, self.shelf.problem, *models.missing]
        return _head(self.shelf.source, what) + "".join(map(says, sentences))

    def of_mark(self, event: gr.EventData, which: str) -> tuple[Any, ...]:
        """A mark of the trade-off was clicked."""
        return self._load(which, str(event.datum.get("name", "")))

    def of_row(self, event: gr.SelectData, which: str) -> tuple[Any, ...]:
        """A row of the list was clicked."""
        return self._load(which, str(event.row_value[0]))

    def _load(self, which: str, name: str) -> tuple[Any, ...]:
        edit, sentence = self.front.load(which, name)
        if edit is None:
            return gr.skip(), gr.skip(), gr.skip(), says(sentence) if sentence else gr.skip()
        return edit, 1, gr.Tabs(selected=PLAY), gr.skip()

    def of_layer(self, event: gr.EventData) -> tuple[Any, Any]:
        """A layer was clicked, in the chart or in the list."""
        data = event._data
        layer = data["datum"].get("layer") if "datum" in data else data["row_value"][0]
        if layer is None:
            return gr.skip(), gr.skip()
        return str(layer), gr.Tabs(selected=NEURONS)


def _head(source: Source, what: str) -> str:
    return (
        f'<header class="dd-head"><h1>dialdown</h1> <span>{safe(source.given)}</span>'
        f"<small>{safe(what)}</small></header>"
    )


def open_page(source: Source, **options: Any) -> tuple[Page, str]:
    """Serve the app on this machine alone, from a thread of its own: the page, to be closed, and
    its address. The options are those of Gradio's `launch`.
    """
    page = Page(Desk(source), Shelf(source))
    style = (resources.files(__package__) / "style.css").read_text(encoding="utf-8")
    page.blocks.queue(default_concurrency_limit=8)
    _, address, _ = page.blocks.launch(
        server_name="127.0.0.1",
        share=False,
        quiet=True,
        ssr_mode=False,
        footer_links=[],
        css=style,
        # Gradio's own button is too pale for its white text.
        theme=gr.themes.Default(primary_hue="blue", **FONTS).set(
            button_primary_background_fill="*primary_600",
            button_primary_background_fill_hover="*primary_700",
        ),
        prevent_thread_lock=True,
        **options,
    )
    page.desk.begin()
    return page, str(address)

"""Play: one prompt or conversation, every model side by side, one dial."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from threading import Event
from typing import TYPE_CHECKING, Any

import gradio as gr

from ..errors import DialdownError
from .chart import QUIET
from .desk import Act, Desk
from .shelf import Shelf
from .talk import Reply, Side, Talk, columns, ids_of
from .words import says

if TYPE_CHECKING:
    from ..models.replies import ReplySettings
    from .loading import Models

PROMPT, CHAT = "Prompt", "Chat"
EXAMPLE = "The man was so angry that he called her"
# Seconds between two looks at a reply on its way: what is sent and judged takes its maker's time.
PACE = 0.3
SIDES: tuple[Side, ...] = ("base", "tuned", "edited")
Shown = tuple[str, str, Talk]


class PlayTab:
    """The tab's components, and what happens when they are used.

    Attributes:
        edit: which edit; `strength`: how much of it. Other tabs set them.
        dialling: holds both, for a folder that has edits.
    """

    def __init__(self, desk: Desk, shelf: Shelf) -> None:
        self.desk, self.shelf = desk, shelf
        self.replying: dict[str, Event] = {}
        self.talk = gr.State(Talk())
        with gr.Row(equal_height=True):
            self.prompt = gr.Textbox(
                EXAMPLE,
                label="Prompt",
                lines=2,
                max_lines=8,
                scale=5,
                min_width=300,
                elem_id="prompt",
            )
            with gr.Column(scale=1, min_width=150):
                self.mode = gr.Radio(
                    [PROMPT, CHAT], value=PROMPT, show_label=False, visible=False, elem_id="mode"
                )
                self.send = gr.Button("Generate", variant="primary", elem_id="send")
        with gr.Row(visible=bool(shelf.edits)) as self.dialling:
            # There before the page has looked at the folder: who asks at once gets all sides.
            self.edit = gr.Dropdown(
                shelf.choices,
                value=shelf.first,
                label="Edit",
                scale=2,
                min_width=260,
                elem_id="edit",
            )
            self.strength = gr.Slider(
                -1, 3, 1, step=0.05, scale=3, min_width=260, elem_id="strength",
                label="Strength: 0 is the base, 1 the edit as saved",
            )  # fmt: skip
        self.shown = gr.HTML(elem_id="columns")
        self.note = gr.HTML(elem_id="play-note")
        with gr.Accordion("Length and sampling", open=False), gr.Row():
            self.tokens = gr.Slider(1, 256, 30, step=1, label="Longest reply, tokens")
            self.temperature = gr.Slider(0, 2, 0, step=0.1, label="Temperature, 0 is greedy")
            self.seed = gr.Number(0, precision=0, minimum=0, label="Seed of sampled replies")
        self.again = gr.Button("Start again", size="sm", visible=False, elem_id="again")
        self._listen()

    @property
    def dialled(self) -> list[Any]:
        """The components that say which reply of the edited side is asked for."""
        return [self.edit, self.strength, self.tokens, self.temperature, self.seed, self.talk]

    @property
    def outputs(self) -> list[Any]:
        """The components that a reply fills."""
        return [self.shown, self.note, self.talk]

    def _listen(self) -> None:
        gr.on(
            [self.send.click, self.prompt.submit],
            self.ask,
            [self.prompt, self.mode, *self.dialled],
            self.outputs,
            concurrency_limit=None,
            **QUIET,
        )
        gr.on(
            [self.strength.input, self.edit.input],
            self.dial,
            self.dialled,
            self.outputs,
            concurrency_limit=None,
            trigger_mode="multiple",
            **QUIET,
        )
        gr.on([self.again.click, self.mode.input], self.restart, None, self.outputs, **QUIET)

    def ask(
        self,
        prompt: str,
        mode: str,
        edit: str | None,
        strength: float,
        tokens: int,
        temperature: float,
        seed: int,
        talk: Talk,
        request: gr.Request,
    ) -> Iterator[Shown]:
        """Every side's reply to a prompt, one after the other, as they come."""
        talk = talk.with_message(prompt, chat=mode == CHAT)
        yield from self._replies(
            talk, SIDES, edit, strength, (tokens, temperature, seed), _session(request)
        )

    def dial(
        self,
        edit: str | None,
        strength: float,
        tokens: int,
        temperature: float,
        seed: int,
        talk: Talk,
        request: gr.Request,
    ) -> Iterator[Shown]:
        """The edited side's reply again, with another edit or strength, and what of the others was
        not finished.
        """
        finished = {side for side, reply in talk.replies.items() if reply.done} - {"edited"}
        if talk.message:
            sides = [side for side in SIDES if side not in finished]
            yield from self._replies(
                talk, sides, edit, strength, (tokens, temperature, seed), _session(request)
            )

    def restart(self, request: gr.Request) -> Shown:
        """Forget what was said."""
        self._begin(_session(request)).set()
        return "", "", Talk()

    def forget(self, request: gr.Request) -> None:
        """A browser left: end its reply."""
        if (stop := self.replying.pop(_session(request), None)) is not None:
            stop.set()

    def _begin(self, session: str) -> Event:
        """End what this browser is still being told, and begin something new."""
        stop = Event()
        if (before := self.replying.get(session)) is not None:
            before.set()
        self.replying[session] = stop
        return stop

    def _replies(
        self,
        talk: Talk,
        sides: Sequence[Side],
        edit: str | None,
        strength: float,
        sampling: tuple[int, float, int],
        session: str,
    ) -> Iterator[Shown]:
        stop, note = self._begin(session), ""
        notes: dict[Side, str] = {}
        try:
            notes = self.desk.do(lambda models: self._sides(models, edit, strength))
            from ..models.replies import ReplySettings

            settings = ReplySettings(*sampling)
            act = self.shelf.act(edit, strength) if edit else None
            for side in sides:
                if side not in notes:
                    continue
                for reply, note in self._reply(talk, side, act, settings, stop):
                    talk = talk.with_reply(side, reply)
                    if stop.is_set() and not reply.done:
                        return
                    yield columns(talk, notes, concept=self.shelf.concept), says(note), talk
        except DialdownError as error:
            yield columns(talk, notes, concept=self.shelf.concept), says(str(error)), talk

    def _sides(self, models: Models, edit: str | None, strength: float) -> dict[Side, str]:
        sides: dict[Side, str] = {"base": models.base.name}
        if models.tuned is not None:
            sides["tuned"] = self.shelf.tuned
        if edit is not None:
            sides["edited"] = f"{self.shelf.label(edit)}, strength {strength:g}"
        return sides

    def _reply(
        self, talk: Talk, side: Side, act: Act | None, settings: ReplySettings, stop: Event
    ) -> Iterator[tuple[Reply, str]]:
        ids, note = self.desk.do(lambda models: ids_of(models.base, talk, side, settings.tokens))
        reply, shown = Reply(), 0.0
        yield reply, note
        stream = self.desk.stream(
            (lambda models: models.tuned or models.base)
            if side == "tuned"
            else (lambda models: models.base),
            ids,
            settings,
            act if side == "edited" else None,
            turn=len(talk.turns.get(side, [])),
            stop=stop,
        )
        for text in stream:
            reply = replace(reply, text=text)
            if time.monotonic() - shown > PACE:
                reply, shown = replace(reply, score=self.desk.score(text)), time.monotonic()
                yield reply, note
        yield replace(reply, score=self.desk.score(reply.text, ended=True), done=True), note


def _session(request: gr.Request) -> str:
    return request.session_hash or ""

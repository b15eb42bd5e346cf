"""`dialdown app`: a study, an edited model or any model in the browser."""

from __future__ import annotations

import os
from threading import Event
from typing import Annotated

import typer

from ..extras import asking_for
from .edits import Base
from .shared import app, out


@app.command("app")
def serve(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN | FOLDER | MODEL]",
            help=(
                "The folder of a study, an exported folder, or a model's folder or hub id; by "
                "default the latest run in runs/, or embedded:smollm2-135m."
            ),
        ),
    ] = None,
    base: Base = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65535, help="The port on this machine; by default the first free one."
        ),
    ] = None,
) -> None:
    """Play with a study or a model in the browser: replies side by side under a dial, neurons, the
    trade-off, the layers. Nothing leaves this machine.
    """
    from ..app.source import find_source

    opened = find_source(source, base)
    # Read when Gradio is imported; it would otherwise report that it was.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    with asking_for("The app"):
        from ..app.server import open_page

    page, address = open_page(opened, server_port=port)
    try:
        out.print(f"{opened.given} is open at {address} (Ctrl-C ends it).", soft_wrap=True)
        # Libraries have Ctrl-C take up again what it interrupts, so a wait without an end has none.
        while not Event().wait(1):
            pass
    except KeyboardInterrupt:
        page.close()
        out.print("Closed.")

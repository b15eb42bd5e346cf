"""The command `join`: this machine takes part in trainings that another one starts."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from .shared import Display, app, out


@app.command()
def join(
    address: Annotated[
        str, typer.Argument(help="HOST:PORT, as the training command prints it.", metavar="ADDRESS")
    ],
    nodes: Annotated[
        int, typer.Option(min=2, help="How many machines train together, as in dpo.nodes.")
    ] = 2,
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="Ranks on this machine; one per GPU by default, or one."),
    ] = None,
) -> None:
    """Take part in trainings that span several machines, until Ctrl-C. The folders of the model and
    of the study must be at the same paths here.
    """
    import torch

    from ..training.launch import join as take_part_in
    from ..training.ranks import check_gpus, take_part

    gpus = torch.cuda.device_count()
    if gpus and processes:
        check_gpus(processes, gpus)
    rank = partial(take_part, gpus == 0)
    while True:
        out.print(
            f"waiting for a training at {address} (Ctrl-C ends)", highlight=False, soft_wrap=True
        )
        with Display():
            take_part_in(rank, address, nodes=nodes, processes=processes or gpus or 1)

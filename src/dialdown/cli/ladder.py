"""The command `ladder`: methods compared at one price."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..data.local_paths import RUNS
from .shared import (
    ConfigFile,
    Display,
    Model,
    Preset,
    Seed,
    Set,
    app,
    interruptible,
    out,
    settings_of,
)


@app.command()
def ladder(
    model: Model,
    out_folder: Annotated[
        Path | None,
        typer.Option(
            "--out", help="The folder of the work (runs/ladder by default); rerun it to resume."
        ),
    ] = None,
    kl: Annotated[
        float | None,
        typer.Option(help="The KL to the base that each is dialled to, in nats per token; 0.06."),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help=(
                "Separated by commas: aura, aura_published, linear_act_published, "
                "lineas_published, caa, ablation, labels, profs, step, gains, rank_one, "
                "rank_one_attention (these by default), linear_act, lineas, mean_act, "
                "mean_act_published, damp, damp_published, det0, det0_published, edit_set, "
                "edit_scale, labels_rank_one, dpo, dpo_kl, or package.module:name."
            )
        ),
    ] = None,
    prompts: Annotated[
        int | None, typer.Option(help="How many unseen prompts are judged; 256.")
    ] = None,
    preset: Preset = "detox",
    config: ConfigFile = None,
    seed: Seed = None,
    set_: Set = [],  # noqa: B006  (typer reads the default and never changes it)
) -> None:
    """Compare methods at one price: AurA, AcT, steering, gains and others, fitted on the same data,
    dialled to one KL and judged on prompts that none of them has seen.
    """
    named = {
        "model": model,
        "seed": seed,
        "ladder.kl": kl,
        "ladder.methods": methods,
        "ladder.prompts": prompts,
    }
    settings = settings_of(preset, config, named, set_)
    from ..report.figures import draw_ladder
    from ..study.ladder import run_ladder
    from ..workers import quiet_libraries
    from .summary import show_ladder, show_notes

    quiet_libraries()
    folder = out_folder or Path(RUNS) / "ladder"
    display = Display()
    with display, interruptible(folder):
        run_ladder(settings, folder, announce=display.announce, enter=display.enter)
    drawn = draw_ladder(folder)
    show_ladder(folder, out)
    show_notes(folder, out)
    out.print(
        f"With every number: {folder / 'ladder.csv'}, .json and .md; drawn: {drawn[0]}.",
        soft_wrap=True,
    )

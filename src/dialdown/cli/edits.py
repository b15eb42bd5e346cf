"""The commands that make an edit and use it: `detox`, `apply`, `chat`, `control-vector`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from ..errors import DialdownError
from .shared import (
    ConfigFile,
    Display,
    Model,
    Preset,
    Seed,
    Set,
    app,
    err,
    interruptible,
    out,
    settings_of,
)

if TYPE_CHECKING:
    from ..exporting.export import Exported
    from ..interventions.intervention import Intervention
    from ..models.lm import LM
    from ..study.config import Config

NOT_LESS = 3
"""Exit status of a `detox` whose export is whole and whose check does not say that it is less."""


OutFolder = Annotated[Path, typer.Option("--out", help="The folder to write, whole or not at all.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is in the folder.")]
Verify = Annotated[
    Literal["transformers", "vllm", "no"],
    typer.Option(
        help=(
            "Reload the folder and compare it with the hooked base model, in transformers, or in "
            "vLLM as well; --no-verify skips this."
        )
    ),
]
# As `dialdown.export` takes it.
VERIFY: Mapping[str, Any] = {"transformers": True, "vllm": "vllm", "no": False}


class Verifying(TyperCommand):
    """`--verify [WORD]` and `--no-verify`; typer's own options need a word or have none."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        words = []
        for word, following in zip(args, [*args[1:], ""], strict=True):
            if word == "--no-verify":
                words.append("--verify=no")
            elif word == "--verify" and following not in VERIFY:
                words.append("--verify=transformers")
            else:
                words.append(word)
        return super().parse_args(ctx, words)


Base = Annotated[str | None, typer.Option(help="Where the base model is, if it has moved.")]
EditFolder = Annotated[
    Path, typer.Argument(help="An exported folder, or one with edit.safetensors and edit.json.")
]
Strength = Annotated[
    float,
    typer.Option(help="How far to dial: 0 is the base model, 1 the edit as the folder holds it."),
]


MaxKL = Annotated[
    float | None,
    typer.Option(
        help=(
            "In place of --strength: a budget of KL to the base, the mean over several kinds of "
            "text, in nats per token; 0.04 (detox.usual_kl) by default."
        )
    ),
]
MaxPplIncrease = Annotated[
    float | None,
    typer.Option(help="In place of both: how far perplexity on these texts may rise; 0.05 is 5 %."),
]
Method = Annotated[
    str | None,
    typer.Option(
        help=(
            "gains (one trained number per neuron), rank_one (a trained rank-one update of each "
            "MLP), rank_one_attention (the same of each attention block), step (gains without "
            "training), labels (gains from labelled texts alone, in a few minutes), or "
            "labels_rank_one (trained updates of attention from them)."
        )
    ),
]


@app.command(cls=Verifying)
def detox(
    model: Model,
    out_folder: OutFolder,
    strength: Annotated[
        float | None, typer.Option(help="How far to dial; 1 is the edit as it was trained.")
    ] = None,
    max_kl: MaxKL = None,
    max_ppl_increase: MaxPplIncrease = None,
    method: Method = None,
    no_training: Annotated[
        bool, typer.Option("--no-training", help="The same as --method step.")
    ] = False,
    preset: Preset = "detox",
    config: ConfigFile = None,
    seed: Seed = None,
    force: Force = False,
    verify: Verify = "transformers",
    set_: Set = [],  # noqa: B006  (typer reads the default and never changes it)
) -> None:
    """Make a model less toxic with one number per neuron, or one direction per layer: find them,
    check them on held-out prompts, and fold them into a plain checkpoint.

    Exit status: 0 if the check finds it less toxic; 3 if the check cannot tell, or finds the
    opposite (the folder is written all the same); 1 if nothing was written; 130 on Ctrl-C.
    """
    if no_training and method not in (None, "step"):
        raise DialdownError(
            f"--method {method} trains and --no-training is --method step: pass one of them."
        )
    named = {
        "model": model,
        "seed": seed,
        "detox.method": "step" if no_training else method,
        "detox.strength": strength,
        "detox.max_kl": max_kl,
        "detox.max_ppl_increase": max_ppl_increase,
    }
    settings = settings_of(preset, config, named, set_)
    work, done = _detox(settings, out_folder.absolute(), force, verify)
    _say_outcome(out_folder, work, done, settings.model)


def _detox(settings: Config, folder: Path, force: bool, verify: Verify) -> tuple[Path, Exported]:
    """Find an edit and export it; the folder of the work, and what was written."""
    from ..exporting.export import check_export, export, exported_before, is_export
    from ..study.detox import begun, check_dials, detox_stages, find_edit, notes
    from ..study.needs import tokens_by_stage
    from ..workers import quiet_libraries

    quiet_libraries()
    check_dials(settings)
    work = folder.with_name(f"{folder.name}-work")
    tokens = tokens_by_stage(settings, detox_stages(settings.detox.method))
    source: dict[str, Any] = {"revision": settings.revision, "verify": VERIFY[verify]}
    with interruptible(work):
        # An export of the same command, killed in its last lines or with its work damaged since,
        # is as good as new once the work is whole.
        again = not force and begun(settings, work) and is_export(folder)
        with Display(tokens) as display:
            if not again:
                check_export(settings.model, folder, force=force, **source)
            edit = find_edit(settings, work, announce=display.announce, enter=display.enter)
        with Display():
            done = exported_before(settings.model, edit, folder, **source) if again else None
            if done is None:
                card_notes = notes(work)
                done = export(settings.model, edit, folder, force=force, notes=card_notes, **source)
    return work, done


def _say_outcome(folder: Path, work: Path, done: Exported, model: str) -> None:
    """What `detox` ends with; the exit status too where the edit is not less toxic."""
    from ..study.detox import outcome
    from .summary import show_check, show_notes

    result = outcome(work)
    out.print(result.sentence, style="bold" if result.less else "bold red", highlight=False)
    show_check(work, out)
    show_notes(work, out)
    _say_left_out(done)
    verified = done.verification or "not verified"
    out.print(
        f"{folder} is an ordinary checkpoint ({verified}); the work is in {work.name} beside it.",
        soft_wrap=True,
    )
    # A folder's name alone does not find it again.
    base = f" --base {shlex.quote(model)}" if Path(model).is_dir() else ""
    out.print(
        f"Next: dialdown chat {folder}{base}, or dialdown app {folder}{base}.", soft_wrap=True
    )
    if not result.less:
        err.print(
            result.sentence,
            "The folder is written; exit status 3 says so.",
            style="red",
            soft_wrap=True,
        )
        raise typer.Exit(NOT_LESS)


@app.command("apply", cls=Verifying)
def apply_edit(
    folder: EditFolder,
    out_folder: OutFolder,
    base: Base = None,
    strength: Strength = 1.0,
    force: Force = False,
    verify: Verify = "transformers",
) -> None:
    """Fold an edit into its base model again, at any strength, and write a checkpoint."""
    from ..exporting.export import apply_delta
    from ..workers import quiet_libraries

    quiet_libraries()
    with Display():
        done = apply_delta(
            folder, out_folder, base=base, strength=strength, force=force, verify=VERIFY[verify]
        )
    _say_left_out(done)
    out.print(f"Wrote {out_folder} ({done.verification or 'not verified'}).", soft_wrap=True)


def _say_left_out(done: Exported) -> None:
    """Name what of the base's folder is not in an export."""
    if done.left_out:
        out.print(f"Not copied from the base's folder: {', '.join(done.left_out)}.", soft_wrap=True)


@app.command()
def chat(
    folder: EditFolder,
    base: Base = None,
    strength: Strength = 1.0,
    tokens: Annotated[int, typer.Option(help="The longest reply, in tokens.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="The seed of the sampling.")] = 0,
) -> None:
    """Talk to the base and the edited model side by side; /strength moves the dial between
    turns.
    """
    from ..workers import quiet_libraries
    from .chat import ChatSettings
    from .chat import chat as talk

    settings = ChatSettings(tokens, temperature, seed, strength=strength)
    quiet_libraries()
    lm, edit = _base_and_edit(folder, base)
    talk(lm, edit, settings=settings, console=out)


@app.command("control-vector")
def control_vector(
    folder: EditFolder,
    out_file: Annotated[Path, typer.Option("--out", help="The GGUF file to write.")],
    base: Base = None,
    strength: Strength = 1.0,
    skip_first_layer: Annotated[
        bool, typer.Option(help="Leave out layer 0, which llama.cpp cannot hold.")
    ] = False,
) -> None:
    """Write a shift or steering edit (a folder of dd.save_delta or dd.export) as a control vector
    for llama.cpp.
    """
    from ..exporting.control_vector import write_control_vector
    from ..workers import quiet_libraries

    quiet_libraries()
    lm, edit = _base_and_edit(folder, base)
    path = write_control_vector(lm, edit.at(strength), out_file, skip_first_layer=skip_first_layer)
    out.print(f"Wrote {path}: llama-server -m BASE.gguf --control-vector {path}", soft_wrap=True)


def _base_and_edit(folder: Path, base: str | None) -> tuple[LM, Intervention]:
    from ..exporting.delta import base_of, load_delta
    from ..models.lm import load

    delta = load_delta(folder)
    source = base_of(delta, base)
    return load(base or delta.base, revision=source.revision, template="auto"), delta.edit

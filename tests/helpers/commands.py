"""The commands, called as from a shell."""

from __future__ import annotations

from typer.testing import CliRunner, Result

from dialdown.cli import main as cli


def invoke(*arguments: object) -> Result:
    """Run `dialdown` with these arguments in this process."""
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def run_until(stage: str, *arguments: object) -> Result:
    """Run a study up to a stage."""
    return invoke("run", *arguments, "--until", stage)

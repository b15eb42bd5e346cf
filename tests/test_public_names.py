"""What a user imports: every promised name is there, and nothing heavy comes before it is used."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

import dialdown as dd

SUBPACKAGES = (
    "data models neurons interventions evaluation training exporting methods study".split()  # noqa: SIM905
)


@pytest.mark.parametrize("name", ["dialdown", *(f"dialdown.{name}" for name in SUBPACKAGES)])
def test_every_public_name_is_there(name: str) -> None:
    package = import_module(name)
    assert package.__doc__
    for public in package.__all__:
        assert getattr(package, public) is not None


def test_a_subpackage_is_there_without_an_import_of_its_own() -> None:
    code = "import dialdown as dd; print(dd.methods.aura.__name__); dd.nothing"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.stdout.strip() == "aura"
    assert "No dialdown attribute nothing" in done.stderr


def test_the_public_names_fit_a_screen() -> None:
    assert len(dd.__all__) <= 40


@pytest.mark.parametrize("code", ["import dialdown", "import dialdown.cli.main"])
def test_nothing_heavy_is_imported_before_it_is_used(code: str) -> None:
    heavy = ("torch", "transformers", "sklearn", "scipy", "polars", "pyarrow", "numpy", "trl")
    asked = f"import sys; {code}; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

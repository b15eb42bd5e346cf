"""The documentation site: Markdown pages, notebooks that are run, and the API from docstrings."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path

import dialdown

HERE = Path(__file__).parent
SUBPACKAGES = (
    *("data", "models", "neurons", "interventions"),
    *("evaluation", "training", "exporting", "methods", "study"),
)

project = "dialdown"
author = "The dialdown developers"
copyright = author
version = release = dialdown.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "dialdown"
templates_path: list[str] = []

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4

nb_execution_mode = "cache"
nb_execution_timeout = 1200
nb_execution_raise_on_error = True
nb_output_stderr = "remove"
# No script from elsewhere: figures are drawn when the page is built.
nb_ipywidgets_js: dict[str, dict[str, str]] = {}
# Bars that have been full for long say nothing on a page.
os.environ["TQDM_DISABLE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# Docstrings mark code as Markdown does.
default_role = "code"
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "none"
napoleon_use_ivar = True
napoleon_use_rtype = False


def _section(package: str, names: list[str]) -> str:
    """The reStructuredText that documents some names of a package."""
    module = import_module(package)
    lines = []
    for name in names:
        value = getattr(module, name)
        kind = "autoclass" if isinstance(value, type) else "autofunction"
        if not callable(value) or getattr(value, "__module__", "").startswith("typing"):
            kind = "autodata"
        lines.append(f".. {kind}:: {package}.{name}\n")
    return "\n".join(lines)


def _write_api() -> None:
    """One page for the public names, and one for each subpackage with the names it adds to them."""
    folder = HERE / "api"
    folder.mkdir(exist_ok=True)
    titles = {"dialdown": "import dialdown as dd"}
    titles |= {f"dialdown.{name}": f"dialdown.{name}" for name in SUBPACKAGES}
    for package, title in titles.items():
        module = import_module(package)
        public = set() if package == "dialdown" else set(dialdown.__all__)
        names = [name for name in module.__all__ if name not in public]
        shared = ", ".join(f"`{name}`" for name in module.__all__ if name in public)
        head = f"{title}\n{'=' * len(title)}\n\n"
        about = (module.__doc__ or "").partition("\n\n")[0].strip() + "\n\n"
        also = f"Also here, from the top level: {shared}.\n\n" if shared else ""
        text = head + about + also + _section(package, names)
        page = folder / f"{package}.rst"
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")


_write_api()

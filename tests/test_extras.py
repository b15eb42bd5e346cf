"""What the core does without any extra, and the sentence where one is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dialdown import DialdownError
from dialdown.extras import EXTRAS, asking_for

# As where nothing but the core is installed; pyarrow and pandas not a dependency at all.
BARE = f"""
import sys
for name in {[*{name for names in EXTRAS.values() for name in names}, "pyarrow", "pandas"]}:
    sys.modules[name] = None
"""
CORE = """
import numpy as np
import dialdown as dd
from dialdown.neurons import Direction
from helpers import tiny

lm = tiny.lm("llama")
means = dd.mean_activations(lm, ["the cat sat", "a dog"])
toxic = Direction("it", np.arange(1.0, tiny.WIDTH + 1), "residual", {})
table = dd.neuron_table(lm, toxic, means)
edit = dd.edit(table, alpha=0.5, beta=0.3, kind="scale")
with edit.applied(lm):
    hooked = tiny.logits(lm, tiny.random_ids(1, 5))
folded = edit.fold(lm)
assert abs(tiny.logits(folded, tiny.random_ids(1, 5)) - hooked).max() < 1e-4
lm.model.save_pretrained("base")
lm.tokenizer.save_pretrained("base")
dd.export("base", edit, "out")
assert dd.load_delta("out").edit.key
print(table, edit, dd.logit_lens(lm, toxic.vector, k=2), sep="\\n")
"""


def bare(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parent
    paths = os.pathsep.join([str(root.parent / "src"), str(root)])
    return subprocess.run(
        [sys.executable, "-c", BARE + code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_core_needs_no_extra(tmp_path: Path) -> None:
    done = bare(CORE, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "NeuronTable(3 layers" in done.stdout
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("code", "package", "extra"),
    [
        ("import dialdown as dd; dd.train_probe", "sklearn", "study"),
        ("from dialdown import evaluate", "polars", "study"),
        ("from dialdown.methods import aura", "scipy", "study"),
        ("from dialdown.cli.main import main; sys.argv[1:] = ['run']; main()", "polars", "study"),
    ],
)
def test_what_an_extra_brings_is_asked_for_by_its_name(
    tmp_path: Path, code: str, package: str, extra: str
) -> None:
    done = bare(code, tmp_path)
    assert done.returncode == 1
    said = " ".join(done.stderr.split())
    assert f'needs {package}, which is not installed: run pip install -e ".[{extra}]"' in said
    if "main()" in code:
        assert "Traceback" not in done.stderr
    assert not [*tmp_path.iterdir()]


def test_what_is_missing_and_of_no_extra_is_a_bug() -> None:
    with pytest.raises(ModuleNotFoundError), asking_for():
        import not_a_module  # noqa: F401
    with (
        pytest.raises(DialdownError, match=r"A thing needs trl, .*, or leave it\."),
        asking_for("A thing", instead="leave it"),
    ):
        raise ModuleNotFoundError("No module named 'trl'", name="trl.trainer")

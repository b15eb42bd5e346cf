"""AurA, Damp, Det0 and AcT where their authors act: at outputs of linear layers and norms."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

import dialdown as dd
from dialdown import methods
from dialdown.interventions import Intervention
from dialdown.interventions.explain import shuffled
from dialdown.models import LM
from dialdown.models.sites import layer_norms, mlp_linears
from helpers import tiny
from helpers.edits import IDS
from helpers.labelled import CLEAN, LABELS, TEXTS, TOXIC

PUBLISHED: dict[str, Callable[..., Intervention]] = {
    "aura": methods.aura,
    "damp": methods.damp,
    "det0": methods.det0,
    "mean_act": methods.mean_act,
    "linear_act": methods.linear_act,
    "lineas": partial(methods.lineas, steps=5),
}
Maps = dict[str, tuple[Any, Any]]


def outputs_of(lm: LM, text: str, paths: list[str], maps: Maps) -> dict[str, np.ndarray]:
    """What each module writes for one text alone, (tokens, channels) float64, with maps acting."""
    twin = lm.twin()
    twin.model.double()
    seen = {}

    def hook(path: str) -> Callable[..., torch.Tensor]:
        def keep(module: Any, args: Any, out: torch.Tensor) -> torch.Tensor:
            seen[path] = out[0].numpy().copy()
            gain, offset = maps.get(path, (1.0, 0.0))
            return out * torch.as_tensor(gain) + torch.as_tensor(offset)

        return keep

    for path in paths:
        twin.model.get_submodule(path).register_forward_hook(hook(path))
    with torch.inference_mode():
        twin.model(torch.tensor(lm.encode([text])))
    return seen


def whole(layers: list[list[str]]) -> list[str]:
    return [path for layer in layers for path in layer]


def test_which_modules_are_meant() -> None:
    def names(find: Callable[[LM], list[list[str]]], name: str) -> list[str]:
        return [path.rpartition(".")[2] for path in find(tiny.lm(name))[1]]

    assert names(mlp_linears, "llama") == ["gate_proj", "up_proj", "down_proj"]
    assert names(mlp_linears, "gpt2") == ["c_fc", "c_proj"]
    assert names(layer_norms, "llama") == ["input_layernorm", "post_attention_layernorm"]
    assert names(layer_norms, "gpt2") == ["ln_1", "ln_2"]
    after = ["post_attention_layernorm", "post_feedforward_layernorm"]
    assert names(layer_norms, "gemma2") == names(layer_norms, "olmo2") == after


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_aura_takes_the_highest_output_over_all_tokens(name: str) -> None:
    lm = tiny.lm(name, bos=True)
    paths = whole(mlp_linears(lm))
    edit = methods.aura(lm, TEXTS, LABELS, site="published")
    most = [
        np.concatenate([out.max(0) for out in outputs_of(lm, text, paths, {}).values()])
        for text in TEXTS
    ]
    areas = [roc_auc_score(LABELS, channel) for channel in np.transpose(most)]
    assert edit.outputs is not None
    assert [*edit.outputs.widths] == paths
    np.testing.assert_allclose(edit.outputs.gain, [min(1, 2 - 2 * a) for a in areas], atol=1e-9)
    assert not edit.outputs.offset.any()


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("method", ["mean_act", "linear_act"])
@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_maps_move_what_norms_write(name: str, method: str, sequential: bool) -> None:
    lm = tiny.lm(name, bos=True)
    paths = whole(layer_norms(lm))
    edit = PUBLISHED[method](lm, TEXTS, LABELS, site="published", sequential=sequential)
    assert edit.outputs is not None
    assert [*edit.outputs.widths] == paths
    maps: Maps = {}
    for path in paths:
        acting = maps if sequential else {}
        a, b = (
            np.sort([outputs_of(lm, text, paths, acting)[path].mean(0) for text in texts], axis=0)
            for texts in (TOXIC, CLEAN[:11])
        )
        maps[path] = np.ones(lm.view.d_model), b.mean(0) - a.mean(0)
        if method == "linear_act":
            lines = [np.polyfit(a[:, i], b[:, i], 1) for i in range(lm.view.d_model)]
            maps[path] = tuple(np.transpose(lines))  # type: ignore[assignment]
        gain, offset = edit.outputs.maps[path]
        np.testing.assert_allclose(gain, maps[path][0], rtol=2e-3, atol=2e-3)
        np.testing.assert_allclose(offset, maps[path][1], rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("method", [*PUBLISHED])
def test_what_they_return_dials_saves_and_folds_where_there_is_a_bias(
    tmp_path: Path, method: str
) -> None:
    lm = tiny.lm("gpt2")
    edit = PUBLISHED[method](lm, TEXTS, LABELS, site="published")
    assert (edit.name, edit.kind) == (f"{method}_published", "outputs")
    edit.save(tmp_path / "edit.safetensors")
    half = Intervention.load(tmp_path / "edit.safetensors").at(0.5)
    with half.applied(lm):
        applied = tiny.logits(lm, IDS)
    torch.testing.assert_close(tiny.logits(half.fold(lm), IDS), applied, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(applied, tiny.logits(lm, IDS), atol=1e-4)
    assert half.outputs is not None
    assert f"{half.outputs.moved:,} of {half.outputs.gain.size:,} outputs" in repr(half)


def test_where_no_norm_has_a_bias_maps_act_and_do_not_fold() -> None:
    for lm in (tiny.lm("llama"), tiny.lm("llama", dtype=torch.bfloat16)):
        edit = methods.linear_act(lm, TEXTS, LABELS, site="published")
        # In 16 bits what folds is measured by its weights.
        with edit.measured(lm):
            measured = tiny.logits(lm, IDS)
        assert not torch.equal(measured, tiny.logits(lm, IDS))
        with pytest.raises(dd.DialdownError, match=r"input_layernorm, which has no bias in .*AurA"):
            edit.fold(lm)


def test_an_edit_of_another_architecture_is_refused() -> None:
    edit = methods.aura(tiny.lm("gpt2"), TEXTS, LABELS, site="published")
    absent = r"24 outputs of transformer\.h\.0\.mlp\.c_fc, and tiny-llama has no such linear layer"
    with pytest.raises(dd.DialdownError, match=absent), edit.applied(tiny.lm("llama")):
        pass
    wide = tiny.lm("gpt2", n_inner=40)
    with pytest.raises(dd.DialdownError, match=r"24 outputs .* has 40 outputs"):
        edit.fold(wide)


def test_a_module_that_never_runs_teaches_nothing(llama: LM) -> None:
    lm = tiny.lm("llama")
    lm.model.model.layers[1].mlp.spare = torch.nn.Linear(4, 4)
    lm.model.model.layers[1].spare_norm = torch.nn.LayerNorm(4)
    norms = [(method, "spare_norm") for method in (methods.linear_act, methods.lineas)]
    for method, spare in ((methods.aura, r"mlp\.spare"), *norms):
        for options in ({}, {"sequential": False}) if method is methods.linear_act else ({},):
            with pytest.raises(dd.DialdownError, match=f"{spare} of .* never ran"):
                method(lm, TEXTS, LABELS, site="published", **options)


def test_maps_of_outputs_have_no_shuffled_control(gpt2: LM) -> None:
    edit = methods.aura(gpt2, TEXTS, LABELS, site="published")
    with pytest.raises(dd.DialdownError, match="of which no shuffled control is made"):
        shuffled(edit, seed=0)


def test_a_site_that_is_none_is_refused(gpt2: LM) -> None:
    for method in PUBLISHED.values():
        with pytest.raises(dd.DialdownError, match=r"Unknown site 'neuron'.*neurons"):
            method(gpt2, TEXTS, LABELS, site="neuron")

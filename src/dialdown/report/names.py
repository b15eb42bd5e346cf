"""What the report calls things: tables, interventions, controls, metrics."""

from __future__ import annotations

import re
from typing import NamedTuple

from ..evaluation.row import Row
from ..terminal import printable

# What prompts were, by `LM.template`.
PROMPTED = {"chat": "as a user's turn of the chat template", "none": "as text to go on with"}
# What a mean of a metric is over.
UNITS = {"toxicity": "prompts", "log_ppl": "blocks", "kl": "blocks", "f1": "sentences"}
AGREEMENT = "scorers-agreement"
# A method of a ladder in words; one of the user's own keeps its name.
METHODS = {
    "dpo": "DPO",
    "dpo_kl": "DPO with a KL",
    "gains": "neuron gains",
    "gains__random_neurons": "gains, shuffled",
    "rank_one": "one direction, MLPs",
    "rank_one__random_neurons": "MLPs, shuffled",
    "rank_one_attention": "one direction, attention",
    "rank_one_attention__random_neurons": "attention, shuffled",
    "step": "one step, from pairs",
    "labels": "one step, from labels",
    "ablation": "directional ablation",
    "caa": "CAA steering",
    "mean_act": "Mean-AcT",
    "linear_act": "Linear-AcT",
    "aura": "AurA",
    "damp": "Damp",
    "det0": "Det0",
}
# File stem of a table to its caption, in the paper's order; the last ones are not the paper's.
TITLES = {
    "table-1-directions": "Tokens that each concept direction, and its opposite, make most likely",
    "table-2-interventions": "Toxicity, log-perplexity and F1 under each intervention",
    "table-3-toxic-neurons": (
        "How much of DPO's toxicity reduction comes from patching the toxic neurons"
    ),
    "table-4-group-roles": (
        "The four neuron groups: signs, and what each contributes to the reduction"
    ),
    "table-5-group-shares": (
        "How the neurons divide into the four groups, with and without the condition on the change"
    ),
    "table-6-value-vectors": (
        "Tokens of the most toxic-aligned and, sign-reversed, the most anti-toxic value vectors"
    ),
    "table-7-seed-words": "Words of the token contrast",
    "table-8-mlp": "The model's MLP layers",
    "table-9-dpo": "Hyper-parameters of DPO",
    "table-10-kl-weight": "Weight of DPO's KL term",
    "table-11-probe": "Validation accuracy of the probe, and the strength of steering along it",
    "table-12-steering": "Steering along the probe at different strengths",
    "table-13-negative-means": "Share of neurons with a negative mean activation",
    "table-14-toxic-vectors": "Tokens of the value vectors most aligned with toxicity",
    "table-15-antitoxic-vectors": (
        "Tokens of the value vectors most opposed to toxicity, with reversed sign"
    ),
    "table-16-svd-directions": "Tokens of the directions of the toxic subspace",
    "table-17-correlations": (
        "Correlation of the activation shift with the cosine and with the activation before tuning"
    ),
    "table-18-reducing-share": "Share of all neurons whose projection on the direction shrinks",
    "table-19-more-interventions": (
        "Further interventions: increasing neurons, and other orders of choosing neurons"
    ),
    "section-5-1-shifts": "How far value vectors and mean activations move",
    "figure-1-opposing-effects": (
        "Projection change of the decreasing and the increasing neurons, layer by layer"
    ),
    "appendix-g-sign-conflicts": (
        "Share of neurons on which the directions of the toxic subspace disagree"
    ),
    "controls-toxicity": "Change of toxicity under each intervention and its controls",
    "controls-log-ppl": "Change of log-perplexity under each intervention and its controls",
    "scorers": "What each scorer says of the same continuations",
    AGREEMENT: "How far the scorers agree on the untouched model's continuations",
    "gains-by-group": (
        "Neuron gains: what they do in each of the tuning-free groups, and who follows the "
        "four-group rule"
    ),
    "gains-top-neurons": (
        "Neuron gains: the neurons whose gain moves the residual stream most, and what they write"
    ),
}


def table_name(stem: str) -> str:
    """The number and caption of a table by its file: `Table 17. Correlation of ...`."""
    kind, *places = stem.split("-")
    if kind in ("scorers", "gains", "controls"):
        return TITLES[stem]
    place, *more = places
    number = ".".join([place, *(part for part in more if part.isdigit())]).upper()
    return f"{kind.capitalize()} {number}. {TITLES[stem]}"


STAR = "M0,-1L.26,-.36L.95,-.31L.42,.14L.59,.81L0,.44L-.59,.81L-.42,.14L-.95,-.31L-.26,-.36Z"


class Look(NamedTuple):
    """How an intervention, a control or a group of neurons is drawn."""

    label: str
    colour: str
    shape: str
    dash: str = "-"
    filled: bool = True


# Families that have a mark of their own. The kind of an edit shows in its shape, what it follows in
# colour, filling and dash.
FAMILIES = {
    "none": Look("untouched", "ink", "circle"),
    "dpo": Look("DPO", "vermillion", STAR),
    "gains": Look("neuron gains", "sky", "circle"),
    "gains_kept": Look("neuron gains, few kept", "sky", "circle", ":", False),
    "step": Look("one step, no training", "ink", "triangle-left", "--"),
    "steer_probe": Look("steering", "purple", "triangle-up", "-."),
    "patch": Look("patching", "blue", "square"),
    "patch_four_groups_shift": Look("patching, shift", "blue", "square", "--", False),
    "edit_probe_set": Look("probe, set", "green", "diamond"),
    "edit_probe_shift": Look("probe, shift", "green", "triangle-down"),
    "edit_probe_scale": Look("probe, scale", "green", "cross"),
    "edit_probe_free_set": Look("contrast, set", "orange", "diamond", "--", False),
    "edit_probe_free_shift": Look("contrast, shift", "orange", "triangle-down", "--", False),
    "edit_probe_free_scale": Look("contrast, scale", "orange", "cross", "--", False),
    "other": Look("other", "muted", "triangle-right", "--"),
    "edit_random_neurons_set": Look("random neurons, set", "muted", "diamond", ":", False),
    "edit_random_neurons_shift": Look(
        "random neurons, shift", "muted", "triangle-down", ":", False
    ),
    "edit_random_neurons_scale": Look("random neurons, scale", "muted", "cross", ":", False),
    "gains_random_neurons": Look("random neurons, gains", "muted", "circle", ":", False),
    "steer_random": Look("random direction", "muted", "triangle-up", ":"),
}
ALIGNED = re.compile(r"patch_(\d+)")
# Families in the paper's order (table 2), then what stands on the front alone: in tables and
# sentences, and in figures, where space is scarce.
INTERVENTIONS = {
    "none": ("Untouched model", "untouched"),
    "steer_probe": ("Steering along the probe", "steering"),
    "dpo": ("The tuned model (DPO)", "DPO"),
    "patch_toxic_neurons": ("Patch the judged toxic neurons", "patch toxic"),
    "patch_N": ("Patch the {} most aligned neurons", "patch top {}"),
    "patch_TP": ("Patch TP", "patch TP"),
    "patch_TP_AN": ("Patch TP + AN", "patch TP+AN"),
    "patch_TP_AN_TN": ("Patch TP + AN + TN", "patch TP+AN+TN"),
    "patch_four_groups": ("Patch all four groups", "patch 4 groups"),
    "patch_four_groups_shift": ("Patch all four groups, by shift", "patch 4, shift"),
    "patch_all_increasing": ("Patch the increasing neurons (sanity check)", "patch increasing"),
    "edit_probe_set": ("Edit along the probe: set", "edit set"),
    "edit_probe_shift": ("Edit along the probe: shift", "edit shift"),
    "edit_probe_scale": ("Edit along the probe: scale", "edit scale"),
    "edit_probe_activation_set": (
        "Edit along the probe, least active first: set",
        "edit set, least active",
    ),
    "edit_probe_free_set": ("Edit along the token contrast: set", "contrast set"),
    "edit_probe_free_shift": ("Edit along the token contrast: shift", "contrast shift"),
    "edit_probe_free_scale": ("Edit along the token contrast: scale", "contrast scale"),
    "gains": ("Neuron gains", "gains"),
    "gains_kept": ("Neuron gains, few kept", "gains, few kept"),
    "step": ("One step, no training", "one step"),
    "steer_random": ("Steering, random direction", "random direction"),
    **{
        f"edit_random_neurons_{kind}": (f"Edit of random neurons: {kind}", f"random {kind}")
        for kind in ("set", "shift", "scale")
    },
    "gains_random_neurons": ("Gains of random neurons", "random gains"),
}
PLACES = {family: place for place, family in enumerate(INTERVENTIONS)}
# The intervention itself has an empty name.
CONTROLS = {
    "": Look("the intervention", "ink", "circle"),
    "random_neurons": Look("random neurons", "vermillion", "square", filled=False),
    "random_neurons_2": Look("random neurons, 2nd seed", "vermillion", "diamond", filled=False),
    "random_neurons_3": Look("random neurons, 3rd seed", "vermillion", "cross", filled=False),
    "random_direction": Look("random direction", "blue", "triangle-up", filled=False),
    "beta_reversed": Look("β reversed", "purple", "triangle-down", filled=False),
    "beta_zero": Look("β = 0", "green", "diamond", filled=False),
}


def named(row: Row) -> tuple[str, str]:
    """What a row's family is called in tables, and in figures; an unknown one stands as it is."""
    if aligned := ALIGNED.fullmatch(row.family):
        text, short_text = INTERVENTIONS["patch_N"]
        return text.format(aligned[1]), short_text.format(aligned[1])
    return INTERVENTIONS.get(row.family, (row.family, row.family))


def group_of(row: Row) -> str:
    """Of which interventions the claims speak together: steer, patch, probe, contrast; nothing for
    any other, and for random ones.
    """
    if "random" in row.family:
        return ""
    if row.family.startswith("edit_probe_free"):
        return "contrast"
    start = row.family.partition("_")[0]
    return {"edit": "probe", "patch": "patch", "steer": "steer"}.get(start, "")


def look(row: Row) -> str:
    """The key of `FAMILIES` whose mark a row has."""
    if row.family in FAMILIES:
        return row.family
    return "patch" if row.family.startswith("patch") else "other"


def is_aligned_patch(row: Row) -> bool:
    """Whether it patches the judged toxic neurons or the most aligned ones (table 3)."""
    aligned = row.family == "patch_toxic_neurons" or ALIGNED.fullmatch(row.family)
    return bool(aligned) and not row.control


def label(row: Row) -> str:
    """A name to read: the family, its strength, and which control of it."""
    return f"{named(row)[0]}{_strength(row)}" + (
        f" — {control_label(row.control)}" if row.control else ""
    )


def short(row: Row) -> str:
    """The same of no control for a figure, where a control character has no glyph."""
    return printable(f"{named(row)[1]}{_strength(row)}")


def control_label(control: str) -> str:
    """A name to read for a control; an unknown one stands as it is."""
    return CONTROLS[control].label if control in CONTROLS else control


def place(row: Row) -> tuple[int, bool]:
    """Sorts rows into the paper's order, unknown families last, further strengths after the row
    without one.
    """
    family = "patch_N" if ALIGNED.fullmatch(row.family) else row.family
    return PLACES.get(family, len(PLACES)), bool(row.strength)


def _strength(row: Row) -> str:
    if not row.strength:
        return ""
    if row.strength.startswith("a"):
        return f", {row.strength.replace('_b', ', β = ').replace('a', 'α = ', 1)}"
    return f", strength {row.strength}"

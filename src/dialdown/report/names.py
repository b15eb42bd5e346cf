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
    "labels_rank_one": "one direction, from labels",
    "labels_rank_one__random_neurons": "from labels, shuffled",
    "edit_set": "the paper's edit, constants",
    "edit_scale": "the paper's edit, factors",
    "edit_scale__random_neurons": "the paper's edit, shuffled",
    "ablation": "directional ablation",
    "profs": "ProFS",
    "caa": "CAA steering",
    "mean_act": "Mean-AcT at neurons",
    "mean_act_published": "Mean-AcT at norms",
    "linear_act": "Linear-AcT at neurons",
    "linear_act_published": "Linear-AcT at norms",
    "lineas": "LinEAS at neurons",
    "lineas_published": "LinEAS at norms",
    "aura": "AurA at neurons",
    "aura_published": "AurA at linear layers",
    "damp": "Damp at neurons",
    "damp_published": "Damp at linear layers",
    "det0": "Det0 at neurons",
    "det0_published": "Det0 at linear layers",
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
        "Opposing effects: projection change of the decreasing and the increasing neurons, layer "
        "by layer"
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
    number = table_number(stem)
    return f"{number[0].upper()}{number[1:]}. {TITLES[stem]}" if number else TITLES[stem]


def table_number(stem: str) -> str:
    """The number of a table by its file, `table 17`; nothing where it has none."""
    kind, *places = stem.split("-")
    if kind in ("scorers", "gains", "controls"):
        return ""
    place, *more = places
    number = ".".join([place, *(part for part in more if part.isdigit())]).upper()
    return f"{kind} {number}"


STAR = "M0,-1L.26,-.36L.95,-.31L.42,.14L.59,.81L0,.44L-.59,.81L-.42,.14L-.95,-.31L-.26,-.36Z"


class Look(NamedTuple):
    """How an intervention, a control or a group of neurons is drawn."""

    label: str
    colour: str
    shape: str
    dash: str = "-"
    filled: bool = True


# What an intervention is called everywhere, by family: in the paper's order (table 2), then what
# stands on the front alone.
INTERVENTIONS = {
    "none": "untouched",
    "steer_probe": "steering",
    "dpo": "DPO",
    "patch_toxic_neurons": "patch judged toxic",
    "patch_N": "patch top {}",
    "patch_TP": "patch TP",
    "patch_TP_AN": "patch TP + AN",
    "patch_TP_AN_TN": "patch TP + AN + TN",
    "patch_four_groups": "patch four groups",
    "patch_four_groups_shift": "patch four groups, shift",
    "patch_all_increasing": "patch increasing (sanity check)",
    "edit_probe_set": "probe edit, set",
    "edit_probe_shift": "probe edit, shift",
    "edit_probe_scale": "probe edit, scale",
    "edit_probe_activation_set": "probe edit, set, least active first",
    "edit_probe_free_set": "contrast edit, set",
    "edit_probe_free_shift": "contrast edit, shift",
    "edit_probe_free_scale": "contrast edit, scale",
    "gains": METHODS["gains"],
    "gains_kept": "neuron gains, few kept",
    "step": METHODS["step"],
    "steer_random": "steering, random",
    "edit_random_neurons_set": "random edit, set",
    "edit_random_neurons_shift": "random edit, shift",
    "edit_random_neurons_scale": "random edit, scale",
    "gains_random_neurons": METHODS["gains__random_neurons"],
}
PLACES = {family: place for place, family in enumerate(INTERVENTIONS)}


# Families that have a mark of their own: colour, shape, dash, filled. The kind of an edit shows in
# its shape, what it follows in the rest.
_MARKS: dict[str, tuple[str, str, str, bool]] = {
    "none": ("ink", "circle", "-", True),
    "dpo": ("vermillion", STAR, "-", True),
    "gains": ("sky", "circle", "-", True),
    "gains_kept": ("sky", "circle", ":", False),
    "step": ("ink", "triangle-left", "--", True),
    "steer_probe": ("purple", "triangle-up", "-.", True),
    "patch": ("blue", "square", "-", True),
    "patch_four_groups_shift": ("blue", "square", "--", False),
    "edit_probe_set": ("green", "diamond", "-", True),
    "edit_probe_shift": ("green", "triangle-down", "-", True),
    "edit_probe_scale": ("green", "cross", "-", True),
    "edit_probe_free_set": ("orange", "diamond", "--", False),
    "edit_probe_free_shift": ("orange", "triangle-down", "--", False),
    "edit_probe_free_scale": ("orange", "cross", "--", False),
    "other": ("muted", "triangle-right", "--", True),
    "edit_random_neurons_set": ("muted", "diamond", ":", False),
    "edit_random_neurons_shift": ("muted", "triangle-down", ":", False),
    "edit_random_neurons_scale": ("muted", "cross", ":", False),
    "gains_random_neurons": ("muted", "circle", ":", False),
    "steer_random": ("muted", "triangle-up", ":", True),
}
FAMILIES = {
    family: Look(INTERVENTIONS.get(family, family), *mark) for family, mark in _MARKS.items()
}
ALIGNED = re.compile(r"patch_(\d+)")
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


def family_name(row: Row) -> str:
    """What a row's family is called; an unknown one stands as it is."""
    if aligned := ALIGNED.fullmatch(row.family):
        return INTERVENTIONS["patch_N"].format(aligned[1])
    return INTERVENTIONS.get(row.family, row.family)


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
    """A name to read: the family, its strength, and which control of it. Without control
    characters, which have no glyph in a figure.
    """
    control = f" — {control_label(row.control)}" if row.control else ""
    return printable(f"{family_name(row)}{_strength(row)}{control}")


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

"""The four configurations as a user with a hub runs them, on a stand-in hub, and what that user
meets when it fails.
"""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers import hub_files
from helpers.hub_user import WITHOUT_HUB, Finished, User
from helpers.stand_in_hub import StandInHub

SMALL = {
    "workers": 1,
    "probe.count": 40,
    "probe.max_tokens": 24,
    "pairs.count": 12,
    "pairs.margin": 0.0,
    "pairs.max_new_tokens": 5,
    "pairs.batch_size": 16,
    "dpo.epochs": 1,
    "dpo.accumulation": 1,
    "dpo.warmup_steps": 0,
    "dpo.eval_pairs": 2,
    "dpo.snapshots": 1,
    "interventions.toxic_neurons": 5,
    "interventions.control_seeds": 1,
    "gains.eval_pairs": 2,
    "front.count": 4,
    "front.steering": [0.2],
    "front.patch": [1.0],
    "front.shift": [0.3],
    "front.scale": [0.3],
    "front.alphas": [],
    "front.gains": [1.0],
    "front.kept": [0.1],
    "front.step": [1.0],
    "evaluation.count": 8,
    "evaluation.control_count": 4,
    "evaluation.max_new_tokens": 4,
    "evaluation.pairs_count": 3,
    "evaluation.window": 16,
    "evaluation.max_windows": 3,
    "evaluation.kl_windows": 2,
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandInHub]:
    root = tmp_path_factory.mktemp("hub")
    hub_files.write_repositories(root)
    hub = StandInHub(root)
    yield hub
    hub.close()


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    values = hub_files.write_local(tmp_path_factory.mktemp("local") / "files")
    return hub_files.as_flags({**values, **SMALL})


@pytest.fixture(scope="module")
def user(hub: StandInHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    user = User(tmp_path_factory.mktemp("user"), {"HF_ENDPOINT": hub.address})
    yield user
    user.close()


def run(
    until: str, local: list[str], out: Path, config: str = "llama-3.1-8b", **other: str
) -> list[object]:
    """A command on one of the presets of the paper, with small counts."""
    set_ = hub_files.as_flags({key.replace("__", "."): value for key, value in other.items()})
    return ["run", "--until", until, "--preset", config, *local, *set_, "--out", out]


@pytest.mark.parametrize("config", ["gemma-2-2b", "gpt2-medium", "llama-3.1-8b", "mistral-7b"])
def test_every_preset_of_the_paper_runs_to_its_report_from_the_hub_alone(
    user: User, local: list[str], config: str, tmp_path: Path
) -> None:
    # A front and the rows that only fill tables are the same for all: one has them.
    less = (
        {} if config == "gpt2-medium" else {"front.count": 0, "interventions.extent": "conclusions"}
    )
    ran = user.dialdown(*run("report", local, tmp_path / "run", config), *hub_files.as_flags(less))
    assert ran.status == 0, ran.errors
    assert ran.errors == ""
    assert (tmp_path / "run" / "report.html").exists()
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    measured = {(row["intervention"], row["protocol"]) for row in results["rows"]}
    for name in ("dpo", "patch_four_groups", "edit_probe_set", "steer_probe"):
        assert {(name, "strict"), (name, "paper")} <= measured


Broken = dict[str, tuple[Finished, Path]]

# What happens to a repository -> what is said of it, and what to do.
SAID = {
    "gated": "accept them on its page of the hub, then log in with `hf auth login`",
    "failing": "the hub answers 500, which is its own trouble: repeat the command later",
    "breaking": "the connection failed (peer closed connection",
    "missing": "there is no such repository, or it is private: correct the id",
}
# Each kind of trouble with what transformers fetches and with what datasets fetches; one kind with
# each other model that a command may be given.
TROUBLES = [
    *((role, kind) for role in ("model", "evaluation.prompts") for kind in SAID),
    ("detox", "missing"),
    ("tuned", "breaking"),
]


@pytest.fixture(scope="module")
def broken(
    hub: StandInHub, user: User, local: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Broken:
    """Every kind of trouble with a model and with a data set, one with the base of a `detox` and
    one with a tuned model, all at once.
    """
    folder = tmp_path_factory.mktemp("broken")
    for kind in ("gated", "failing", "breaking"):
        shutil.copytree(
            hub.root / "models" / "meta-llama" / "Llama-3.1-8B",
            hub.root / "models" / "someone" / kind,
        )
        shutil.copytree(
            hub.root / "datasets" / hub_files.PROMPTS, hub.root / "datasets" / "someone" / kind
        )
    commands = {
        f"{role} {kind}": _command(role, f"someone/{kind}", local, folder / f"{role}-{kind}")
        for role, kind in TROUBLES
    }
    commands["revision"] = run("pairs", local, folder / "revision", revision="v9")
    with hub.with_trouble(
        gated={"someone/gated"}, failing={"someone/failing"}, breaking={"someone/breaking"}
    ):
        finished = user.at_once([*commands.values()])
    return {
        key: (ran, folder / key.replace(" ", "-"))
        for key, ran in zip(commands, finished, strict=True)
    }


def _command(role: str, name: str, local: list[str], out: Path) -> list[object]:
    if role == "detox":
        return ["detox", name, "--out", out]
    if role == "tuned":
        window = hub_files.as_flags({"evaluation.window": 16})
        return ["diff", "meta-llama/Llama-3.1-8B", name, *window, "--out", out]
    return run("pairs", local, out, **{role: name})


@pytest.mark.parametrize(("role", "kind"), TROUBLES)
def test_trouble_with_a_repository_is_one_sentence_that_says_what_to_do(
    broken: Broken, role: str, kind: str
) -> None:
    ran, _ = broken[f"{role} {kind}"]
    assert_one_sentence(
        ran,
        f"'someone/{kind}' is not a folder here and could not be fetched from the hub http://127.0.0.1:",
        SAID[kind],
    )


def test_a_revision_that_is_not_there_is_one_sentence(broken: Broken) -> None:
    ran, _ = broken["revision"]
    assert_one_sentence(
        ran,
        "'meta-llama/Llama-3.1-8B' is not a folder here and could not be",
        "no such revision: pass a branch, tag or commit",
    )


def test_nothing_half_written_is_left(broken: Broken) -> None:
    for ran, folder in broken.values():
        assert ran.status == 1
        assert not [path for path in folder.glob("**/*") if "partial" in path.name]
        assert not (folder / "tuned").exists()
        assert not (folder / "pairs.jsonl").exists()


def test_the_same_command_goes_on_when_the_connection_is_back(
    broken: Broken, user: User, local: list[str]
) -> None:
    for role in ("model", "evaluation.prompts"):
        ran = user.dialdown(
            *_command(role, "someone/breaking", local, broken[f"{role} breaking"][1])
        )
        assert ran.status == 0, ran.errors


@pytest.fixture(scope="module")
def without_hub(
    hub: StandInHub, local: list[str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Finished]:
    """The same command where nothing listens, where the address is none, and offline."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{unused.getsockname()[1]}"
    variables = {
        "away": {"HF_ENDPOINT": nowhere},
        "no address": {"HF_ENDPOINT": "127.0.0.1"},
        "empty": {"HF_ENDPOINT": ""},
        "offline": {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "1"},
    }
    folder = tmp_path_factory.mktemp("away")
    user = User(folder, {}, WITHOUT_HUB)
    commands = [run("pairs", local, folder / key) for key in variables]
    finished = user.at_once(commands, [*variables.values()])
    user.close()
    return dict(zip(variables, finished, strict=True))


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("away", ": check the network, the proxy and HF_ENDPOINT and repeat the command"),
        ("no address", "check the network, the proxy and HF_ENDPOINT"),
        ("empty", "hub of HF_ENDPOINT, which is empty"),
        (
            "offline",
            "HF_HUB_OFFLINE is set and it is not whole in the cache: unset it for the first run",
        ),
    ],
)
def test_no_hub_is_one_sentence_that_says_what_to_do(
    without_hub: dict[str, Finished], key: str, said: str
) -> None:
    assert_one_sentence(
        without_hub[key], " is not a folder here and could not be fetched from the hub ", said
    )


def assert_one_sentence(ran: Finished, *parts: str) -> None:
    assert ran.status == 1
    lines = [line for line in ran.errors.splitlines() if line]
    assert len(lines) == 1, ran.errors
    assert lines[0].startswith("dialdown: ")
    for part in parts:
        assert part in lines[0]

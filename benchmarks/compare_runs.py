"""Which conclusions of a study survive another processor, thread count or seed: several run folders
side by side.

    python benchmarks/compare_runs.py runs/one-thread runs/two-threads runs/seed-1

Prints the verdict of every claim in each run and whether they agree, then toxicity and
log-perplexity of every row.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dialdown.evaluation.bootstrap import Estimate
from dialdown.models.protocol import Protocol
from dialdown.report.claims import claims
from dialdown.report.run import Run, load
from dialdown.report.text import with_interval

METRICS = ("toxicity", "log_ppl")


def verdicts(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """Claim, protocol, verdict in each run, and whether the runs agree."""
    by_run = [
        {(claim.name, claim.protocol): claim.verdict for claim in claims(run)} for run in runs
    ]
    rows = []
    for name, protocol in dict.fromkeys(key for verdicts in by_run for key in verdicts):
        said = [verdicts.get((name, protocol), "not measured") for verdicts in by_run]
        rows.append((name, protocol, *said, agreement(said)))
    return rows


def agreement(said: Sequence[str]) -> str:
    """`all`, `no run against another` (some decide and others leave it open), or `DIFFERENT`."""
    decided = set(said) - {"undecided", "not measured"}
    if len(set(said)) == 1:
        return "all"
    return "no run against another" if len(decided) < 2 else "DIFFERENT"


def rows(runs: Sequence[Run], metric: str) -> list[tuple[str, ...]]:
    """Row, protocol, mean with interval in each run, and the distance of the furthest means."""
    keys = dict.fromkeys((row.intervention, row.protocol) for run in runs for row in run.results)
    table = []
    for name, protocol in keys:
        values = [value(run, name, protocol, metric) for run in runs]
        means = [estimate.mean for estimate in values if estimate]
        apart = f"{max(means) - min(means):.3f}" if len(means) > 1 else ""
        table.append(
            (
                name,
                protocol,
                *(with_interval(estimate) if estimate else "" for estimate in values),
                apart,
            )
        )
    return table


def value(run: Run, name: str, protocol: Protocol, metric: str) -> Estimate | None:
    """A row's metric, if the run has it."""
    result = run.result(name, protocol)
    return result.metrics.get(metric) if result else None


def show(title: str, heads: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """Print a table in Markdown."""
    print(f"\n{title}\n")
    for line in (heads, ["---"] * len(heads), *lines):
        print(f"| {' | '.join(line)} |")


def main() -> None:
    """Read the folders that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, help="folders of evaluated studies")
    runs = [load(folder) for folder in parser.parse_args().runs]
    names = [run.folder.name for run in runs]
    for run in runs:
        machine, rounding = run.info.get("machine", {}), run.stage("evaluate").get("rounding")
        print(
            f"{run.folder}: seed {run.setting('seed')}, {machine.get('threads')} threads, "
            f"{machine.get('platform')}, rounding {rounding}"
        )
    decided = verdicts(runs)
    show("Claims", ["claim", "protocol", *names, "agree"], decided)
    print(
        f"\n{sum(line[-1] == 'all' for line in decided)} of {len(decided)} claims have one verdict "
        "in all runs."
    )
    for metric in METRICS:
        show(metric, ["row", "protocol", *names, "apart"], rows(runs, metric))


if __name__ == "__main__":
    main()

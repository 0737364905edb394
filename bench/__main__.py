"""Run the comparison: ``python -m bench [--rounds 3] [--figures tasks,latency] [--systems redist,pool]``."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import click

from bench import figures as of_tasks
from bench import limits as of_limits
from bench import payloads as of_payloads
from bench import transfers as of_transfers
from bench.figures import Numbers
from bench.systems import SYSTEMS, Unsupported

FIGURES = of_tasks.FIGURES | of_payloads.FIGURES | of_limits.FIGURES | of_transfers.FIGURES
LESS_IS_BETTER = (
    " ms",
    " s",
    "plain sums",
    "beyond the array",
    "to 10,000",
    "per cent of a core",
    "small key",
)
PACKAGES = {"redist": "redist", "dask": "distributed", "ray": "ray", "pool": "concurrent.futures"}


def _some_of(known: Iterable[str]) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    def parse(_: click.Context, __: click.Parameter, value: str) -> list[str]:
        names = [name.strip() for name in value.split(",")]
        for name in names:
            if name not in known:
                raise click.BadParameter(f"{name!r} is none of {', '.join(known)}")
        return names

    return parse


@click.command()
@click.option(
    "--rounds", default=3, show_default=True, help="How often each figure is measured on each system."
)
@click.option(
    "--figures",
    default=",".join(FIGURES),
    show_default=True,
    callback=_some_of(FIGURES),
    help="Which figures.",
)
@click.option(
    "--systems",
    default=",".join(SYSTEMS),
    show_default=True,
    callback=_some_of(SYSTEMS),
    help="Which systems.",
)
@click.option("--output", type=click.Path(path_type=Path), help="Also write the medians as JSON.")
@click.option("--one", hidden=True, help="Measure one system in this process and print JSON.")
def main(rounds: int, figures: list[str], systems: list[str], output: Path | None, one: str | None) -> None:
    """Measure redist and its peers on the same work, in one run, and print medians and ratios."""
    if one:
        click.echo(json.dumps(measure(one, figures)))
        return
    missing = [name for name in systems if find_spec(PACKAGES[name]) is None]
    if missing:
        raise click.UsageError(
            f"not installed: {', '.join(missing)}; pip install -e '.[bench]' brings all, --systems leaves some out"
        )
    results: dict[str, dict[str, list[float]]] = {}
    for number in range(rounds):
        for system in systems:
            click.echo(f"round {number + 1} of {rounds}: {system}", err=True)
            run = subprocess.run(
                [sys.executable, "-m", "bench", "--one", system, "--figures", ",".join(figures)],
                check=False,
                stdout=subprocess.PIPE,
                stdin=subprocess.DEVNULL,
                text=True,
            )
            if run.returncode:
                click.echo(f"  {system} did not run (exit code {run.returncode})", err=True)
                continue
            for figure, value in json.loads(run.stdout.splitlines()[-1]).items():
                results.setdefault(figure, {}).setdefault(system, []).append(value)
    medians = {f: {s: statistics.median(v) for s, v in by.items()} for f, by in results.items()}
    report(medians, systems)
    if output:
        output.write_text(json.dumps(medians, indent=1) + "\n")


def measure(name: str, figures: list[str]) -> Numbers:
    """Measure the figures on one system, started for it; for some figures anew."""
    system = SYSTEMS[name]()
    system.start()
    numbers: Numbers = {}
    try:
        for index, figure in enumerate(figures):
            if index and figure in of_payloads.OF_A_NEW_SYSTEM:
                system.stop()
                system = SYSTEMS[name]()
                system.start()
            try:
                numbers |= FIGURES[figure](system)
            except Unsupported:
                continue
            except Exception as error:  # the others are measured all the same
                click.echo(f"  {figure} of {name} failed: {error!r}", err=True)
    finally:
        system.stop()
    return numbers


def report(medians: dict[str, dict[str, float]], systems: list[str]) -> None:
    """Print a table of medians, and of redist's ratio to each peer (larger is better for redist)."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"medians on {platform.processor() or platform.machine()}, Python {platform.python_version()}"
    )
    table.add_column("figure")
    for system in systems:
        table.add_column(f"{system} {_version(system)}", justify="right")
    for figure, by in medians.items():
        row = [figure]
        ours = by.get("redist")
        for system in systems:
            value = by.get(system)
            text = "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
            if value and ours and system != "redist":
                ratio = value / ours if figure.endswith(LESS_IS_BETTER) else ours / value
                text += f"  ({ratio:.3g}x)"
            row.append(text)
        table.add_row(*row)
    Console(width=140).print(table)


def _version(system: str) -> str:
    try:
        return version({"dask": "distributed"}.get(system, system))
    except PackageNotFoundError:
        return ""


if __name__ == "__main__":
    main()

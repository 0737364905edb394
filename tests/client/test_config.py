"""Settings: defaults, files, environment, `redist.config.set`, arguments."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import redist
from redist import Client, LocalCluster, config
from servers import wait_until

ROOT = Path(__file__).parents[2]
DOC = ROOT / "docs" / "configuration.md"


def flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def in_a_process(program: str, tmp_path: Path, **environment: str) -> Any:
    """Return what a fresh interpreter prints as JSON, with no configuration but what is given."""
    before = {k: v for k, v in os.environ.items() if not k.startswith(("REDIST_", "DASK_"))}
    env = {
        **before,
        "HOME": str(tmp_path),
        "DASK_CONFIG": str(tmp_path / "dask"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "workers")]),
        **environment,
    }
    done = subprocess.run(
        [sys.executable, "-c", "import json, sys, redist\nfrom redist import config\n" + program],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_file_of_defaults_is_yaml_as_dask_reads_it() -> None:
    (tree,) = yaml.safe_load_all(Path(config._YAML).read_text())
    assert dict(flat(tree["redist"])) == {name: one.default for name, one in config.settings().items()}
    for name, one in config.settings().items():
        assert one.text.endswith("."), f"{name} says what it is"


def test_get() -> None:
    assert redist.config.get("client.timeout") == "10 s"
    assert config.get("client.heartbeat_interval") == config.get("redist.client.heartbeat-interval") == "2 s"
    assert config.get("client.no-such", 3) == 3
    with pytest.raises(KeyError, match="did you mean 'worker"):
        config.get("worker.leese")


def test_set() -> None:
    with config.set({"client.timeout": "1 m"}, worker__connect_timeout=5):
        assert config.get("client.timeout") == "1 m"
        assert config.get("worker.connect-timeout") == 5
        assert config.as_environment() == {
            "REDIST_CLIENT__TIMEOUT": "'1 m'",
            "REDIST_WORKER__CONNECT_TIMEOUT": "5",
        }
    assert config.get("client.timeout") == "10 s"
    with pytest.warns(UserWarning, match="no setting 'client.timeot'; did you mean 'client.timeout'"):
        config.set({"client.timeot": 1}).__exit__(None, None, None)


def test_dask_s_own_configuration_counts() -> None:
    import dask

    with dask.config.set({"redist.client.timeout": 7}):
        assert config.get("client.timeout") == 7
    with dask.config.set(redist__worker__lease="3 s"):
        assert config.get("worker.lease") == "3 s"


SHOW = (
    "print(json.dumps([config.get('client.timeout'), config.get('worker.threads'), 'dask' in sys.modules]))"
)


def test_what_was_set_in_dask_before_ends(tmp_path: Path) -> None:
    program = (
        "import dask\nwith dask.config.set({'redist.client.timeout': 9}):\n    found = [config.get('client.timeout')]\n"
        "found += [config.get('client.timeout'), config.get('worker.threads')]\nprint(json.dumps(found))"
    )
    assert in_a_process(program, tmp_path, REDIST_WORKER__THREADS="3") == [9, "10 s", 3]


def test_environment(tmp_path: Path) -> None:
    env = {"REDIST_CLIENT__TIMEOUT": "4 s", "REDIST_WORKER__THREADS": "3", "REDIST_PASSWORD": "x"}
    assert in_a_process(SHOW, tmp_path, **env) == ["4 s", 3, False]
    assert in_a_process("import dask.config\n" + SHOW, tmp_path, **env) == ["4 s", 3, True]
    late = "config.get('client.timeout')\nimport dask.config\n" + SHOW
    assert in_a_process(late, tmp_path, **env) == ["4 s", 3, True]
    assert in_a_process(SHOW, tmp_path, DASK_REDIST__CLIENT__TIMEOUT="6 s") == ["6 s", 1, True]
    set_before = "import dask\ndask.config.set({'redist.client.timeout': 9})\n" + SHOW
    assert in_a_process(set_before, tmp_path, **env) == [9, 3, True]


def test_files(tmp_path: Path) -> None:
    (tmp_path / "dask").mkdir()
    (tmp_path / "dask" / "dask.yaml").write_text("array:\n  chunk-size: 1MiB\n")
    assert in_a_process(SHOW, tmp_path) == ["10 s", 1, False]
    (tmp_path / "dask" / "mine.yaml").write_text(
        "redist:\n  client:\n    timeout: 8 s\n  worker:\n    threads: 2\n"
    )
    assert in_a_process(SHOW, tmp_path) == ["8 s", 2, True]
    more = tmp_path / "more.yaml"
    more.write_text("redist:\n  client:\n    timeout: 9 s\n")
    assert in_a_process(SHOW, tmp_path, REDIST_CONFIG=str(more)) == ["9 s", 2, True]
    assert in_a_process(SHOW, tmp_path, REDIST_CONFIG=str(more), REDIST_CLIENT__TIMEOUT="5") == [5, 2, True]
    again = "config.set({'client.timeout': 1})\nconfig.refresh()\n" + SHOW
    assert in_a_process(again, tmp_path, REDIST_CONFIG=str(more)) == ["9 s", 2, True]


def test_unknown_settings_are_warned_of(tmp_path: Path) -> None:
    catch = (
        "import warnings\nwith warnings.catch_warnings(record=True) as all:\n    warnings.simplefilter('always')\n"
        "    config.get('client.timeout')\nprint(json.dumps([str(one.message) for one in all]))"
    )
    assert in_a_process(catch, tmp_path, REDIST_CLIENT__TIMEOT="4", REDIST_SECRET="s", REDIST_ANY="x") == [
        "redist has no setting 'client.timeot'; did you mean 'client.timeout'?"
    ]
    more = tmp_path / "more.yaml"
    more.write_text("redist:\n  worker:\n    thread: 4\n")
    assert in_a_process(catch, tmp_path, REDIST_CONFIG=str(more)) == [
        "redist has no setting 'worker.thread'; did you mean 'worker.threads'?"
    ]


def test_a_section_is_no_setting(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"^'quota' is a section, and '1 MiB' no mapping: it has quota\.client, quota\.namespace$",
    ):
        config.set({"quota": "1 MiB"})
    with config.set({"quota": {"client": "1 MiB"}}):
        assert config.get("quota.client") == "1 MiB"


def test_import_reads_no_settings(tmp_path: Path) -> None:
    assert (
        in_a_process(
            "print(json.dumps([name for name in ('dask', 'yaml', 'difflib') if name in sys.modules]))",
            tmp_path,
        )
        == []
    )


# --- what settings do -----------------------------------------------------------------------------------------------


def test_the_address_that_a_client_connects_to() -> None:
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster:
        with config.set({"address": cluster.endpoint.url}), Client(timeout=5) as client:
            assert client.cluster is None
            assert client.url == cluster.endpoint.url
            assert client._timeout == 5
            assert client.submit(sum, [1, 2]).result(10) == 3
        with config.set({"address": "unix:///nowhere"}):
            with Client(cluster) as client:
                assert client.url == cluster.endpoint.url
            with Client(n_workers=0, threads_per_worker=1) as client:
                assert client.cluster is not None


def test_settings_of_clients() -> None:
    with LocalCluster(n_workers=0, threads_per_worker=1) as cluster:
        with config.set(
            {"client.timeout": "3 s", "client.heartbeat-interval": "500 ms", "client.silence": "1 m"}
        ):
            with Client(cluster) as client:
                assert client._timeout == 3
                assert client.session.lease == 2.5
                assert client._silence == 60
            with Client(cluster, timeout="4 s", heartbeat_interval=1, silence="2 m") as client:
                assert client._timeout == 4
                assert client.session.lease == 5
                assert client._silence == 120


def test_settings_of_a_local_cluster_and_its_workers() -> None:
    with config.set(
        {
            "local-cluster.n-workers": 1,
            "local-cluster.threads-per-worker": 3,
            "worker.lease": "7 s",
            "server.maxmemory": "64MiB",
        }
    ):
        with LocalCluster() as cluster, Client(cluster) as client:
            assert list(client.nthreads().values()) == [3]
            wire = cluster.endpoint.open()
            try:
                assert wire.call("CONFIG", "GET", "maxmemory")[1] == str(64 << 20).encode()
                prefix = cluster.endpoint.prefix
                wait_until(
                    lambda: any(
                        b"7000" in wire.call("HVALS", key) for key in wire.call("KEYS", f"{prefix}caller:*")
                    ),
                    what="the worker's lease is what was set",
                )
            finally:
                wire.close()
        with (
            LocalCluster(n_workers=1, threads_per_worker=1, maxmemory=32 << 20) as cluster,
            Client(cluster) as client,
        ):
            assert list(client.nthreads().values()) == [1]


# --- the page -------------------------------------------------------------------------------------------------------


def table() -> str:
    lines = ["| setting | default | what it is |", "|---|---|---|"]
    for name, one in config.settings().items():
        default = "null" if one.default is None else one.default if one.default != "" else '""'
        lines.append(f"| `{name}` | `{default}` | {one.text} |")
    return "\n".join(lines) + "\n"


def test_the_page_shows_every_setting() -> None:
    text = DOC.read_text()
    begin, end = text.index("| setting |"), text.rindex("|\n") + 2
    if os.environ.get("REDIST_UPDATE_DOCS"):
        text = text[:begin] + table() + text[end:]
        DOC.write_text(text)
    assert text[begin : text.rindex("|\n") + 2] == table()


def test_nothing_is_warned_of_here() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config.refresh()
        config.get("client.timeout")

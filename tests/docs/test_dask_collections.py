"""docs/dask-collections.md: its example is run."""

from __future__ import annotations

import gc
import re
from typing import Any

from docs.documents import DOCS, Block, run_python
from servers import keys_of, wait_until

PAGE = DOCS / "dask-collections.md"


def test_the_example_is_true() -> None:
    (example,) = re.finditer(r"^```python\n(.*?)^```$", text := PAGE.read_text(), re.MULTILINE | re.DOTALL)
    found: dict[str, Any] = {"__name__": "page"}
    try:
        run_python(PAGE, Block("python", text.count("\n", 0, example.start(1)) + 1, example[1]), found)
        client = found["client"]
        again = client.get_dataset("y")
        assert abs(float(client.compute(again.mean(), sync=True))) < 1e-6
        client.unpublish_dataset("y")
        again = None
        for name in ("x", "y", "future"):
            del found[name]
        gc.collect()
        wait_until(lambda: not keys_of(client.cluster))
    finally:
        if "client" in found:
            found["client"].close()

"""One proxy for all tests of faults."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator

import pytest

from faults.transport import Proxy
from servers import Server


@pytest.fixture(scope="session")
def proxy(valkey: Server) -> Iterator[Proxy]:
    directory = tempfile.mkdtemp(prefix="redist-")
    proxy = Proxy(valkey.url.removeprefix("unix://"), directory)
    yield proxy
    proxy.close()
    shutil.rmtree(directory)

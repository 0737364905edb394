"""The worlds of the script tests, and the clusters of the tests of clients."""

from __future__ import annotations

from client.conftest import client, cluster, keys, new_client
from store.conftest import world

__all__ = ["client", "cluster", "keys", "new_client", "world"]

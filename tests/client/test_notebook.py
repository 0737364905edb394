"""What notebooks show."""

from __future__ import annotations

import asyncio
import time

from redist import Client, LocalCluster, showing


def test_client(client: Client, cluster: LocalCluster) -> None:
    future = client.scatter(bytes(100_000))
    html = client._repr_html_()
    assert "<b>Client</b>" in html
    assert f"<td style='text-align:left'>{client.url}</td>" in html
    assert "Workers</th><td style='text-align:left'>2<" in html
    assert "Threads</th><td style='text-align:left'>4<" in html
    assert "Keys of the cluster</th><td style='text-align:left'>1<" in html
    for name in cluster.workers:
        assert f"<td>{name}</td>" in html
    assert "finished" in future._repr_html_()


def test_names_are_escaped(cluster: LocalCluster) -> None:
    with Client(cluster, name="<b>", set_as_default=False) as client:
        assert "&lt;b&gt;<table>" in client._repr_html_()
        future = client.submit(abs, -1, key="<i>")
        assert "&lt;i&gt;" in future._repr_html_()
    assert "closed" in client._repr_html_()


def test_asynchronous(cluster: LocalCluster) -> None:
    async def look() -> None:
        client = Client(cluster, asynchronous=True)
        assert "newly-created" in client._repr_html_()
        async with client:
            assert "Workers</th><td style='text-align:left'>2<" in client._repr_html_()

    asyncio.run(look())


def test_a_server_that_does_not_answer(client: Client) -> None:
    began = time.monotonic()
    with client._peers._lock:  # as while another thread waits for it
        html = client._repr_html_()
    assert time.monotonic() - began < showing.PATIENCE + 2
    assert "did not answer" in html
    assert client.name in html

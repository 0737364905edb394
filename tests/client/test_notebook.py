"""What notebooks show."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

from redist import Client, LocalCluster, showing
from redist.diagnostics.memory import Memory
from redist.diagnostics.why import Why
from redist.memory.space import format_size
from redist.usage import Usage


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


def test_memory(client: Client, cluster: LocalCluster) -> None:
    memory = client.memory()
    html = memory._repr_html_()
    for text in (*cluster.workers, "managed", "spilled", "lingering", "2 workers"):
        assert f">{text}<" in html
    worker = replace(memory.workers[0], name="<b>", host="<i>")
    html = Memory((worker,))._repr_html_()
    assert html.count("<tr>") == 4
    assert "&lt;b&gt;" in html
    assert "&lt;i&gt;" in html
    assert "<b>" not in html
    assert "<td>total</td><td>1 worker</td>" in html
    assert "1 worker " in str(Memory((worker,)))
    assert "<td style='text-align:right'>0 B</td>" in html
    unlimited = replace(worker, use=replace(worker.use, limit=0))
    assert str(Memory((unlimited,))).count(" none ") == 3
    assert "<td>total</td><td>0 workers</td>" in Memory(())._repr_html_()


def test_why(client: Client) -> None:
    future = client.submit(abs, -1, key="<k>")
    assert future.result(10) == 1
    html = client.why(future)._repr_html_()
    assert html.startswith("<div><b>Why</b> &lt;k&gt;<table>")
    assert f"<td>client</td><td>{client.name}</td><td>1</td>" in html
    assert "Copy on</th><td style='text-align:left'>the server, inline<" in html
    assert "nothing holds it" in client.why("nothing")._repr_html_()
    assert "nothing: it is about to go" in Why("x", "memory")._repr_html_()


def test_usage(client: Client) -> None:
    future = client.scatter(bytes(100_000))
    usage = client.usage()
    html = usage._repr_html_()
    assert "Keys</th><td style='text-align:left'>1<" in html
    assert f"<td style='text-align:right'>{format_size(usage.nbytes)}</td>" in html, future
    assert "<table" in Usage(0, 0)._repr_html_()


def test_datasets(cluster: LocalCluster) -> None:
    with Client(cluster, set_as_default=False) as client:
        datasets = client.datasets
        assert "Published</th><td style='text-align:left'>0<" in datasets._repr_html_()
        client.publish_dataset(1, name="<b>")
        client.publish_dataset(2, name=("x", 1))
        html = datasets._repr_html_()
        assert "<td>&#x27;&lt;b&gt;&#x27;</td>" in html
        assert "<td>(&#x27;x&#x27;, 1)</td>" in html
        for i in range(100):
            client.publish_dataset(i, name=f"d{i}")
        assert "<td>and 2 more</td>" in datasets._repr_html_()
        with client._peers._lock:  # as while another thread waits for the server
            assert "did not answer" in datasets._repr_html_()
        for name in client.list_datasets():
            client.unpublish_dataset(name)
    assert "closed" in datasets._repr_html_()


def test_asynchronous(cluster: LocalCluster) -> None:
    async def look() -> None:
        client = Client(cluster, asynchronous=True)
        assert "newly-created" in client._repr_html_()
        assert "newly-created" in client.datasets._repr_html_()
        async with client:
            assert "Published" in client.datasets._repr_html_()
            assert "Workers</th><td style='text-align:left'>2<" in client._repr_html_()

    asyncio.run(look())


def test_a_server_that_does_not_answer(client: Client) -> None:
    began = time.monotonic()
    with client._peers._lock:  # as while another thread waits for it
        html = client._repr_html_()
    assert time.monotonic() - began < showing.PATIENCE + 2
    assert "did not answer" in html
    assert client.name in html

"""`redist.print` and `redist.warn`: what tasks say reaches every client."""

from __future__ import annotations

import asyncio
import io
import logging
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest

import redist
from redist import Client, LocalCluster
from servers import wait_until

NewClient = Callable[..., Client]


class Odd(UserWarning):
    pass


def says() -> None:
    redist.print("one", 2, sep="-", end="!\n")
    redist.print("bad", file=sys.stderr, flush=True)
    redist.print()


def warns(message: Any, category: Any = UserWarning) -> str:
    redist.warn(message, category)
    return "went on"


def read(capsys: pytest.CaptureFixture[str], until: Callable[[str, str], bool]) -> None:
    out = err = ""

    def arrived() -> bool:
        nonlocal out, err
        more = capsys.readouterr()
        out, err = out + more.out, err + more.err
        return until(out, err)

    wait_until(arrived)


def test_print_reaches_every_client(
    client: Client, new_client: NewClient, capsys: pytest.CaptureFixture[str]
) -> None:
    other = new_client(set_as_default=False)
    client.submit(says).result(10)
    read(
        capsys,
        lambda out, err: sorted(out.split("\n")) == ["", "", "", "one-2!", "one-2!"] and err == "bad\nbad\n",
    )
    other.run(says)
    read(capsys, lambda out, err: out.count("one-2!") == 4 and err.count("bad") == 4)


def test_print_asynchronously(cluster: LocalCluster, capsys: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        async with Client(cluster, asynchronous=True) as client:
            await client.submit(says)

    asyncio.run(main())
    read(capsys, lambda out, err: out == "one-2!\n\n" and err == "bad\n")


def test_print_elsewhere(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    file = io.StringIO()
    redist.print("here", file=file)
    redist.print("and", "here")
    assert (file.getvalue(), capsys.readouterr().out) == ("here\n", "and here\n")
    with pytest.raises(TypeError, match=r"file is sys.stdout or sys.stderr"):
        client.submit(lambda: redist.print("there", file=io.StringIO())).result(10)


def test_what_is_no_text_elsewhere_is_printed_too(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    client.submit(lambda: redist.print("half \udc80")).result(10)
    read(capsys, lambda out, _: out == "half \\udc80\n")


def test_warn_reaches_every_client(
    client: Client, new_client: NewClient, capsys: pytest.CaptureFixture[str]
) -> None:
    other = new_client(set_as_default=False)
    for who, message, category, comes in (
        (client, "careful", Odd, Odd),
        (other, Odd("an instance"), UserWarning, Odd),
        (client, "no category", None, UserWarning),
    ):
        with pytest.warns() as caught:
            assert who.submit(warns, message, category).result(10) == "went on"
            wait_until(lambda: len(caught) == 2)
        assert [(w.category, str(w.message)) for w in caught] == [(comes, str(message))] * 2
    assert capsys.readouterr().err == ""  # not as text, too


def test_warn_asynchronously(cluster: LocalCluster) -> None:
    async def main() -> None:
        async with Client(cluster, asynchronous=True) as client:
            await client.submit(warns, "careful", Odd)

    with pytest.warns(Odd, match="careful"):
        asyncio.run(main())


def test_warn_obeys_the_filters_of_each(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with caplog.at_level(logging.ERROR, logger="redist.client"):
            assert client.submit(warns, "strict here").result(10) == "went on"
    assert "could not be given" in caplog.text

    def strict() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            redist.warn("strict there")

    with pytest.warns(UserWarning, match="strict there"):
        with pytest.raises(UserWarning, match="strict there"):
            client.submit(strict).result(10)


def test_warn_elsewhere_and_what_is_no_warning(client: Client) -> None:
    with pytest.warns(Odd, match="here") as caught:
        redist.warn("here", Odd)
    assert caught[0].filename == __file__
    for wrong in (int, "text"):
        with pytest.raises(TypeError):
            client.submit(warns, "x", wrong).result(10)
        with pytest.raises(TypeError):
            redist.warn("x", wrong)  # type: ignore[arg-type]

"""Plain HTML of what notebooks show; all text in it is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["page", "table"]


def page(
    kind: str, name: str, facts: Iterable[tuple[str, object]], workers: str = "", *, below: str = ""
) -> str:
    """Return the HTML of an object: its name, a table of facts, one of workers that can be opened, and one `below`."""
    cells = "".join(
        f"<tr><th style='text-align:left'>{escape(fact)}</th><td style='text-align:left'>{escape(str(value))}</td></tr>"
        for fact, value in facts
    )
    details = f"<details><summary>Workers</summary>{workers}</details>" if workers else ""
    return f"<div><b>{kind}</b> {escape(name)}<table>{cells}</table>{details}{below}</div>"


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return an HTML table."""
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(value))}</td>" for value in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"

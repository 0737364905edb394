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


def table(heads: Sequence[str], rows: Iterable[Sequence[object]], *, figures: int | None = None) -> str:
    """Return an HTML table; from the column `figures` on there are numbers, which are aligned to the right."""
    styles = [
        "" if figures is None or i < figures else " style='text-align:right'" for i in range(len(heads))
    ]
    head = "".join(f"<th{style}>{escape(text)}</th>" for text, style in zip(heads, styles))
    body = "".join(
        "<tr>"
        + "".join(f"<td{style}>{escape(str(value))}</td>" for value, style in zip(row, styles))
        + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"

"""Imports run one way, as ARCHITECTURE.md says."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
#: What each room may import besides itself and `EVERYWHERE`.
BELOW: dict[str, set[str]] = {
    "faces": {"cluster", "diagnostics", "session", "memory", "protocol", "store"},
    "cluster": {"memory", "store"},
    "cli": {"cluster", "diagnostics", "memory", "store"},
    "diagnostics": {"session", "memory", "store"},
    "session": {"store"},
    "memory": set(),
    "protocol": set(),
    "store": set(),
    "errors": set(),
    "config": set(),
    "timeouts": set(),
    "imported": set(),
    "ends": set(),
    "markup": set(),
}
EVERYWHERE = {"errors", "config", "timeouts", "imported", "ends", "markup"}
#: A client that is made inside a function for who asks for one.
ASKED_FOR = {
    ("redist.cluster", "redist.client"),
    ("redist.diagnostics.why", "redist.client"),
}


def room(module: str) -> str:
    """Return the room that a module belongs to."""
    _, name, *_ = (*module.split("."), "")
    name = "cli" if name == "__main__" else name
    name = (
        "cluster"
        if name in ("adaptive", "cluster_end", "dask_options", "launch", "resources", "sizing")
        else name
    )
    return name if name in BELOW else "faces"


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield the modules of ours that a file imports, but for type checkers only, and whether inside a function."""
    nodes: list[tuple[ast.AST, bool]] = [(ast.parse(path.read_text()), False)]
    for node, inside in nodes:  # grows
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names = (
                [f"redist.{alias.name}" for alias in node.names] if node.module == "redist" else [node.module]
            )
            yield from ((name or "", inside) for name in names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, inside) for alias in node.names)
        inside = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        nodes += [(child, inside) for child in ast.iter_child_nodes(node)]


def test_imports_run_downwards() -> None:
    wrong, asked = [], set()
    for path in (ROOT / "redist").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for imported, inside in imports(path):
            if imported.partition(".")[0] == "redist_worker":
                wrong.append((module, imported))
            elif imported.partition(".")[0] == "redist":
                if (module, imported) in ASKED_FOR and inside:
                    asked.add((module, imported))
                elif room(imported) not in BELOW[room(module)] | {room(module)} | EVERYWHERE:
                    wrong.append((module, imported))
    assert wrong == []
    assert asked == ASKED_FOR

"""``python -m redist``: the command `redist`."""

from __future__ import annotations

from redist.cli import main

if __name__ == "__main__":
    main(prog_name="redist")

"""The command ``redist``: each subcommand is a module of this package, imported when it is called."""

from __future__ import annotations

from importlib import import_module

import click

__all__ = ["main"]

#: Subcommands with their first lines, so that the overview imports none of them.
_COMMANDS = {
    "worker": "Run a worker: it keeps values and runs tasks.",
    "server": "Run the embedded server in the foreground.",
    "doctor": "Look for broken invariants in a namespace.",
    "ping": "Say whether the server, and a worker of this host, are well.",
    "why": "Tell who keeps a key.",
    "memory": "Show what memory and disk hold, by worker and host.",
    "acl": "Print the ACL line for a user of redist.",
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = import_module(f"redist.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="redist", message="%(prog)s %(version)s")
def main() -> None:
    """Shared in-memory data and tasks for many Python processes, with all state in Redis or Valkey."""

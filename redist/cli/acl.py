"""``redist acl``: print the rights that redist needs."""

from __future__ import annotations

import click

__all__ = ["command"]


@click.command("acl", short_help="Print the ACL line for a user of redist.")
@click.argument("user")
@click.option(
    "--namespace",
    metavar="NAME",
    default="default",
    show_default=True,
    help="Namespace to fence the user into.",
)
@click.option(
    "--password", metavar="PASSWORD", default="", help="The user's password. Default: a word to be replaced."
)
@click.option("--cluster", is_flag=True, help="For a Redis Cluster; the line goes to every node.")
def command(user: str, namespace: str, password: str, cluster: bool) -> None:
    """Print the ACL SETUSER command that gives USER the rights that redist needs, and no others.

    For example: redis-cli $(redist acl alice --password secret)
    """
    from redist.store.acl import acl_line

    try:
        click.echo(acl_line(user, namespace, password=password, cluster=cluster))
    except ValueError as error:
        raise click.UsageError(str(error)) from error

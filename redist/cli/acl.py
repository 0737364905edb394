"""``redist acl``: print the rights that redist needs."""

from __future__ import annotations

import click

from redist.cli.common import parse_address

__all__ = ["command"]


@click.command("acl", short_help="Print the ACL line for a user of redist.")
@click.argument("user")
@click.option(
    "--namespace",
    metavar="NAME",
    help="Namespace to fence the user into. Default: that of the setting `address` (REDIST_ADDRESS), or 'default'.",
)
@click.option(
    "--password", metavar="PASSWORD", help="The user's password. Default: a random one, also told on stderr."
)
@click.option(
    "--cluster",
    is_flag=True,
    help="For a Redis Cluster, as the setting `address` may say, too; the line goes to every node.",
)
def command(user: str, namespace: str | None, password: str | None, cluster: bool) -> None:
    """Print the ACL SETUSER command that gives USER the rights that redist needs, and no others.

    For example: redis-cli -h HOST -a SERVER_PASSWORD $(redist acl alice --password secret)
    """
    import secrets

    from redist import config
    from redist.store.acl import acl_line

    if address := config.get("address"):
        point = parse_address(address, namespace)
        namespace, cluster = point.namespace, cluster or point.cluster
    chosen = secrets.token_hex(24) if password is None else password
    try:
        click.echo(acl_line(user, namespace or "default", password=chosen, cluster=cluster))
    except ValueError as error:
        # Not the password itself, which the message would show.
        text = "the password is empty or has spaces" if "password" in str(error) else str(error)
        raise click.UsageError(text) from error
    if password is None:
        click.echo(f"redist: no --password given, so a random one was made: {chosen}", err=True)

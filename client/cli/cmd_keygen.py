"""`zmqrt keygen`: the keys of a fleet."""

from __future__ import annotations

from pathlib import Path

import click

from ...protocol import keys


@click.command(help="Make the keys of a fleet of several machines.")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path), metavar="DIR")
def command(directory: Path) -> None:
    """Write keys and lists into DIR, and say what to do with them."""
    for path in keys.generate(directory):
        click.echo(f"wrote {path}")
    click.echo(
        f"""
Each machine needs its own part: the broker all of {directory} but the secrets of the others, a worker worker/ and
broker/public.key, a client client/ and broker/public.key. Who may drain nodes and see everybody's requests has
admin/ too; the zmqrt command uses it where it is. Then, with HOST as the broker's address:

  zmqrt-broker --keys {directory} --clients tcp://0.0.0.0:7555 --workers tcp://0.0.0.0:7556
  zmqrt-worker --keys {directory} --broker tcp://HOST:7556
  zmqrt infer  --keys {directory} --broker tcp://HOST:7555 "Hello"

Who may connect stands in authorized_workers and authorized_clients, one key a line."""
    )

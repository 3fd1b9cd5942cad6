"""`zmqrt completion`: the script that a shell needs to complete our commands."""

from __future__ import annotations

from typing import Final

import click
from click.shell_completion import get_completion_class

from . import powershell

_PROGRAM: Final = "zmqrt"
_VARIABLE: Final = "_ZMQRT_COMPLETE"
_HINTS: Final = {
    "bash": 'eval "$(zmqrt completion bash)"  in ~/.bashrc',
    "zsh": 'eval "$(zmqrt completion zsh)"  in ~/.zshrc',
    "fish": "zmqrt completion fish > ~/.config/fish/completions/zmqrt.fish",
    "powershell": "zmqrt completion powershell | Out-String | Invoke-Expression  in $PROFILE",
}


@click.command(help="Print the script that completes commands in your shell.", epilog="For example: " + _HINTS["bash"])
@click.argument("shell", type=click.Choice(list(_HINTS)))
def command(shell: str) -> None:
    """Print it."""
    from .main import cli

    powershell.register()
    found = get_completion_class(shell)
    assert found is not None
    click.echo(f"# {_HINTS[shell]}")
    click.echo(found(cli, {}, _PROGRAM, _VARIABLE).source())

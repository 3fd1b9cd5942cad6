"""`zmqrt completion`: the script that a shell needs to complete our commands; PowerShell's is not among click's."""

from __future__ import annotations

import os
from typing import Final

import click
from click.shell_completion import (
    CompletionItem,
    ShellComplete,
    add_completion_class,
    get_completion_class,
    split_arg_string,
)

_PROGRAM: Final = "zmqrt"
_VARIABLE: Final = "_ZMQRT_COMPLETE"
_HINTS: Final = {
    "bash": 'eval "$(zmqrt completion bash)"  in ~/.bashrc',
    "zsh": 'eval "$(zmqrt completion zsh)"  in ~/.zshrc',
    "fish": "zmqrt completion fish > ~/.config/fish/completions/zmqrt.fish",
    "powershell": "zmqrt completion powershell | Out-String | Invoke-Expression  in $PROFILE",
}


_POWERSHELL: Final = """\
Register-ArgumentCompleter -Native -CommandName %(prog_name)s -ScriptBlock {
    param($wordToComplete, $commandAst, $cursorPosition)
    $env:%(complete_var)s = "powershell_complete"
    $env:COMP_WORDS = $commandAst.ToString()
    $env:COMP_WORD = $wordToComplete
    %(prog_name)s | ForEach-Object {
        $value, $help = $_ -split "`t", 2
        if (-not $help) { $help = $value }
        [System.Management.Automation.CompletionResult]::new($value, $value, "ParameterValue", $help)
    }
    Remove-Item Env:%(complete_var)s, Env:COMP_WORDS, Env:COMP_WORD
}
"""


class PowerShellComplete(ShellComplete):
    """Completion for Windows PowerShell and PowerShell 7."""

    name = "powershell"
    source_template = _POWERSHELL

    def get_completion_args(self) -> tuple[list[str], str]:
        """Return the finished words, and the one being typed."""
        incomplete = os.environ.get("COMP_WORD", "")
        words = split_arg_string(os.environ.get("COMP_WORDS", ""))[1:]
        return (words[:-1] if incomplete and words else words), incomplete

    def format_completion(self, item: CompletionItem) -> str:
        """Write one proposal."""
        return f"{item.value}\t{item.help or ''}"


def register_powershell() -> None:
    """Let click know PowerShell."""
    add_completion_class(PowerShellComplete)


@click.command(help="Print the script that completes commands in your shell.", epilog="For example: " + _HINTS["bash"])
@click.argument("shell", type=click.Choice(list(_HINTS)))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print it."""
    register_powershell()
    found = get_completion_class(shell)
    assert found is not None
    click.echo(f"# {_HINTS[shell]}")
    click.echo(found(context.find_root().command, {}, _PROGRAM, _VARIABLE).source())

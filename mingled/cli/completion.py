"""`mingle completion`: what a shell evaluates so that the tab key knows our commands."""

from __future__ import annotations

import click

from mingled.errors import BadInput

PROGRAMS = ("mingle", "mingle-wait", "mingled")

SHELLS = ("bash", "zsh", "fish")

_HOW = """\b
For good, in the file that your shell reads when it starts:
  bash   ~/.bashrc                     eval "$(mingle completion bash)"
  zsh    ~/.zshrc, after compinit      eval "$(mingle completion zsh)"
  fish   ~/.config/fish/config.fish    mingle completion fish | source
"""


@click.command(epilog=_HOW)
@click.argument("shell", type=click.Choice(SHELLS))
def command(shell: str) -> None:
    """What completes mingle, mingle-wait and mingled in your shell, on stdout."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise BadInput(f"this click completes nothing in {shell}; pip install -U click")
    for program in PROGRAMS:
        # A command is asked for nothing here: the text calls the program itself at each tab.
        variable = f"_{program.replace('-', '_').upper()}_COMPLETE"
        click.echo(kind(click.Command(program), {}, program, variable).source())

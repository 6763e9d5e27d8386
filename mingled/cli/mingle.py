"""`mingle`: the group of commands. Each is imported when it is called."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from mingled import __version__
from mingled.errors import MingleError
from mingled.wording import clean

_COMMANDS = {
    "completion": ("mingled.cli.completion", "command"),
    "cancel": ("mingled.cli.cancel", "command"),
    "demo": ("mingled.cli.demo", "demo"),
    "doctor": ("mingled.cli.doctor", "command"),
    "firewall": ("mingled.cli.firewall", "command"),
    "hosts": ("mingled.cli.hosts", "command"),
    "interfaces": ("mingled.cli.interfaces", "command"),
    "key": ("mingled.cli.key", "command"),
    "leave": ("mingled.cli.status", "leave"),
    "logs": ("mingled.cli.logs", "command"),
    "metrics": ("mingled.cli.metrics", "command"),
    "neighbors": ("mingled.cli.neighbors", "command"),
    "nodes": ("mingled.cli.nodes", "command"),
    "ping": ("mingled.cli.ping", "command"),
    "service": ("mingled.cli.service", "command"),
    "status": ("mingled.cli.status", "status"),
    "wait": ("mingled.cli.wait", "command"),
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, name = _COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        from mingled.cli.blocks import written

        with written():  # click itself would exit with 1, which here means something
            return super().invoke(ctx)


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mingle")
def command() -> None:
    """Start distributed training with no address typed."""


def main() -> None:
    """Entry point of `mingle`."""
    if sys.argv[1:2] == ["wait"]:  # has exits and an eval form of its own
        from mingled.cli import wait

        wait.main(sys.argv[2:])
        return
    from mingled.cli.blocks import written

    try:
        with written():
            command.main(prog_name="mingle", standalone_mode=False)
    except (KeyboardInterrupt, click.exceptions.Abort):
        raise SystemExit(130) from None
    except click.ClickException as error:
        error.show()
        raise SystemExit(error.exit_code) from None
    except MingleError as error:
        click.echo(f"mingle: {clean(str(error))}", err=True)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()

"""`mingle key`: the cluster's key. Who has it belongs; the others find, join and read nothing."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

import click
import msgspec

from mingled import keys
from mingled.cli.json_lines import print_json
from mingled.cli.service import FILES
from mingled.core.secrets import KEY_BYTES, KEYS_MAX, key_id_of
from mingled.errors import BadInput
from mingled.wording import clean

STEPS = """Change the key of running machines in three steps, each on all of them before the next:

\b
  mingle key rotate install        on one; prints the new key. On the others:
  mingle key rotate install -      and give it the printed key on stdin
  mingle key rotate use ID         the new key is presented, the old one still accepted
  mingle key rotate remove ID      the old one no longer is

Daemons notice by themselves. Jobs that run or wait go on with what they began with."""


UNIT = Path(FILES["mingled.service"])
"""It runs as a user of its own: its start and its reload let that one's group read the key."""


class Key(msgspec.Struct, frozen=True):
    """One key in the JSON output of `mingle key id`."""

    id: str
    presented: bool


_FILE = click.option(
    "--file",
    "file",
    metavar="PATH",
    help="The key file.  [env: MINGLE_KEY_FILE; default: ~/.config/mingled/key, for root "
    "/etc/mingled/key]",
)


@click.group()
def command() -> None:
    """The cluster's key: make it, copy it to each machine, change it.

    \b
    On one machine:   sudo mingle key new
    On each other:    ssh gpu1 sudo mingle key show | sudo mingle key new -
    """


def _place(file: str | None) -> Path:
    """Where to write or read: what is named, what there is, or where it belongs."""
    environ = os.environ | ({keys.VARIABLE: file} if file else {})
    found = keys.find(environ, system=os.geteuid() == 0)
    if found is None:
        if environ.get(keys.VARIABLE) == keys.NONE:
            raise BadInput(
                f"{keys.VARIABLE}={keys.NONE} says: no key; unset it, or give --file PATH"
            )
        return keys.SYSTEM if os.geteuid() == 0 else keys.own()
    return found


def _given(source: str | None) -> bytes:
    """A key from stdin (`-`), or a new one."""
    if source is None:
        return secrets.token_bytes(KEY_BYTES)
    if source != "-":
        raise BadInput(
            "a key on the command line could be read by others in the list of processes; write - "
            "and give it on stdin"
        )
    words = sys.stdin.read(keys.FILE_BYTES_MAX).split()
    try:
        (word,) = words
        key = bytes.fromhex(word)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise BadInput(f"no key on stdin: want one of {2 * KEY_BYTES} hexadecimal digits")
    return key


@command.command()
@_FILE
@click.argument("source", required=False, metavar="[-]")
def new(file: str | None, source: str | None) -> None:
    """Make a key, or take the one on stdin (-), where there is none yet."""
    path = _place(file)
    key = _given(source)
    keys.write(path, [key], new=True)
    click.echo(
        f"mingle key: {clean(str(path))} has key {key_id_of(key)} now, for its owner alone; every "
        "machine needs the same (mingle key show)",
        err=True,
    )
    if path == keys.SYSTEM and UNIT.exists():
        click.echo(
            "mingle key: the service mingled has none until it may read this one: systemctl reload "
            "mingled",
            err=True,
        )


@command.command()
@_FILE
def show(file: str | None) -> None:
    """Print the key that is presented. It is the secret itself."""
    path = _place(file)
    click.echo(keys.load(path)[0].hex())


@command.command("id")
@_FILE
@click.option("--json", "as_json", is_flag=True, help="One JSON array on stdout.")
def id_(file: str | None, as_json: bool) -> None:
    """Print the short public names of the keys, the one that is presented first."""
    found = keys.load(_place(file))
    every = [Key(key_id_of(key), presented=n == 0) for n, key in enumerate(found)]
    if as_json:
        print_json(every)
        return
    for key in every:
        click.echo(f"{key.id}  {'presented' if key.presented else 'accepted'}")


@command.group(help=STEPS)
def rotate() -> None:
    """Change the key of running machines."""


@rotate.command()
@_FILE
@click.argument("source", required=False, metavar="[-]")
def install(file: str | None, source: str | None) -> None:
    """Step 1: accept a new key, or the one on stdin (-), beside the present one."""
    path = _place(file)
    found = keys.load(path)
    key = _given(source)
    if key not in found:
        if len(found) >= KEYS_MAX:
            raise BadInput(f"{path}: {len(found)} keys already; mingle key rotate remove ID first")
        keys.write(path, [*found, key], new=False)
    if source is None:
        click.echo(key.hex())
    click.echo(
        f"mingle key: {key_id_of(key)} is accepted here; install it on every machine (mingle key "
        f"rotate install -), then on each: mingle key rotate use {key_id_of(key)}",
        err=True,
    )


@rotate.command()
@_FILE
@click.argument("key_id", metavar="ID")
def use(file: str | None, key_id: str) -> None:
    """Step 2: present this key, and still accept the others."""
    path = _place(file)
    found = keys.load(path)
    chosen = _chosen(found, key_id, path)
    others = [key for key in found if key != chosen]
    keys.write(path, [chosen, *others], new=False)
    rest = " ".join(map(key_id_of, others))
    click.echo(
        f"mingle key: {key_id} is presented; once it is on every machine: mingle key rotate remove "
        f"{rest or 'OLD'}",
        err=True,
    )


@rotate.command()
@_FILE
@click.argument("key_id", metavar="ID")
def remove(file: str | None, key_id: str) -> None:
    """Step 3: no longer accept this key."""
    path = _place(file)
    found = keys.load(path)
    chosen = _chosen(found, key_id, path)
    if chosen == found[0]:
        raise BadInput(
            f"{path}: {key_id} is the key that is presented; mingle key rotate use another first"
        )
    keys.write(path, [key for key in found if key != chosen], new=False)
    click.echo(f"mingle key: {key_id} is no longer accepted here", err=True)


def _chosen(found: tuple[bytes, ...], key_id: str, path: Path) -> bytes:
    chosen = [key for key in found if key_id_of(key) == key_id.lower()]
    if len(chosen) != 1:
        known = ", ".join(map(key_id_of, found))
        raise BadInput(f"{path}: no key {key_id[:16]!r}; there are {known}")
    return chosen[0]

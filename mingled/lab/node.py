"""One node of a LAN: a machine of its own, as far as its processes can tell."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path
from typing import IO

from mingled.errors import BadInput, MingleError
from mingled.lab.filters import drop_rules
from mingled.lab.namespaces import PRIVATE_DIRECTORIES, Holder
from mingled.lab.process import Process
from mingled.lab.switch import Switch, link_local

# What the caller's environment says about the caller's machine and not about the node.
_NOT_OURS = ("XDG_RUNTIME_DIR", "HOSTNAME", "TMPDIR")


class Node:
    """Made by `Lan`. `addresses` has one entry per network, eth0 first: IPv4 where the LAN has it,
    else IPv6, and that is link-local (without scope) where it has no IPv6 subnet. `addresses6` has
    the IPv6 ones in any case; `link_locals` what each card would give itself."""

    def __init__(
        self,
        number: int,
        name: str,
        networks: int,
        addresses: Sequence[IPv4Interface],
        addresses6: Sequence[IPv6Interface],
        switch: Switch,
        start: Callable[[], Holder],
    ) -> None:
        self.number = number
        self.name = name
        self.interfaces = tuple(f"eth{index}" for index in range(networks))
        self.link_locals = tuple(link_local(network, number) for network in range(networks))
        self.addresses6 = tuple(str(a.ip) for a in addresses6) or self.link_locals
        self.addresses = tuple(str(a.ip) for a in addresses) or self.addresses6
        self._ipv4, self._ipv6 = tuple(addresses), tuple(addresses6)
        self._switch = switch
        self._start = start
        self._holder: Holder | None = None
        self._processes: list[Process] = []
        self._dropped: list[str] = []

    @property
    def address(self) -> str:
        return self.addresses[0]

    @property
    def interface(self) -> str:
        return self.interfaces[0]

    @property
    def alive(self) -> bool:
        """Whether the node has power: not before the LAN is open, not after `kill`."""
        return self._holder is not None and self._holder.alive

    @property
    def holder(self) -> Holder:
        """The namespaces; its `pid` is the node's process 1."""
        if self._holder is None or not self._holder.alive:
            raise MingleError(f"{self.name} has no power: it was killed, or its LAN is closed.")
        return self._holder

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float | None = 60,
        env: Mapping[str, str | None] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        user: int | str | None = None,
        input: str | None = None,
        check: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end and catch what it prints.

        `env` changes the caller's environment (None takes a name out). Past `timeout_s` the
        command is killed and `subprocess.TimeoutExpired` raised; with `check`, a non-zero exit
        raises `subprocess.CalledProcessError`. A command that is not there is `BadInput`.
        """
        process = self.popen(
            argv,
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            cwd=cwd,
            user=user,
        )
        try:
            out, err = process.communicate(input, timeout=timeout_s)
        finally:
            process.kill()
            process.reap()
            self._processes.remove(process)
        done = subprocess.CompletedProcess(process.args, process.wait(), out, err)
        if check and done.returncode != 0:
            failure = subprocess.CalledProcessError(done.returncode, done.args, out, err)
            failure.add_note(f"on {self.name}, stdout: {out!r}, stderr: {err!r}")
            raise failure
        return done

    def popen(
        self,
        argv: Sequence[str],
        *,
        stdin: int | IO[str] | None = None,
        stdout: int | IO[str] | None = None,
        stderr: int | IO[str] | None = None,
        env: Mapping[str, str | None] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        user: int | str | None = None,
    ) -> Process:
        """Start a command in a session of its own, as ssh would. The LAN's end ends it.

        `user` is a uid or a name, and needs a LAN made as root.
        """
        environment = _environment(env)
        args = [os.fspath(word) for word in argv]
        self._check_command(args, environment)
        # nsenter could keep the directory, but as one of our mounts, not of the node's.
        chdir = ["setsid", "sh", "-c", 'cd -- "$0" && exec "$@"', os.fspath(cwd or os.getcwd())]
        entered = subprocess.Popen(
            [*self.holder.entering(*self._user_flags(user)), *chdir, *args],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=environment,
            text=True,
            errors="backslashreplace",
            start_new_session=True,
        )
        process = Process(entered, args)
        self._processes.append(process)
        return process

    def configure(self, lines: Sequence[str]) -> None:
        """Change this node's network as its root would: each line is one of `ip`'s commands without
        the word `ip`, such as "addr del 10.77.0.2/24 dev eth0", "link add docker0 type bridge" or
        "route add default via 10.77.0.1". The first that fails ends it with a `MingleError` that
        has its words; those before it stay done. `boot` does not repeat them.
        """
        self.holder.ip(lines)

    def drop(self, match: str) -> None:
        """Drop incoming packets that match an nft expression, such as "tcp dport 29500"."""
        try:
            self._firewall([*self._dropped, match])
        except MingleError as error:
            raise BadInput(f"nft does not take {match!r} on {self.name}: {error}") from error

    def undrop(self) -> None:
        """Let everything in again."""
        self._firewall([])

    def kill(self) -> None:
        """Cut the power: no packet leaves any more, and everything that ran here is dead."""
        holder = self.holder
        self._switch.set_cables(self.number, self.interfaces, up=False)
        holder.kill()
        self._switch.unplug(self.number, self.interfaces)
        for process in self._processes:
            process.reap()

    def boot(self) -> None:
        """Give power after `kill`: same name, addresses and firewall; nothing runs yet."""
        self.start()
        self.bring_up()

    def start(self) -> None:
        """Begin to make the namespaces; several nodes can do so at once."""
        if self.alive:
            raise BadInput(f"{self.name} is running already: kill it before it can boot.")
        self._release()
        self._holder = self._start()

    def bring_up(self) -> None:
        """Wait for the namespaces and connect them to the switch."""
        self.holder.wait_ready()
        self._switch.plug(self.number, self.interfaces, self.holder.pid)
        lines = ["link set lo up"]
        lines += [
            f"addr add {address} brd + dev {interface}"
            for interface, address in zip(self.interfaces, self._ipv4, strict=False)
        ]
        lines += [
            f"addr add {address} dev {interface} nodad"
            for interface, address in zip(self.interfaces, self._ipv6, strict=False)
        ]
        lines += [f"link set {interface} up" for interface in self.interfaces]
        if self._ipv4:
            # There is no gateway; without a route the kernel refuses what goes to everybody.
            lines += [
                f"route add {to} dev {self.interface}" for to in ("224.0.0.0/4", "255.255.255.255")
            ]
        self.holder.ip(lines)
        if self._dropped:
            self._firewall(self._dropped)

    def terminate(self) -> None:
        """Ask everything started by `popen` to end."""
        for process in self._processes:
            process.terminate()

    def close(self, deadline: float) -> None:
        """Wait for what was asked to `terminate` until `deadline` (monotonic), then power off."""
        for process in self._processes:
            try:
                process.wait(max(0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                break
        if self._holder is not None:
            self._holder.kill()
        for process in self._processes:
            process.reap()
        self._release()

    def _release(self) -> None:
        self._processes.clear()
        if self._holder is not None:
            self._holder.close()
            self._holder = None

    def _firewall(self, expressions: list[str]) -> None:
        self.holder.configure("nft", "-f", "-", script=drop_rules(expressions))
        self._dropped = expressions

    def _check_command(self, args: list[str], environment: Mapping[str, str]) -> None:
        if not args:
            raise BadInput(f"There is no command to run on {self.name}.")
        if shutil.which(args[0], path=environment.get("PATH", os.defpath)) is None and not any(
            Path(args[0]).is_relative_to(private) for private in PRIVATE_DIRECTORIES
        ):
            raise BadInput(f"{self.name} cannot run {args[0]!r}: no such command in PATH.")

    def _user_flags(self, user: int | str | None) -> list[str]:
        if user is None:
            return []
        try:
            entry = pwd.getpwnam(user) if isinstance(user, str) else pwd.getpwuid(user)
            uid, gid = entry.pw_uid, entry.pw_gid
        except KeyError:
            if isinstance(user, str):
                raise BadInput(f"There is no user {user!r} on this machine.") from None
            uid = gid = user
        if self.holder.rootless:
            raise BadInput(f"A rootless LAN has one user only: {self.name} cannot run as {user}.")
        return ["--setuid", str(uid), "--setgid", str(gid)]


def _environment(changes: Mapping[str, str | None] | None) -> dict[str, str]:
    environment: dict[str, str | None] = {
        name: value
        for name, value in os.environ.items()
        if name not in _NOT_OURS and not name.startswith("MINGLE")
    }
    environment.update(changes or {})
    return {name: value for name, value in environment.items() if value is not None}

"""Booted machines: Debian with systemd as process 1, each in a container, joined by a bridge."""

from __future__ import annotations

import contextlib
import functools
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TypeVar

from mingled.lab.namespaces import Holder
from mingled.lab.switch import Switch
from mingled.lab.tools import tool
from tests.lan.helpers import PATIENCE_S, Running

from .image import USER, hierarchies

SUBNET = "10.78.0"

PAUSE_S = 0.05
"""Between two looks at a machine: asking costs more of the two cores that its boot needs."""

T = TypeVar("T")

# A disk of its own over the common one, in memory: it outlives a reboot of the machine, and nothing
# outlives the machine. Its processes are in control groups of its own, since those of all machines
# would else be one another's. The shell is process 1 of its namespace: it ends when the pipe from
# the test does, and the kernel ends everything else.
_BOOT = r"""set -e
name=$1 image=$2 address=$3 groups=$4; shift 4
for group in $groups; do echo 0 > "$group/cgroup.procs"; done
stage=$(mktemp -d)
mount -nt tmpfs -o mode=755 tmpfs "$stage"
cd "$stage"
mkdir upper work root
mount -nt overlay -o "lowerdir=$image,upperdir=upper,workdir=work" overlay root
cat > "root/etc/systemd/network/10-host0.network" <<END
[Match]
Name=host0
[Network]
Address=$address/24
LinkLocalAddressing=no
IPv6AcceptRA=no
END
# It ends with 133 where the machine asks for a reboot, and wants to be started again.
power() {
    status=133
    while [ $status = 133 ]; do
        status=0
        systemd-nspawn --quiet --boot --register=no --keep-unit --link-journal=no --console=pipe \
            --resolv-conf=off --timezone=off --machine="$name" --directory="$stage/root" \
            --network-bridge=bridge0 "$@" </dev/null >/dev/null 2>>said || status=$?
    done
}
power "$@" &
echo ready
exec env --ignore-signal=CHLD cat >/dev/null
"""


class Machine:
    """Number n is called gpu<n> and has address n of SUBNET. `boot`, then `until_up`."""

    def __init__(self, number: int, switch: Switch, image: Path, shared: Sequence[Path]) -> None:
        self.name = f"gpu{number}"
        self.address = f"{SUBNET}.{number}"
        self._groups = [top / f"mingled-{os.getpid()}-{self.name}" for top in hierarchies()]
        for group in self._groups:
            group.mkdir()
        binds = [f"--bind-ro={path}" for path in shared]
        into = [tool("nsenter"), "--target", str(switch.holder.pid), "--net", "--"]
        apart = [tool("unshare"), "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        groups = " ".join(map(str, self._groups))
        words = [self.name, str(image), self.address, groups, *binds]
        self._holder = Holder(self.name, [*into, *apart, "sh", "-c", _BOOT, "sh", *words], [])
        self._started: list[subprocess.Popen[str]] = []
        self.init = 0  #: process 1 of the machine, as this machine counts

    def until_up(self, before: int = 0) -> None:
        """Back when it has booted. `before`: the process 1 that is not to count any more."""
        if not self._holder.pid:
            self._holder.wait_ready()
        self.init = until(lambda: self._process_1(before), f"{self.name} has no process 1")
        until(self._booted, f"{self.name} does not boot")

    def _process_1(self, but: int) -> int:
        shells = _children(self._holder.pid)
        spawners = [pid for shell in shells for pid in _children(shell)]
        for pid in (pid for spawner in spawners for pid in _children(spawner)):
            with contextlib.suppress(OSError):
                program = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
                if pid != but and program.rpartition(b"/")[2] in (b"systemd", b"init"):
                    return pid
        return 0

    def _booted(self) -> bool:
        done = self.root("systemctl", "is-system-running", check=False)
        # Degraded: some unit of Debian's cannot work in a container.
        return done.stdout.strip() in ("running", "degraded")

    def reboot(self) -> None:
        """As `reboot` does; back when it has booted again."""
        before = self.init
        with open(os.pidfd_open(before), "rb", buffering=0) as old:
            self.root("systemctl", "reboot", check=False)
            # A shutdown stops all processes for a moment. nsenter stops with what it has started,
            # is not woken up with it, and would leave it unreaped for the machine to wait for.
            until(lambda: self._is_down(old), f"{self.name} does not go down")
        self.until_up(before)

    def _is_down(self, process_1: IO[bytes]) -> bool:
        for entered in self._started:
            if entered.poll() is None:
                entered.send_signal(signal.SIGCONT)
        return bool(select.select([process_1], [], [], 0)[0])

    def close(self) -> None:
        """Off, at once."""
        self._holder.close()
        for group in self._groups:
            for below, _, _ in os.walk(group, topdown=False):
                until(functools.partial(_removed, Path(below)), f"{below} stays")

    # ------------------------------------------------------------ commands

    def words(self, *argv: str, user: str = "root") -> list[str]:
        """The command line, seen from here, of a command in the machine."""
        into = [tool("nsenter"), "--target", str(self.init), "--all", "--"]
        path = "PATH=/opt/mingled/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        clean = ["env", "-i", path, "LANG=C.UTF-8", "PYTHONDONTWRITEBYTECODE=1"]
        home = f"/home/{user}" if user != "root" else "/root"
        as_user = [] if user == "root" else ["runuser", "-u", user, "--"]
        return [*into, *clean, f"HOME={home}", *as_user, *argv]

    def root(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run as root, to its end."""
        return self._run(argv, "root", check)

    def user(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run as the ordinary user, to its end."""
        return self._run(argv, USER, check)

    def _run(self, argv: Sequence[str], user: str, check: bool) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.words(*argv, user=user),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=2 * PATIENCE_S,
        )
        assert not check or done.returncode == 0, f"{self.name}: {argv}: {done}"
        return done

    def start(self, *argv: str, user: str = USER) -> Running:
        """The same, started only."""
        process = subprocess.Popen(
            self.words(*argv, user=user),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return Running(process, f"{self.name}: {' '.join(argv)}")

    def end_all(self) -> None:
        """End every process of the ordinary user, and close our ends of the pipes of all that was
        started."""
        self.root("pkill", "-KILL", "-u", USER, check=False)
        for process in self._started:
            process.wait(PATIENCE_S)
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()
        self._started.clear()

    # ------------------------------------------------------------ the service

    def shown(self, name: str, unit: str = "mingled.service") -> str:
        """A property of a unit."""
        return self.root("systemctl", "show", unit, f"--property={name}", "--value").stdout.strip()

    @property
    def daemon(self) -> int:
        """The daemon's process ID in the machine."""
        return int(self.shown("MainPID"))

    def until_another_daemon(self, before: int) -> None:
        """Back when systemd has another one, ready."""
        until(
            lambda: self.daemon not in (0, before) and self.shown("ActiveState") == "active",
            f"{self.name} has no new daemon",
        )

    def journal(self, *matches: str) -> str:
        """What mingled has logged."""
        return self.root("journalctl", "--no-pager", "-o", "cat", "-u", "mingled", *matches).stdout


class Site:
    """Machines 1 to `count` on one switch, in a network namespace of its own."""

    def __init__(self, count: int, image: Path, shared: Sequence[Path]) -> None:
        _forget_the_dead()
        self._holder = Holder.start_switch(rootless=False)
        self._holder.wait_ready()
        self.machines: list[Machine] = []
        try:
            switch = Switch(self._holder, networks=1, snooping=False)
            for number in range(1, count + 1):
                self.machines.append(Machine(number, switch, image, shared))
            for machine in self.machines:
                machine.until_up()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for machine in self.machines:
            machine.close()
        self._holder.close()


def _forget_the_dead() -> None:
    """Control groups of machines whose test was killed have nobody in them, and stay."""
    for top in hierarchies():
        for group in top.glob("mingled-[0-9]*-gpu*"):
            if not Path("/proc", group.name.split("-")[1]).exists():
                for below, _, _ in os.walk(group, topdown=False):
                    _removed(Path(below))


def _children(pid: int) -> list[int]:
    try:
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except OSError:
        return []


def _removed(group: Path) -> bool:
    try:
        group.rmdir()
    except FileNotFoundError:
        pass
    except OSError:  # its last process is on the way out
        return False
    return True


def until(look: Callable[[], T], failing: str) -> T:
    """The first true answer. Asked again and again: a machine tells nobody outside how it is."""
    until_s = time.monotonic() + PATIENCE_S
    while not (found := look()):
        assert time.monotonic() < until_s, failing
        time.sleep(PAUSE_S)
    return found

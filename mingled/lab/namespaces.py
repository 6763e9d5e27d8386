"""Anonymous namespaces, held open by a process: what nodes and the switch between them are made of.

Nothing has a name under /run/netns, so nothing can be left behind: the kernel takes namespaces,
links and processes away when the holder ends. A holder ends with the process that made it, even
when that one is killed, because it reads from a pipe whose only other end is there.
(PR_SET_PDEATHSIG would fire when the parent *thread* ends; a LAN may outlive the thread that made
it.)
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mingled.errors import MingleError
from mingled.lab.tools import NEEDED, missing, search_path, tool

PRIVATE_DIRECTORIES = ("/tmp", "/run", "/dev/shm")

_USER = ("--user", "--map-root-user")
_SWITCH = ("--net", "--pid", "--fork", "--kill-child")
_NODE = (*_SWITCH, "--uts", "--ipc", "--mount", "--mount-proc")

# Interfaces made later take these over. With IPv6 on, addresses are usable at once: duplicate
# address detection would keep each "tentative" for a second.
_IPV6 = """
for conf in /proc/sys/net/ipv6/conf/all /proc/sys/net/ipv6/conf/default; do
    [ -d $conf ] || continue
    echo "$ipv6_off" > $conf/disable_ipv6
    echo 0 > $conf/accept_dad
done
"""

# The holder is process 1 of its node: orphans become its children, and with SIGCHLD ignored the
# kernel reaps them. Its end ends every process of the node.
_HOLD = """
echo ready
exec env --ignore-signal=CHLD cat >/dev/null
"""

_SWITCH_SCRIPT = f"set -e; cd /; ipv6_off=1\n{_IPV6}{_HOLD}"

# New directories are put together on a stage and moved in place, so that what stays shared below
# them can still be reached. A sysfs of our own shows this node's interfaces in /sys/class/net;
# where the kernel refuses it (a container without a full /sys), the old one does.
_NODE_SCRIPT = f"""set -e
cd /
ipv6_off=$1; hostname "$2"; shift 2
{_IPV6}
mount -nt tmpfs -o mode=1777 tmpfs /dev/shm
stage=/dev/shm/.stage
mkdir $stage
private() {{
    top=$1 mode=$2; shift 2
    mount -nt tmpfs -o "mode=$mode" tmpfs $stage
    for shared; do
        case $shared in
            "$top"/*) mkdir -p "$stage${{shared#"$top"}}"
                      mount -n --rbind "$shared" "$stage${{shared#"$top"}}" ;;
        esac
    done
    mount -n --move $stage "$top"
}}
private /tmp 1777 "$@"
private /run 0755 "$@"
if mount -nt sysfs sysfs $stage 2>/dev/null; then
    if mount -n --rbind /sys/fs/cgroup $stage/fs/cgroup 2>/dev/null; then
        mount -n --move $stage /sys
    else
        umount -n $stage
    fi
fi
rmdir $stage
{_HOLD}"""

_TRIAL_SCRIPT = """
hostname lab
mount -nt tmpfs tmpfs /dev/shm
ip link add bridge0 type bridge
ip link add port0 type veth peer name eth0
"""


@dataclass(frozen=True)
class Availability:
    """Whether this process may make LANs: as root, through user namespaces, or not at all."""

    kind: Literal["root", "rootless", "none"]
    reason: str  # one sentence


@functools.cache
def available() -> Availability:
    """Try once, for real, whether LANs can be made here; costs some 20 ms, then nothing."""
    if sys.platform != "linux":
        return Availability("none", f"A LAN in the lab needs Linux, and this is {sys.platform}.")
    for name in NEEDED:
        if sentence := missing(name):
            return Availability("none", sentence)
    said = ""
    if os.geteuid() == 0:
        said = _trial(())
        if not said:
            return Availability("root", "LANs are made as root.")
    said_rootless = _trial(_USER)
    if not said_rootless:
        return Availability(
            "rootless", f"LANs are made through user namespaces, as uid {os.geteuid()}."
        )
    return Availability("none", _why_not(said or said_rootless))


def _trial(user: tuple[str, ...]) -> str:
    """What the kernel has against it; empty if a node with a bridge could be made."""
    done = subprocess.run(
        [tool("unshare"), *user, *_NODE, "sh", "-ec", _TRIAL_SCRIPT],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        env=os.environ | {"PATH": search_path()},
        check=False,
    )
    if done.returncode == 0:
        return ""
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit code {done.returncode}"


def _why_not(said: str) -> str:
    if os.geteuid() == 0:
        hint = "in a container, start it with --privileged"
    elif _setting("kernel/apparmor_restrict_unprivileged_userns") == "1":
        hint = "run as root, or `sysctl kernel.apparmor_restrict_unprivileged_userns=0`"
    elif _setting("kernel/unprivileged_userns_clone") == "0":
        hint = "run as root, or `sysctl kernel.unprivileged_userns_clone=1`"
    elif _setting("user/max_user_namespaces") == "0":
        hint = "run as root, or `sysctl user.max_user_namespaces=10000`"
    else:
        hint = "run as root"
    return f"This machine does not let us make network namespaces ({said}): {hint}."


def _setting(name: str) -> str:
    try:
        return Path("/proc/sys", name).read_text().strip()
    except OSError:
        return ""


class Holder:
    """A set of namespaces and the process that holds them. `start`, then `wait_ready`.

    Several can be started before the first is waited for. `pid` is the holder's process 1, as
    seen from here.
    """

    def __init__(self, name: str, command: Sequence[str], enter: Sequence[str]) -> None:
        self.name = name
        self.pid = 0
        self.rootless = "--user" in enter
        self._enter = tuple(enter)
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  it lives as long as the holder
        # A session of its own: Ctrl-C in a terminal is for the maker, which then cleans up.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=os.environ | {"PATH": search_path()},
            start_new_session=True,
        )

    @classmethod
    def start_switch(cls, *, rootless: bool) -> Holder:
        """A bare network. Rootless, its user namespace is the one that all nodes live in."""
        user = _USER if rootless else ()
        command = [tool("unshare"), *user, *_SWITCH, "sh", "-c", _SWITCH_SCRIPT]
        return cls("the switch", command, [*_user_flags(rootless), "--net"])

    @classmethod
    def start_node(cls, name: str, *, switch: Holder, ipv6: bool, shared: Sequence[str]) -> Holder:
        """A whole node: network, host name, processes, mounts, IPC."""
        command = [tool("unshare"), *_NODE, "sh", "-c", _NODE_SCRIPT, "sh"]
        if switch.rootless:
            into = ["--target", str(switch.pid), *_user_flags(True)]
            command = [tool("nsenter"), *into, *command]
        flags = [*_user_flags(switch.rootless), "--net", "--uts", "--ipc", "--mount", "--pid"]
        return cls(name, [*command, "0" if ipv6 else "1", name, *shared], flags)

    def wait_ready(self) -> None:
        """Block until the namespaces are set up; a `MingleError` holds what went wrong."""
        assert self._process.stdout is not None
        with self._process.stdout as said:
            if said.readline() == b"ready\n":
                self.pid = child_of(self._process.pid) or 0
        if not self.pid:
            self.kill()
            raise MingleError(f"The lab could not make {self.name}: {self._last_words()}")

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def entering(self, *more: str) -> list[str]:
        """The command line that runs what is appended to it inside; `more` are nsenter's flags."""
        return [tool("nsenter"), "--target", str(self.pid), *self._enter, *more, "--"]

    def configure(self, name: str, *arguments: str, script: str) -> None:
        """Run `ip` or `nft` inside, fed with `script`; a `MingleError` says what it had to say."""
        done = subprocess.run(
            [*self.entering(), tool(name), *arguments],
            input=script,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
            raise MingleError(f"`{name}` failed on {self.name}: {said}")

    def ip(self, lines: Sequence[str]) -> None:
        self.configure("ip", "-batch", "-", script="\n".join(lines) + "\n")

    def kill(self) -> None:
        """End the namespaces and every process in them, at once; back when they are gone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid or self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def close(self) -> None:
        self.kill()
        self._said.close()

    def _last_words(self) -> str:
        self._said.seek(0)
        said = self._said.read().decode(errors="replace")
        return " ".join(said.split()) or "it ended without a word"


def child_of(pid: int) -> int | None:
    """The first child of the single-threaded process `pid`, if it has one by now."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return None
    return int(children[0]) if children else None


def _user_flags(rootless: bool) -> list[str]:
    return ["--user", "--preserve-credentials"] if rootless else []

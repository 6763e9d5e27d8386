"""The disk that all machines start from: Debian with systemd, and a virtual environment with what
mingled depends on. Made once, and kept in a folder outside the repository."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mingled.lab import available

REPOSITORY = Path(__file__).parents[2]
CGROUPS = Path("/sys/fs/cgroup")

PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "libnss-systemd", "libpam-systemd"),
    *("python3", "python3-venv", "iproute2", "procps", "iputils-ping"),
)

VENV = "/opt/mingled"

USER = "ada"
"""An ordinary user."""

_SETUP = f"""
set -e
# Each machine has its own.
rm -f /etc/hostname
echo uninitialized > /etc/machine-id
echo 'root:*' | chpasswd -e
useradd --create-home --shell /bin/bash {USER}
systemctl enable systemd-networkd
# Nobody waits for a network that is there at once, nor for a terminal.
systemctl mask systemd-networkd-wait-online console-getty getty@tty1 apt-daily.timer \
    apt-daily-upgrade.timer e2scrub_all.timer fstrim.timer dpkg-db-backup.timer
python3 -m venv {VENV}
{VENV}/bin/pip install --quiet --no-index --find-links /srv/wheels -r /srv/wheels/requirements.txt
rm -rf /srv/wheels
"""


def lacking() -> str:
    """Why no machine can be booted here; empty: nothing speaks against it."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "Machines are booted by root on Linux only."
    for name, package in (("debootstrap",) * 2, ("systemd-nspawn", "systemd-container")):
        if shutil.which(name) is None:
            return f"The command `{name}` is missing: install it with `apt install {package}`."
    if not _mirror():
        return "No apt source of this machine has its own release of Debian."
    return ""


def forbidden() -> str:
    """What about this machine nobody can install; empty: nothing."""
    possible = available()
    if possible.kind != "root":
        return possible.reason
    for line in Path("/proc/filesystems").read_text().splitlines():
        if line.split()[-1] == "overlay":
            break
    else:
        return "This kernel has no overlay file system."
    closed = [str(top) for top in hierarchies() if not os.access(top, os.W_OK)]
    return f"No control group can be made below {closed[0]}." if closed else ""


def hierarchies() -> Iterator[Path]:
    """Those of the control groups that systemd keeps its units in: where new ones may be made."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "name=systemd":
            yield CGROUPS / "systemd" / path.lstrip("/")
        elif controllers == "":
            unified = CGROUPS / "unified"
            yield (unified if unified.is_dir() else CGROUPS) / path.lstrip("/")


def refused(root: Path) -> str:
    """Why this machine starts no container, tried with one that does nothing; empty: it does."""
    words = ("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--private-network")
    done = subprocess.run(
        (*words, "--read-only", f"--directory={root}", "/bin/true"),
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode == 0:
        return ""
    return f"systemd-nspawn cannot start a container here: {done.stderr.strip()[-500:]}"


def folder() -> Path:
    """Where it is kept."""
    base = os.environ.get("XDG_CACHE_HOME") or "/var/cache"
    return Path(base, "mingled-tests")


def image() -> Path:
    """The root folder, made if need be; nobody may write to it."""
    with _locked():
        dependencies = _dependencies()
        word = "\n".join(
            (_SETUP, *PACKAGES, *dependencies, (REPOSITORY / "constraints.txt").read_text())
        )
        path = folder() / f"root-{hashlib.sha256(word.encode()).hexdigest()[:12]}"
        if not path.is_dir():
            _make(path, dependencies)
        return path


@contextmanager
def _locked() -> Iterator[None]:
    folder().mkdir(parents=True, exist_ok=True)
    with (folder() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(path: Path, dependencies: list[str]) -> None:
    """All or nothing. What earlier images left goes."""
    base = _base()
    for old in folder().glob("root-*"):
        shutil.rmtree(old)
    unready = path.with_name(f"unready-{path.name}")
    if unready.exists():  # an earlier run was cut off
        shutil.rmtree(unready)
    run("cp", "-a", "--reflink=auto", str(base), str(unready))
    wheels = unready / "srv/wheels"
    wheels.mkdir()
    (wheels / "requirements.txt").write_text("\n".join(dependencies) + "\n")
    version = run(
        *("chroot", str(unready), "python3", "-c"),
        "import sys; print('%d.%d' % sys.version_info[:2])",
    ).strip()
    run(
        *(sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(wheels)),
        *(
            "--only-binary=:all:",
            "--python-version",
            version,
            "-r",
            str(wheels / "requirements.txt"),
        ),
        *("-c", str(REPOSITORY / "constraints.txt")),
    )
    run("chroot", str(unready), "sh", "-c", _SETUP)
    unready.rename(path)


def _base() -> Path:
    """Debian alone."""
    release = _release()
    packages = hashlib.sha256(" ".join(PACKAGES).encode()).hexdigest()[:12]
    path = folder() / f"debian-{release}-{packages}"
    if not path.is_dir():
        unready = path.with_name(f"unready-{path.name}")
        if unready.exists():
            shutil.rmtree(unready)
        run(
            *("debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}"),
            *(release, str(unready), _mirror()),
        )
        unready.rename(path)
    return path


def _dependencies() -> list[str]:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    return list(project["dependencies"])


def _release() -> str:
    for line in Path("/etc/os-release").read_text().splitlines():
        name, _, value = line.partition("=")
        if name == "VERSION_CODENAME":
            return value.strip('"')
    return ""


def _mirror() -> str:
    """Where this machine's own packages come from; empty: apt does not know of its release."""
    if shutil.which("apt-get") is None or not _release():
        return ""
    said = run(
        *("apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)"),
        "Created-By: Packages",
    )
    for line in said.splitlines():
        uri, _, rest = line.partition(" ")
        if rest == f"{_release()} main":
            return uri
    return ""


def run(*words: str) -> str:
    """What it says; an AssertionError holds what went wrong."""
    done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, f"{words}: {done.stdout[-2000:]} {done.stderr[-2000:]}"
    return done.stdout

"""DeepSpeed and Open MPI: both read a file with a line for each node, `ADDRESS slots=N`.

The file lies among this user's private daemons (mode 0600), under the process that holds the lease;
once that has ended, the next one that writes such a file removes it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from mingled import client
from mingled.core.config import Config
from mingled.errors import BadInput, MingleError
from mingled.frameworks.dialects.model import SIZED, Dialect, Given, Spoken
from mingled.frameworks.dialects.pytorch import PROCESS
from mingled.namespaces import pid_namespace

SUFFIX = ".hosts"


def slots(config: Config) -> dict[str, int]:
    """Processes on each node, by its address, in node-rank order."""
    found: dict[str, int] = {}
    for member in sorted(config.members, key=lambda m: (m.node_rank, m.rank)):
        found[member.address] = found.get(member.address, 0) + member.nproc
    return found


def hostfile(config: Config) -> str:
    """The text. Raises `BadInput` where a node has no address that means the same everywhere."""
    found = slots(config)
    for address in found:
        if "%" in address:
            raise BadInput(
                f"job {config.job}: {address} is a link-local address, which means nothing in a "
                "hostfile; give the machines IPv4 or other IPv6 addresses"
            )
    return "".join(f"{address} slots={count}\n" for address, count in found.items())


def write(config: Config, text: str, owner: int) -> Path:
    """In a new file, for as long as process `owner` lives. Raises `DaemonError` or `MingleError`
    where it cannot be written."""
    import hashlib

    folder = client.private_folder()
    _sweep(folder)
    named = hashlib.sha256(config.job.encode()).hexdigest()[:16]
    path = folder / f"{pid_namespace()}-{owner}-{named}{SUFFIX}"
    fresh = path.with_suffix(f".{os.getpid()}")
    try:
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(text)
        fresh.replace(path)  # a tool that reads meanwhile sees the whole one
    except OSError as error:
        raise MingleError(
            f"job {config.job}: the hostfile {path} cannot be written: {error.strerror}; free "
            "some space there, or set XDG_RUNTIME_DIR"
        ) from None
    return path


def remove(values: Mapping[str, str]) -> None:
    """The one that an environment names, if it does."""
    path = values.get(PATH.name)
    if path:
        with contextlib.suppress(OSError):
            os.unlink(path)


def remove_at_exit(values: Mapping[str, str]) -> None:
    """The same, when this process ends in peace."""
    if PATH.name in values:
        import atexit

        atexit.register(remove, values)


def _sweep(folder: Path) -> None:
    """Those whose process has ended; of another pid namespace nobody here knows."""
    for path in folder.glob(f"{pid_namespace()}-*{SUFFIX}"):
        owner = path.name.split("-")[1]
        if owner.isdigit() and not _alive(int(owner)):
            with contextlib.suppress(OSError):
                path.unlink()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _path(config: Config, given: Given) -> str | None:
    return given.hostfile or None


PATH = Spoken("MINGLE_HOSTFILE", "path of the hostfile, mode 0600", _path)

DEEPSPEED = Dialect(
    name="deepspeed",
    reader="`deepspeed.init_distributed()` in each process; or the launcher: `deepspeed "
    "--hostfile=$MINGLE_HOSTFILE --no_ssh --node_rank=$NODE_RANK --master_addr=$MASTER_ADDR "
    "--master_port=$MASTER_PORT train.py`",
    forms=SIZED,
    variables=(*PROCESS, PATH),
    hostfile=hostfile,
)

OPENMPI = Dialect(
    name="openmpi",
    reader="`mpirun`, on one node (it reaches the others by ssh)",
    forms=SIZED,
    variables=(
        PATH,
        Spoken("OMPI_MCA_orte_default_hostfile", "the same, of Open MPI 4", _path),
        Spoken("PRTE_MCA_prte_default_hostfile", "the same, of Open MPI 5", _path),
    ),
    hostfile=hostfile,
)

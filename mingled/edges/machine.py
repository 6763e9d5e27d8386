"""What a machine tells others of itself: interfaces, GPUs, a hash of its machine-id. Blocks."""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path
from typing import Any

from mingled.core.messages import ADDRESSES_MAX, TEXT_CHARS_MAX, Nic
from mingled.net import interfaces
from mingled.net.facts import Link
from mingled.net.gpus import gpus

MACHINE_ID = Path("/etc/machine-id")

NICS_MAX = 64
"""Told of: a Docker host may have hundreds, and those with addresses come first."""

GPUS_MAX = 64
"""Told of: no machine has more, and a broken driver's tale must not fill a frame."""


def machine() -> str:
    """16 hexadecimal digits that two machines share only if one is a copy of the other; empty:
    there is no machine-id. The id itself is nobody's business (machine-id(5))."""
    try:
        text = MACHINE_ID.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
    return hashlib.sha256(f"mingled {text}".encode()).hexdigest()[:16] if text else ""


def nics() -> tuple[Nic, ...]:
    """All interfaces but loopback. Without netlink's library, which a daemon is not to keep."""
    found = interfaces.facts(exact=False).links
    links = [link for link in found if link.kind != "loopback"]
    links.sort(key=lambda link: not link.addresses)
    return tuple(_nic(link) for link in links[:NICS_MAX])


def _nic(link: Link) -> Nic:
    return Nic(
        name=link.name,
        kind=link.kind,
        speed_mbps=link.speed_mbits,
        mtu=link.mtu_bytes,
        addresses=tuple(f"{a.address}/{a.prefix}" for a in link.addresses[:ADDRESSES_MAX]),
    )


def gpu_names(root: Path = Path("/")) -> tuple[str, ...]:
    """One for each GPU of this machine: from NVML where its Python module is installed, else from
    the drivers' files."""
    names = _by_nvml() if root == Path("/") else None
    if names is None:
        names = _by_files(root)
    return tuple(name[:TEXT_CHARS_MAX] for name in names[:GPUS_MAX])


def _by_nvml() -> list[str] | None:
    """None: it cannot be asked."""
    try:
        nvml: Any = importlib.import_module("pynvml")  # of nvidia-ml-py, which nobody must have
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(n) for n in range(nvml.nvmlDeviceGetCount())]
        names = [nvml.nvmlDeviceGetName(handle) for handle in handles]
    except nvml.NVMLError:
        return None
    finally:
        nvml.nvmlShutdown()
    return [n.decode(errors="replace") if isinstance(n, bytes) else str(n) for n in names]


def _by_files(root: Path) -> list[str]:
    count = gpus({}, root)
    models = _models(root)
    if models:
        # The count knows which of them this container was given, the files show them all.
        return (models + models[-1:] * count)[:count]
    return ["AMD GPU"] * count


def _models(root: Path) -> list[str]:
    """As the NVIDIA driver calls them, by bus address."""
    found = []
    for path in sorted(root.glob("proc/driver/nvidia/gpus/*/information")):
        try:
            lines = path.read_text(errors="replace").splitlines()
        except OSError:
            continue
        for line in lines:
            name, colon, value = line.partition(":")
            if colon and name.strip() == "Model":
                found.append(value.strip())
    return found

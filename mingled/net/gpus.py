"""How many processes a node starts: `nproc_per_node` as torchrun means it, without importing torch.

The counterpart in torch 2.13: `determine_local_world_size` in `torch/distributed/run.py`, and
`device_count` in `torch/cuda/__init__.py`, which this follows in what CUDA_VISIBLE_DEVICES hides.
The driver's files stand in for NVML, so that counting costs microseconds and no library.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from mingled.core.words import NPROC_MAX
from mingled.errors import BadInput

_GIVE_NUMBER = "give the number itself, as in --nproc-per-node 8"


def processes(word: str, *, env: Mapping[str, str], root: Path = Path("/")) -> int:
    """The number that `word` stands for on this node, from 1 to 4,096.

    `gpu`: the NVIDIA, else AMD GPUs that `env` leaves visible. `cpu`: the CPUs that this process
    may run on. `auto`: GPUs where there are any, else CPUs. `root` is where `/proc`, `/sys` and
    `/dev` are found.

    A torch built without CUDA on a node with GPUs would itself mean CPUs by `auto`: the number that
    comes from here is handed to torchrun, so all agree on it.

    Raises:
        BadInput: no such word, a number out of range, no GPU for `gpu`, or a device that only its
            own torch build can count.
    """
    text = word.strip()
    if re.fullmatch(r"[+-]?[0-9]+", text):
        # Cut: Python refuses to convert thousands of digits with an error of its own.
        number = int(text[:20])
        if not 1 <= number <= NPROC_MAX:
            raise BadInput(f"--nproc-per-node {word}: must be 1 to {NPROC_MAX} processes")
        return number
    if text == "cpu":
        return _cpus()
    if text == "gpu":
        count = gpus(env, root)
        if count == 0:
            raise BadInput(f"--nproc-per-node gpu: {_why_no_gpu(env, root)}, or {_GIVE_NUMBER}")
        return count
    if text == "auto":
        if sys.platform != "linux":
            raise BadInput(
                f"--nproc-per-node auto: accelerators are counted on Linux only; {_GIVE_NUMBER}"
            )
        return gpus(env, root) or _cpus()
    if text == "xpu":
        raise BadInput(
            f"--nproc-per-node xpu: these devices cannot be counted without torch; {_GIVE_NUMBER}"
        )
    raise BadInput(f"--nproc-per-node {word}: not a number, nor gpu, cpu or auto; {_GIVE_NUMBER}")


def gpus(env: Mapping[str, str], root: Path = Path("/")) -> int:
    """GPUs that a torch process with this environment would see; 0 when there are none."""
    uuids = _nvidia(root)
    if uuids:
        return _visible(env.get("CUDA_VISIBLE_DEVICES"), uuids)
    count = _amd(root)
    if not count:
        return 0
    rocr, hip = env.get("ROCR_VISIBLE_DEVICES"), env.get("HIP_VISIBLE_DEVICES")
    if rocr is not None:
        # The runtime hides first, HIP then counts among what is left.
        count = min(count, len([part for part in rocr.split(",") if part.strip()]))
        return _visible(hip, [""] * count)
    return _visible(env.get("CUDA_VISIBLE_DEVICES") if hip is None else hip, [""] * count)


def _cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _nvidia(root: Path) -> list[str]:
    """UUIDs of this node's NVIDIA GPUs, empty strings where the driver does not tell.

    A container may see the whole host under /proc and still be given some of the device files
    only, so a GPU counts when its device file is there too.
    """
    uuids = []
    for folder in _entries(root / "proc/driver/nvidia/gpus"):
        facts = _facts(folder / "information", ":")
        minor = facts.get("Device Minor", "")
        if minor.isdecimal() and not (root / f"dev/nvidia{minor}").exists():
            continue
        uuids.append(facts.get("GPU UUID", ""))
    return uuids


def _amd(root: Path) -> int:
    """This node's AMD GPUs: the nodes of the kernel's compute topology that have SIMD units."""
    count = 0
    for folder in _entries(root / "sys/class/kfd/kfd/topology/nodes"):
        facts = _facts(folder / "properties", None)
        simds, minor = facts.get("simd_count", "0"), facts.get("drm_render_minor", "")
        if not simds.isdecimal() or int(simds) == 0:
            continue
        # As above: in a container the topology shows GPUs that it was not given.
        if minor.isdecimal() and int(minor) and not (root / f"dev/dri/renderD{minor}").exists():
            continue
        count += 1
    return count


def _visible(listed: str | None, uuids: Sequence[str]) -> int:
    """How many devices the list leaves visible; None is all (torch's `_parse_visible_devices`)."""
    if listed is None:
        return len(uuids)
    if listed.startswith("MIG-"):
        return 1 if uuids else 0  # CUDA gives a process the first MIG slice, whatever is listed
    if listed.startswith("GPU-"):
        return _visible_by_uuid(listed.split(","), uuids)
    ordinals: list[int] = []
    for part in listed.split(","):
        number = re.match(r"[+-]?[0-9]+", part.strip())
        ordinal = int(number[0][:20]) if number else -1
        if ordinal in ordinals:
            return 0  # a repeated device hides all
        if ordinal < 0:
            break  # what is no device ends the list
        ordinals.append(ordinal)
    return next((at for at, o in enumerate(ordinals) if o >= len(uuids)), len(ordinals))


def _visible_by_uuid(wanted: Sequence[str], uuids: Sequence[str]) -> int:
    """The same for a list of UUIDs, each perhaps shortened as long as one device matches."""
    if not all(uuids):
        # The driver keeps its UUIDs to itself: then what was listed is believed.
        return min(len(wanted), len(uuids))
    seen: set[str] = set()
    for part in wanted:
        matches = [uuid for uuid in uuids if part.startswith("GPU-") and uuid.startswith(part)]
        if len(matches) != 1:
            break
        if matches[0] in seen:
            return 0
        seen.add(matches[0])
    return len(seen)


def _why_no_gpu(env: Mapping[str, str], root: Path) -> str:
    """Why there is none, and what to do about it."""
    if _nvidia(root) or _amd(root):
        hiding = [
            f"{name}={env[name]}"
            for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
            if name in env
        ]
        return f"{' '.join(hiding)} hides every GPU of this node; unset it"
    return (
        "this node shows no GPU (no NVIDIA or AMD driver is loaded, or the container was not given "
        "its devices); use --nproc-per-node cpu"
    )


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _facts(path: Path, separator: str | None) -> dict[str, str]:
    """A driver's file of `name: value` or `name value` lines; nothing where it cannot be read."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return {}
    pairs = (line.split(separator, 1) for line in lines)
    return {pair[0].strip(): pair[1].strip() for pair in pairs if len(pair) == 2}

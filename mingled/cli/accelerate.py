"""An `accelerate launch` command line: read, checked, and given the sealed values.

Accelerate (1.15, `accelerate/commands/launch.py`) takes the number of machines and processes, the
machine's rank and the main process's place from flags or from its configuration file, never from
the environment; a flag beats the file. `--num_processes` counts all machines, and accelerate gives
each of them the same share, so that uneven machines must be refused. Without `--multi_gpu`, or a
file that says so, each machine trains alone on CPUs.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from mingled.cli import prefixes
from mingled.cli.programs import Flag, Program, check_same, integer, last
from mingled.cli.resolved import Resolved
from mingled.core.config import Config
from mingled.errors import BadInput
from mingled.frameworks.environment import defaults

_FLAGS = {
    "with": """
        config-file mixed-precision num-processes num-machines num-cpu-threads-per-process
        dynamo-backend dynamo-mode gpu-ids machine-rank main-process-ip main-process-port tee
        log-dir role rdzv-backend rdzv-conf max-restarts monitor-interval vm env
        main-training-function deepspeed-config-file zero-stage offload-optimizer-device
        offload-param-device offload-optimizer-nvme-path offload-param-nvme-path
        gradient-accumulation-steps gradient-clipping zero3-init-flag zero3-save-16bit-model
        deepspeed-hostfile deepspeed-exclusion-filter deepspeed-inclusion-filter
        deepspeed-multinode-launcher deepspeed-moe-layer-cls-names fsdp-version
        fsdp-offload-params fsdp-min-num-params fsdp-sharding-strategy fsdp-reshard-after-forward
        fsdp-auto-wrap-policy fsdp-transformer-layer-cls-to-wrap fsdp-backward-prefetch
        fsdp-state-dict-type fsdp-forward-prefetch fsdp-use-orig-params
        fsdp-cpu-ram-efficient-loading fsdp-sync-module-states fsdp-activation-checkpointing
        fsdp-activation-checkpointing-offload megatron-lm-tp-degree megatron-lm-use-custom-fsdp
        megatron-lm-no-load-optim megatron-lm-eod-mask-loss
        megatron-lm-overlap-cpu-optimizer-d2h-h2d megatron-lm-no-save-optim
        megatron-lm-optimizer-cpu-offload megatron-lm-use-precision-aware-optimizer
        megatron-lm-decoder-last-pipeline-num-layers megatron-lm-pp-degree
        megatron-lm-num-micro-batches megatron-lm-sequence-parallelism
        megatron-lm-recompute-activations megatron-lm-use-distributed-optimizer
        megatron-lm-gradient-clipping megatron-lm-recompute-granularity
        megatron-lm-recompute-method megatron-lm-recompute-num-layers
        megatron-lm-attention-backend megatron-lm-expert-model-parallel-size
        megatron-lm-context-parallel-size megatron-lm-attention-dropout megatron-lm-hidden-dropout
        megatron-lm-attention-softmax-in-fp32 megatron-lm-expert-tensor-parallel-size
        megatron-lm-calculate-per-token-loss megatron-lm-use-rotary-position-embeddings
        fp8-backend fp8-margin fp8-interval fp8-format fp8-amax-history-len fp8-amax-compute-algo
        fp8-override-linear-precision fp8-opt-level fp8-enable-fsdp-float8-all-gather
        fp8-pad-inner-dim aws-access-key-id aws-secret-access-key mpirun-hostfile
        parallelism-config-dp-replicate-size parallelism-config-dp-shard-size
        parallelism-config-tp-size parallelism-config-cp-size parallelism-config-cp-backend
        parallelism-config-cp-comm-strategy parallelism-config-sp-size
        parallelism-config-sp-backend parallelism-config-sp-seq-length
        parallelism-config-sp-seq-length-is-variable parallelism-config-sp-attn-implementation
    """,
    "without": """
        help quiet cpu multi-gpu tpu enable-cpu-affinity dynamo-use-fullgraph dynamo-use-dynamic
        dynamo-use-regional-compilation use-deepspeed use-fsdp use-parallelism-config
        use-megatron-lm same-network module no-python tpu-cluster no-tpu-cluster tpu-use-sudo
        downcast-bf16 fp8-use-autocast-during-eval debug
    """,
}

LAUNCH = Program(
    name="accelerate launch",
    version="accelerate 1.15",
    with_value=prefixes.words(_FLAGS["with"]),
    without_value=prefixes.words(_FLAGS["without"]),
    short={"-h": "help", "-q": "quiet", "-t": "tee", "-m": "module"},
    valueless="say it in accelerate's configuration file",
)

KINDS = ("multi-gpu", "use-deepspeed", "use-fsdp", "use-megatron-lm")
"""Flags that have accelerate start several processes."""

KINDS_OF_FILE = ("NO", "MULTI_CPU")
"""What a file's `distributed_type` may say without having it start several."""

_OURS = (
    *("num-machines", "num-processes", "machine-rank"),
    *("main-process-ip", "main-process-port", "same-network"),
)

FILE_BYTES_MAX = 256 * 1024
"""Of a configuration file: `accelerate config` writes a kilobyte."""


class AccelerateLine(NamedTuple):
    """What a command line says to `accelerate launch`. Indexes count the words of `argv`."""

    argv: tuple[str, ...]
    flags: tuple[Flag, ...]
    insert_at: int  #: before the script, and a `--` before it
    machines: int | None
    processes: int | None  #: of all machines together
    machine_rank: int | None

    @property
    def nnodes(self) -> tuple[int, int] | None:
        """(min, max) machines, as torchrun's line has them."""
        return None if self.machines is None else (self.machines, self.machines)

    @property
    def node_rank(self) -> int | None:
        return self.machine_rank

    @property
    def direct(self) -> bool:
        """Flags are inserted where accelerate's own are, whatever stands before it."""
        return True

    def flag(self, name: str) -> Flag | None:
        return last(self.flags, name)


def read(cmd: Sequence[str]) -> AccelerateLine | None:
    """`cmd` as a line of `accelerate launch`, `accelerate-launch` or `python -m
    accelerate.commands.launch`, also behind what `mingled.cli.prefixes` knows; None where it is
    something else. Raises `BadInput` where accelerate would refuse it."""
    argv = tuple(cmd)
    prefix = prefixes.read(argv, prefixes.ACCELERATE)
    if prefix is None:
        return None
    begin = prefix.end
    if not prefix.launch:
        if argv[begin : begin + 1] != ("launch",):
            return None  # `accelerate config` and the like train nothing
        begin += 1
    flags, at = LAUNCH.flags(argv, begin)
    script = at + 1 if argv[at : at + 1] == ("--",) else at
    if any(flag.name == "help" for flag in flags):
        raise BadInput("accelerate launch --help starts nothing: run it without mingle-wait")
    if script >= len(argv):
        raise BadInput("accelerate launch names no training script; add it, as in train.py")
    machines, processes = last(flags, "num-machines"), last(flags, "num-processes")
    rank = last(flags, "machine-rank")
    return AccelerateLine(
        argv,
        flags,
        at,
        _count(machines),
        _count(processes),
        integer(rank) if rank is not None else None,
    )


def _count(flag: Flag | None) -> int | None:
    if flag is None:
        return None
    count = integer(flag)
    if count < 1:
        raise BadInput(f"accelerate launch {flag.text}: want 1 or more")
    return count


def check(
    line: AccelerateLine,
    *,
    job: str,
    nnodes: tuple[int, int] | None,
    node_rank: int | None,
    nproc: str | None,
    env: Mapping[str, str],
) -> Resolved:
    """Merges mingle-wait's own flags (None: not given) with the line, and with accelerate's
    configuration file for the processes of each machine. Raises `BadInput` as torchrun's does."""
    _check_away(line, job)
    own_nodes = None if nnodes is None or nnodes[0] != nnodes[1] else str(nnodes[0])
    for name, ours, own, value in (
        ("num-machines", "--nnodes", own_nodes, line.machines),
        ("machine-rank", "--node-rank", _text(node_rank), line.machine_rank),
    ):
        check_same(job, "accelerate launch", ours, own, line.flag(name), _text(value))
    sizes = nnodes or line.nnodes
    if sizes is None:
        raise BadInput(
            f"job {job}: no node count is given, so accelerate would train alone on each machine; "
            "add --nnodes N to mingle-wait, the same on every machine"
        )
    settings = File.of(line, job, defaults(env))
    if settings.environment not in ("", "LOCAL_MACHINE"):
        raise BadInput(
            f"job {job}: {settings.path} is for {settings.environment}, whose machines are not "
            "yours to start; name another one with --config_file, or run accelerate config"
        )
    share = nproc or _share(line, settings, job, sizes)
    if sizes[1] > 1 and line.flag("cpu") is not None:
        raise BadInput(
            f"job {job}: accelerate's --cpu starts processes on this machine alone; delete it, and "
            "write Accelerator(cpu=True) in the script"
        )
    return Resolved(sizes, share, line.machine_rank if node_rank is None else node_rank)


def _share(line: AccelerateLine, settings: File, job: str, sizes: tuple[int, int]) -> str:
    """The processes of one machine: what is said of all of them, divided."""
    if line.processes is not None:
        said = line.flag("num-processes")
        where = said.text if said is not None else ""
        if sizes[0] != sizes[1]:
            raise BadInput(
                f"job {job}: {where} counts all machines, and how many will come is open "
                f"({sizes[0]}:{sizes[1]}); delete it, and add --nproc-per-node N to mingle-wait"
            )
        if line.processes % sizes[0]:
            raise BadInput(
                f"job {job}: {where} counts all machines, and {line.processes} processes do not "
                f"divide evenly among {sizes[0]}; accelerate gives each the same share"
            )
        return str(line.processes // sizes[0])
    machines = settings.machines or 1
    if settings.processes and settings.processes % machines == 0:
        return str(settings.processes // machines)
    return "1"


def _check_away(line: AccelerateLine, job: str) -> None:
    """Refuses what would have the machines meet elsewhere."""
    for name in ("main-process-ip", "main-process-port", "rdzv-backend"):
        said = line.flag(name)
        if said is not None and not (name == "rdzv-backend" and said.value == "static"):
            raise BadInput(
                f"job {job}: {said.text} leads accelerate away from the job; delete it: "
                "mingle-wait hands it the place of the main process"
            )
    tpu = line.flag("tpu")
    if tpu is not None:
        raise BadInput(
            f"job {job}: accelerate's --tpu starts its machines by itself; run it without "
            "mingle-wait"
        )


def rewrite(line: AccelerateLine, config: Config, env: Mapping[str, str]) -> list[str]:
    """The line with the sealed values as flags. Raises `BadInput` where machines have different
    numbers of processes, naming them, or where an address has a scope."""
    counts = {f"{m.host} ({m.address})": m.nproc for m in config.members}
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{where} {count}" for where, count in list(counts.items())[:8])
        raise BadInput(
            f"job {config.job}: accelerate gives every machine the same number of processes, and "
            f"they are to run {said}; give all of them one --nproc-per-node, or use torchrun"
        )
    if "%" in config.master_addr:
        raise BadInput(
            f"job {config.job}: the machines reach each other by IPv6 link-local addresses only "
            f"(rank 0 is {config.master_addr}), and accelerate takes none; give them IPv4 or other "
            "IPv6 addresses"
        )
    taken = {at for flag in line.flags if flag.name in _OURS for at in range(flag.first, flag.end)}
    kept = [word for at, word in enumerate(line.argv[: line.insert_at]) if at not in taken]
    flags = [
        f"--num_machines={config.nnodes}",
        f"--num_processes={config.world_size}",
        f"--machine_rank={config.rank}",
        f"--main_process_ip={config.master_addr}",
        f"--main_process_port={config.master_port}",
        "--same_network",
    ]
    if config.world_size > 1 and not _starts_several(line, config, env):
        flags.insert(0, "--multi_gpu")  # on CPUs as well: it only says to start several
    return [*kept, *flags, *line.argv[line.insert_at :]]


def _starts_several(line: AccelerateLine, config: Config, env: Mapping[str, str]) -> bool:
    if any(line.flag(kind) is not None for kind in KINDS):
        return True
    kind = File.of(line, config.job, env).distributed_type
    return bool(kind) and kind not in KINDS_OF_FILE


# ---------------------------------------------------------------- accelerate's configuration file


class File(msgspec.Struct, frozen=True):
    """What of it matters here; all empty where there is none."""

    path: str = ""
    machines: int | None = None
    processes: int | None = None
    distributed_type: str = ""
    environment: str = ""  #: `compute_environment`

    @classmethod
    def of(cls, line: AccelerateLine, job: str, env: Mapping[str, str]) -> File:
        """The one that `--config_file` names, else accelerate's default one. Raises `BadInput`
        where the former cannot be read."""
        said = line.flag("config-file")
        path = Path(said.value or "") if said is not None else _default(env)
        try:
            with path.open(encoding="utf-8") as file:
                text = file.read(FILE_BYTES_MAX)
        except (OSError, UnicodeError) as error:
            if said is None:
                return cls()
            reason = getattr(error, "strerror", None) or error
            raise BadInput(
                f"job {job}: accelerate's --config_file {path} cannot be read ({reason}); correct "
                "it, or delete it"
            ) from None
        values = _values(text, as_json=path.suffix == ".json")
        return cls(
            str(path),
            _number(values, "num_machines"),
            _number(values, "num_processes"),
            values.get("distributed_type", ""),
            values.get("compute_environment", ""),
        )


def _default(env: Mapping[str, str]) -> Path:
    """As `accelerate/commands/config/config_args.py` finds it."""
    cache = env.get("XDG_CACHE_HOME", "~/.cache")
    home = Path(os.path.expanduser(env.get("HF_HOME", os.path.join(cache, "huggingface"))))
    yaml, old = (home / "accelerate" / f"default_config.{kind}" for kind in ("yaml", "json"))
    return old if old.is_file() and not yaml.is_file() else yaml


def _values(text: str, *, as_json: bool) -> dict[str, str]:
    """The top level's scalars. `accelerate config` writes YAML of one `key: value` a line; what is
    written otherwise is accelerate's to refuse."""
    if as_json:
        try:
            found = json.loads(text)
        except ValueError:
            return {}
        return {k: str(v) for k, v in found.items()} if isinstance(found, dict) else {}
    pairs = re.findall(r"^(\w+):[ \t]*([^\s#]+)", text, re.MULTILINE)
    return {key: value.strip("'\"") for key, value in pairs}


def _number(values: Mapping[str, str], key: str) -> int | None:
    text = values.get(key, "")
    return int(text) if re.fullmatch(r"[0-9]{1,6}", text) and int(text) else None


def _text(number: int | None) -> str | None:
    return None if number is None else str(number)

"""JAX. `jax.distributed.initialize()` reads the coordinator's address and the local devices from
the environment (`jax/_src/distributed.py`, JAX 0.10), the number of processes and the process ID
from its arguments alone: `mingled.jax.initialize` gives them, or a script reads them itself."""

from __future__ import annotations

from mingled.core.config import Config
from mingled.core.words import Form
from mingled.frameworks.dialects.model import ALL, Dialect, Given, Spoken
from mingled.wording import endpoint


def coordinator_address(config: Config) -> str:
    """Rank 0's address and port, as JAX's gRPC wants them."""
    return endpoint(config.master_addr, config.master_port)


def local_device_ids(config: Config, wishes: dict[str, str]) -> list[int] | None:
    """Of several processes on one node each takes one device, as JAX has it under Slurm and Open
    MPI; None: all that it sees. A user who has divided the devices has done so for all of them."""
    divided = any(
        wishes.get(name)
        for name in ("JAX_LOCAL_DEVICE_IDS", "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
    )
    return [config.local_rank] if config.local_world_size > 1 and not divided else None


def _local_device_ids(config: Config, given: Given) -> int | None:
    found = local_device_ids(config, dict(given.wishes))
    return None if found is None else found[0]


JAX = Dialect(
    name="jax",
    reader="`jax.distributed.initialize()` reads the first and the last; a script gives it "
    'the others (`num_processes=int(os.environ["JAX_NUM_PROCESSES"])`, `process_id=...`), or '
    'calls `mingled.jax.initialize("bert", ...)`',
    forms=ALL,
    one_process=True,
    variables=(
        Spoken(
            "JAX_COORDINATOR_ADDRESS",
            "rank 0's address and port",
            lambda c, g: coordinator_address(c),
        ),
        Spoken(
            "JAX_NUM_PROCESSES",
            "processes in the job",
            lambda c, g: None if c.form is Form.PLAIN else c.world_size,
        ),
        Spoken("JAX_PROCESS_ID", "rank of this process", lambda c, g: c.global_rank),
        Spoken(
            "JAX_LOCAL_DEVICE_IDS",
            "its device, where several processes share a node; not where you set it, or "
            "`CUDA_VISIBLE_DEVICES`",
            _local_device_ids,
        ),
    ),
)

"""What `torchrun --rdzv-backend mingle` was asked for, as a request to the daemon.

torch hands a handler what its command line said as `RendezvousParameters` (of
`torch/distributed/elastic/rendezvous/api.py`, torch 2.6 to 2.13): run id, sizes, an endpoint, the
local address, and `--rdzv-conf` as text.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mingled.core.local import PAUSE_MAX_S, STOP_GRACE_S, Join
from mingled.core.peers import listed
from mingled.core.software import wanted
from mingled.core.words import Form, JobId
from mingled.errors import BadInput
from mingled.frameworks.environment import STORE_INTERFACE_ONLY, asked_by_environment, defaults
from mingled.frameworks.membership import BEAT_S
from mingled.frameworks.secrets import secrets
from mingled.wording import split_warning

if TYPE_CHECKING:
    from torch.distributed.elastic.rendezvous.api import RendezvousParameters

BACKEND = "mingle"

JOIN_TIMEOUT_S = 600.0
"""torch's own: `join_timeout` of its dynamic rendezvous."""

NO_RUN_ID = "none"
"""What torchrun passes where `--rdzv-id` is not given."""

OURS: dict[str, str] = {
    "rank": "node rank to have; 0 leads",
    "join_timeout": "seconds to wait for the others, 600 as in torch",
    "last_call_timeout": "with MIN:MAX: seconds in which nobody new comes, then it starts; 3",
    "stop_grace": "seconds that workers may take to stop before the next round is sealed; 35",
    "interface": "names or addresses of this node to use alone, `+` between",
    "subnet": "... or what lies in these subnets, `+` between",
    "peers": "hosts to ask where multicast does not reach, or a DNS name of them all, `+` between",
    "require_same": "what must be the same for all, `+` between: torch, git, ...",
    "secret_file": "path of a file that every agent has; nobody gets in without",
    "store_interface_only": "true: rank 0's store listens on MASTER_ADDR alone",
    "any_user": "true: other users' agents are welcome",
    "wait": "false: refuse, where a round runs already, instead of waiting for the next",
}
"""Keys of `--rdzv-conf` and what they mean here. Its values cannot hold a comma."""

TORCHS = (
    "timeout",
    "close_timeout",
    "heartbeat_timeout",
    "keep_alive_interval",
    "keep_alive_max_attempt",
    "read_timeout",
    "is_host",
    "store_type",
    "use_libuv",
)
"""Keys of torch's own backends, set by torchrun itself (`timeout`) or by people who used those
before. What they ask for has no counterpart here: they are passed over."""

COMMANDS = ("torchrun", "torch/distributed/run.py", "torch/distributed/launch.py", "accelerate")
"""What takes `--max-restarts` on its command line, as `sys.argv[0]` ends."""

_TRUE, _FALSE = ("1", "true", "t", "yes", "y"), ("0", "false", "f", "no", "n")
"""As torch reads them (`RendezvousParameters.get_as_bool`)."""


def join_of(parameters: RendezvousParameters) -> Join:
    """Raises `BadInput`, in one sentence that names what to add or delete."""
    run_id = str(parameters.run_id)
    if run_id in ("", NO_RUN_ID):
        raise BadInput(
            "torchrun --rdzv-backend mingle needs a run id, the same on every machine and this "
            "job's alone: add --rdzv-id NAME"
        )
    job = JobId(run_id)
    endpoint = (parameters.endpoint or "").strip()
    if endpoint:
        raise BadInput(
            f"job {job}: --rdzv-endpoint {endpoint} is for torch's own backends, and mingled finds "
            "rank 0 by itself: delete --rdzv-endpoint, or --rdzv-backend mingle"
        )
    conf = _Conf(job, parameters.config)
    low, high = int(parameters.min_nodes), int(parameters.max_nodes)
    last_call_s = conf.seconds("last_call_timeout", None)
    interfaces = conf.listed("interface")
    if parameters.local_addr and not interfaces:
        interfaces = local_addresses(job, parameters.local_addr)
    secret, key_id = secrets(conf.text("secret_file"), conf.environ)
    return Join(
        job=job,
        form=Form.LAUNCHER,
        size_min=low,
        size_max=high,
        rank=conf.number("rank"),
        timeout_s=conf.seconds("join_timeout", JOIN_TIMEOUT_S),
        last_call_s=None if low == high else last_call_s,
        wait=conf.flag("wait", True),
        any_user=conf.flag("any_user", False),
        stop_grace_s=conf.seconds("stop_grace", STOP_GRACE_S) or 0.0,
        store=True,
        store_interface_only=conf.flag(
            "store_interface_only", asked_by_environment(job, STORE_INTERFACE_ONLY)
        ),
        peers=conf.listed("peers"),
        interfaces=interfaces,
        subnets=conf.listed("subnet"),
        heartbeat_s=BEAT_S,
        listens=True,
        require_same=wanted(conf.listed("require_same"), f"job {job}: "),
        secret=secret,
        key_id=key_id,
    )


class _Conf:
    """`--rdzv-conf`, a word for each key, checked."""

    def __init__(self, job: JobId, values: Mapping[str, Any]) -> None:
        self._job = job
        self._values = values
        self.environ = defaults(os.environ)
        unknown = [key for key in values if key not in OURS and key not in TORCHS]
        if unknown:
            raise BadInput(
                f"job {job}: --rdzv-conf {unknown[0]}=... is not known to mingled: delete it; "
                f"there are {', '.join(OURS)}"
            )

    def number(self, key: str) -> int | None:
        value = self._values.get(key)
        if value is None:
            return None
        try:
            return int(value)
        except (TypeError, ValueError):
            raise self._bad(key, "want a whole number") from None

    def seconds(self, key: str, default: float | None) -> float | None:
        value = self._values.get(key)
        if value is None:
            return default
        try:
            seconds = float(value)
        except (TypeError, ValueError):
            raise self._bad(key, "want seconds, as in 60") from None
        if not 0 <= seconds <= PAUSE_MAX_S:
            raise self._bad(key, f"want 0 to {PAUSE_MAX_S} seconds")
        return seconds

    def flag(self, key: str, default: bool) -> bool:
        value = str(self._values.get(key, default)).lower()
        if value not in (*_TRUE, *_FALSE):
            raise self._bad(key, "want true or false")
        return value in _TRUE

    def listed(self, key: str) -> tuple[str, ...]:
        """Else as `MINGLE_INTERFACE`, `MINGLE_PEERS` and the like say."""
        value = self._values.get(key)
        if value is None:
            return listed([self.environ.get(f"MINGLE_{key.upper()}", "")])
        found = listed([str(value).replace("+", " ")])
        if not found:
            raise self._bad(key, "there is nothing in it; is a shell variable not set?")
        return found

    def text(self, key: str) -> str:
        return str(self._values.get(key, ""))

    def _bad(self, key: str, want: str) -> BadInput:
        return BadInput(f"job {self._job}: --rdzv-conf {key}={self._values[key]}: {want}")


def local_addresses(job: JobId, name: str) -> tuple[str, ...]:
    """`--local-addr`, which torch takes as an address or a name of this node. Raises `BadInput`
    where it is neither; whether this node has the address is checked by the daemon."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, ValueError) as error:  # what is no host name at all is a UnicodeError
        reason = getattr(error, "strerror", None) or error
        raise BadInput(
            f"job {job}: --local-addr {name} is no address of {socket.gethostname()} and resolves "
            f"to none ({reason}); see mingle interfaces, or delete --local-addr"
        ) from None
    return tuple(dict.fromkeys(str(place[4][0]) for place in found))


def remarks(join: Join, argv: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """What to say at the start: of sizes that probably were not meant so."""
    found = []
    if join.size_max == 1:
        found.append("one node, which trains alone: add --nnodes N, the same on every machine")
    if join.size_min < join.size_max:
        if not _restarts(argv, environ):
            found.append(
                f"{join.size_min}:{join.size_max} nodes, but torchrun's --max-restarts is 0: where "
                "the workers of a node that is lost make the others' fail, the others end, too; "
                "add --max-restarts 10, or wrap the training in mingled.torch.hold_peer_loss"
            )
        warning = split_warning(str(join.job), join.size_min, join.size_max)
        if warning is not None:
            found.append(warning.removeprefix(f"job {join.job}: "))
    return found


def _restarts(argv: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Does torchrun's command line, or its environment, speak of restarts? Who calls torch's
    launcher from Python says it there (`LaunchConfig`, 3 unless given), where it is not seen."""
    if not argv or not argv[0].endswith(COMMANDS):
        return True
    if environ.get("PET_MAX_RESTARTS", "0") != "0":
        return True
    return any(word.replace("_", "-").startswith("--max-restarts") for word in argv)

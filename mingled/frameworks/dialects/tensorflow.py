"""TensorFlow's TF_CONFIG (`tf.distribute.cluster_resolver.TFConfigClusterResolver`): a JSON object
with the address and port of every worker, and which of them this one is.

Rank 0's port is the proven one. The others' follow from it: the n-th process of any node listens n
ports above it. No other node has tried those; each worker looks whether its own is free before it
starts.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence

from mingled.core import codec
from mingled.core.config import Config, Member
from mingled.core.local import Join
from mingled.core.words import Form
from mingled.frameworks.dialects.model import SIZED, Dialect, Spoken
from mingled.wording import endpoint

PORT_MAX = 65_535


def workers(config: Config) -> list[str]:
    """`ADDRESS:PORT` of every worker, by rank."""
    return [endpoint(m.address, _port(config, m)) for m in config.members]


def _port(config: Config, member: Member) -> int:
    return config.master_port + member.local_index


def _tf_config(config: Config) -> str:
    task = {"type": "worker", "index": config.rank}
    said = {"cluster": {"worker": workers(config)}, "task": task}
    return codec.json(said).decode()


def _own_port(config: Config) -> str | None:
    own = _port(config, config.members[config.rank])
    if own > PORT_MAX:
        return f"has no port for the {config.local_rank + 1}th process of a node above {PORT_MAX}"
    if _busy(own, config.members):
        return (
            f"gives this worker port {own}, which another program uses on {socket.gethostname()}; "
            "end it (ss -ltnp shows which), or start the job again under another ID, whose ports "
            "are others"
        )
    return None


def _busy(port: int, members: Sequence[Member]) -> bool:
    six = any(":" in m.address for m in members)
    with socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_STREAM) as sock:
        # What has just ended there is no obstacle: TensorFlow's server sets this as well.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("", port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def _roster(join: Join) -> str | None:
    if join.form is Form.PLAIN:
        return (
            "lists every worker, and with --rank alone nobody knows them; add --world-size W, the "
            "same on every machine"
        )
    return None


TENSORFLOW = Dialect(
    name="tensorflow",
    reader="`tf.distribute.MultiWorkerMirroredStrategy`",
    forms=SIZED,
    one_process=True,
    variables=(
        Spoken(
            "TF_CONFIG",
            "every worker's address and port, and this one's index. The n-th process of a node "
            "listens n ports above `MASTER_PORT`; each looks whether its own is free",
            lambda c, g: _tf_config(c),
        ),
    ),
    refusal=_roster,
    check=_own_port,
)

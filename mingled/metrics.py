"""A daemon's numbers under the names that Prometheus gets them by."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import msgspec

from mingled import __version__
from mingled.core.events import Rung
from mingled.core.words import Form
from mingled.errors import CODES
from mingled.meters import WAITS_S, Meters

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

EVERY_S = 15.0
"""A file for node_exporter is written this often: Prometheus's own usual interval."""


_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW


class Family(msgspec.Struct, frozen=True):
    """One metric."""

    name: str  #: without the `_total` of a counter
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    label: str = ""  #: of its one label, if it has one


FAMILIES = (
    Family("mingled_build_info", "gauge", "1, with the release of mingled", "release"),
    Family("mingled_up_seconds", "gauge", "Since this daemon started"),
    Family("mingled_jobs", "gauge", "Jobs that take part here"),
    Family("mingled_participants", "gauge", "Participants here, waiting or released", "state"),
    Family("mingled_joins", "counter", "Joins asked for here", "form"),
    Family("mingled_seals", "counter", "Rounds sealed with this node as leader or member", "part"),
    Family("mingled_failures", "counter", "Requests and joins that failed, by error", "code"),
    Family("mingled_ends", "counter", "Released participants that ended, well or badly", "how"),
    Family("mingled_rendezvous_seconds", "histogram", "From a join to its release"),
    Family("mingled_adverts_heard", "counter", "Adverts of leaders, by way of discovery", "rung"),
    Family("mingled_nodes", "gauge", "Other daemons that this one is linked with"),
    Family("mingled_links", "gauge", "Links to other daemons that stand"),
    Family("mingled_links_made", "counter", "Links by how they began, or failed to", "how"),
    Family("mingled_handshakes_refused", "counter", "Connections that had not the job's secrets"),
    Family("mingled_frames", "counter", "Messages over links, sent or received", "direction"),
    Family(
        "mingled_datagrams",
        "counter",
        "UDP of the broadcast and of peers, sent or received; mDNS is not counted",
        "direction",
    ),
    Family("mingled_loop_lag_seconds", "gauge", "How late the loop was at worst in a minute"),
    Family("mingled_open_descriptors", "gauge", "Files, sockets and the like"),
    Family("mingled_resident_memory_bytes", "gauge", "Memory in use"),
    Family("mingled_cpu_seconds", "counter", "Processor time, of user and system"),
)

Values = Mapping[str, float | Mapping[str, float]]
"""By family, and by the value of its label where it has one."""


def text(values: Values, meters: Meters) -> str:
    """All of them, in Prometheus's text format. The library is imported here: a daemon that nobody
    asks need not know it."""
    from prometheus_client import CollectorRegistry, generate_latest

    class Collector:
        def collect(self) -> Iterator[Metric]:
            for family in FAMILIES:
                yield _metric(family, values, meters)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Collector())
    return generate_latest(registry).decode()


def _metric(family: Family, values: Values, meters: Meters) -> Metric:
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )

    if family.kind == "histogram":
        bounds = [*(f"{bound:g}" for bound in WAITS_S), "+Inf"]
        counts = [float(sum(meters.waits[: n + 1])) for n in range(len(bounds))]
        buckets = list(zip(bounds, counts, strict=True))
        return HistogramMetricFamily(
            family.name, family.help, buckets=buckets, sum_value=meters.waited_s
        )
    labels = [family.label] if family.label else []
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = kind(family.name, family.help, labels=labels)
    value = values[family.name]
    for label, number in value.items() if isinstance(value, Mapping) else [(None, value)]:
        metric.add_metric([] if label is None else [label], number)
    return metric


def counted(meters: Meters) -> dict[str, float | Mapping[str, float]]:
    """What the loop's own meters say. Each label has its row from the start: where a counter comes
    with its first event, `rate()` does not see that event."""
    return {
        "mingled_build_info": {__version__: 1.0},
        "mingled_joins": {form.value: 0 for form in Form} | meters.joins,
        "mingled_seals": {part: meters.seals[part] for part in ("leader", "member")},
        "mingled_failures": dict.fromkeys(CODES, 0) | meters.failures,
        "mingled_ends": {how: meters.ends[how] for how in ("well", "badly")},
        "mingled_adverts_heard": dict.fromkeys(get_args(Rung), 0) | meters.adverts,
        "mingled_nodes": meters.nodes,
        "mingled_links": meters.open_links,
        "mingled_links_made": {how: meters.links[how] for how in ("opened", "accepted", "failed")},
        "mingled_frames": {way: meters.frames[way] for way in ("sent", "received")},
    }


def process() -> dict[str, float | Mapping[str, float]]:
    """What the system says of this process; 0 where it does not."""
    descriptors = memory = 0
    with contextlib.suppress(OSError):
        descriptors = len(os.listdir("/proc/self/fd")) - 1  # without the one that lists them
    with contextlib.suppress(OSError, ValueError, IndexError):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        memory = pages * os.sysconf("SC_PAGE_SIZE")
    return {
        "mingled_open_descriptors": descriptors,
        "mingled_resident_memory_bytes": memory,
        "mingled_cpu_seconds": time.process_time(),
    }


def write(path: Path, content: str) -> None:
    """Whole or not at all, and readable by node_exporter. Raises `OSError`; what was there before
    stays then."""
    new = path.with_name(f".{path.name}.{os.getpid()}.new")  # node_exporter takes *.prom alone
    try:
        with open(os.open(new, _FLAGS, 0o644), "w") as file:
            file.write(content)
        os.replace(new, path)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink()
        raise

"""What a daemon counts, in the format that Prometheus reads, and the page that names it."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from mingled import metrics, metrics_file
from mingled.core import actions, events, local, messages
from mingled.core.words import Form, JobId, ParticipantId
from mingled.meters import Meters
from mingled.metrics_file import MetricsFile
from tests.core import samples

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"
HOLDER = events.Holder(pid=1, identity="1", uid=1000, user="ann", watched=True)
HERE = events.Address(address="10.0.0.1", interface="eth0")
OTHERS: dict[str, Any] = {
    "mingled_up_seconds": 1.0,
    "mingled_jobs": 0,
    "mingled_participants": {"waiting": 0, "released": 0},
    "mingled_handshakes_refused": 0,
    "mingled_datagrams": {"sent": 0, "received": 0},
    "mingled_loop_lag_seconds": 0.0,
}


def parsed(text: str) -> dict[tuple[str, str], float]:
    """Every sample, by its name and the value of its label."""
    return {
        (sample.name, "".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def told(meters: Meters) -> dict[tuple[str, str], float]:
    values = {**metrics.counted(meters), **metrics.process(), **OTHERS}
    return parsed(metrics.text(values, meters))


def released(waited_s: float, rank: int = 0) -> actions.Tell:
    config = samples.CONFIG if rank == 0 else _with_rank(rank)
    ready = local.Ready(participant=samples.WHO, config=config, waited_s=waited_s)
    return actions.Tell(participant=samples.WHO, message=ready)


def _with_rank(rank: int) -> Any:
    return msgspec.structs.replace(samples.CONFIG, rank=rank, round=2)


# ---------------------------------------------------------------- what is counted


def test_joins_and_rounds() -> None:
    meters = Meters()
    join = local.Join(job=samples.JOB, form=Form.LAUNCHER, size_min=2, size_max=2)
    meters.took(events.JoinAsked(participant=samples.WHO, join=join, holder=HOLDER))
    for waited_s in (0.4, 0.5, 4000.0):
        meters.did(released(waited_s))  # three members of one round
    meters.did(released(2.0, rank=1))
    found = told(meters)
    assert found["mingled_joins_total", "launcher"] == 1
    assert found["mingled_seals_total", "leader"] == found["mingled_seals_total", "member"] == 1
    assert found["mingled_rendezvous_seconds_bucket", "0.25"] == 0
    assert found["mingled_rendezvous_seconds_bucket", "0.5"] == 2
    assert found["mingled_rendezvous_seconds_bucket", "2.5"] == 3
    assert found["mingled_rendezvous_seconds_bucket", "3600"] == 3
    assert found["mingled_rendezvous_seconds_bucket", "+Inf"] == 4
    assert found["mingled_rendezvous_seconds_count", ""] == 4
    assert found["mingled_rendezvous_seconds_sum", ""] == pytest.approx(4002.9)


def test_each_label_counts_from_the_start() -> None:
    """`rate()` does not see the event with which a row comes."""
    found = told(Meters())
    assert found["mingled_failures_total", "indeterminate"] == 0
    assert found["mingled_joins_total", "plain"] == 0
    assert found["mingled_adverts_heard_total", "told"] == 0


def test_failures_by_their_code() -> None:
    meters = Meters()
    failed = local.Failed(code="refused", sentence="job bert: no")
    meters.did(actions.Tell(participant=samples.WHO, message=failed))
    meters.did(actions.Answer(request=1, message=failed))
    assert told(meters)["mingled_failures_total", "refused"] == 2


def test_who_leaves_by_itself_has_ended_and_not_failed() -> None:
    meters = Meters()
    failed = local.Failed(code="cancelled", sentence="job bert: left")
    left: dict[str, Any] = {"request": 1, "job": JobId("bert"), "uid": 0, "reason": ""}
    for lost in (False, False, True):
        meters.took(events.LeaveAsked(participant=ParticipantId(samples.WHO), lost=lost, **left))
        meters.did(actions.Tell(participant=samples.WHO, message=failed))
    meters.took(events.Ticked())
    meters.did(actions.Tell(participant=samples.WHO, message=failed))
    found = told(meters)
    assert (found["mingled_ends_total", "well"], found["mingled_ends_total", "badly"]) == (2, 1)
    assert found["mingled_failures_total", "cancelled"] == 1


def test_links_and_nodes() -> None:
    meters = Meters()
    for link in (1, 3):
        meters.took(events.LinkOpened(link=link, local=HERE, remote_address="10.0.0.2"))
        pong = messages.Pong(claim=samples.CLAIM, node=samples.NODE)
        meters.took(events.FrameReceived(link=link, message=pong))
        meters.took(events.FrameReceived(link=link, message=messages.Ping(claim=samples.CLAIM)))
    meters.took(events.LinkFailed(link=5, reason="no answer", answered=False))
    meters.did(actions.SendFrame(link=1, message=messages.Ping(claim=samples.CLAIM)))
    found = told(meters)
    assert (found["mingled_links", ""], found["mingled_nodes", ""]) == (2, 1)
    assert found["mingled_frames_total", "received"] == 4
    assert found["mingled_frames_total", "sent"] == 1
    assert found["mingled_links_made_total", "failed"] == 1
    meters.did(actions.CloseLink(link=1))
    meters.took(events.LinkClosed(link=3, reason="", answered=True))
    found = told(meters)
    assert (found["mingled_links", ""], found["mingled_nodes", ""]) == (0, 0)


def test_ends_and_adverts() -> None:
    meters = Meters()
    for status in (0, 9, None):
        meters.took(events.HolderEnded(participant=ParticipantId(samples.WHO), status=status))
    meters.took(events.AdvertHeard(advert=samples.ADVERT, rung="mdns"))
    found = told(meters)
    assert (found["mingled_ends_total", "well"], found["mingled_ends_total", "badly"]) == (1, 2)
    assert found["mingled_adverts_heard_total", "mdns"] == 1


def test_the_process() -> None:
    found = told(Meters())
    assert 0 < found["mingled_open_descriptors", ""] < 10_000
    assert found["mingled_resident_memory_bytes", ""] > 1_000_000
    assert found["mingled_cpu_seconds_total", ""] > 0


def test_the_page_names_every_metric_and_no_other() -> None:
    rows = re.findall(r"^\| `(mingled_\w+)` \| (\w+) \| (?:`(\w+)`.*? )?\|", PAGE.read_text(), re.M)
    told = {
        (f"{f.name}_total" if f.kind == "counter" else f.name, f.kind, f.label)
        for f in metrics.FAMILIES
    }
    assert set(rows) == told
    assert len(rows) == len(told)


# ---------------------------------------------------------------- the file


def counting(upto: int) -> tuple[Callable[[], str], asyncio.Event]:
    """A text that is another each time, and when it was asked for so often."""
    enough = asyncio.Event()
    count = 0

    def text() -> str:
        nonlocal count
        count += 1
        if count == upto:
            enough.set()
        return f"{count}\n"

    return text, enough


async def test_a_file_is_written_again_and_again_and_goes(tmp_path: Path) -> None:
    path = tmp_path / "m.prom"
    text, enough = counting(3)
    file = MetricsFile(path, text, every_s=0.0)
    file.start()
    await enough.wait()
    assert int(path.read_text()) >= 2
    assert path.stat().st_mode & 0o777 == 0o644 & ~_umask()
    await file.stop()
    assert os.listdir(tmp_path) == []


async def test_a_write_under_way_does_not_bring_the_file_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end comes while a thread writes: the thread's file must not outlive the daemon."""
    begun, go_on = threading.Event(), threading.Event()

    def slow(path: Path, text: str) -> None:
        begun.set()
        go_on.wait()
        metrics.write(path, text)

    monkeypatch.setattr(metrics_file, "write", slow)
    file = MetricsFile(tmp_path / "m.prom", lambda: "1\n")
    file.start()
    await asyncio.to_thread(begun.wait)
    stopping = asyncio.create_task(file.stop())
    await asyncio.sleep(0)  # stop() has begun
    go_on.set()
    await stopping
    assert os.listdir(tmp_path) == []


async def test_a_disk_that_hangs_does_not_hold_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def hang(path: Path, text: str) -> None:
        begun.set()
        go_on.wait()

    monkeypatch.setattr(metrics_file, "write", hang)
    monkeypatch.setattr(metrics_file, "LAST_WRITE_S", 0.0)
    file = MetricsFile(tmp_path / "m.prom", lambda: "1\n")
    file.start()
    await asyncio.to_thread(begun.wait)
    await file.stop()
    go_on.set()
    assert "is still being written" in caplog.text


async def test_a_file_that_cannot_be_written_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text, enough = counting(4)
    file = MetricsFile(tmp_path / "none" / "m.prom", text, every_s=0.0)
    with caplog.at_level(logging.WARNING):
        file.start()
        await enough.wait()
        await file.stop()
    (said,) = [r.getMessage() for r in caplog.records if "not written" in r.getMessage()]
    assert "No such file or directory; correct --metrics-file" in said


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full to stand for a full disk")
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.prom"
    metrics.write(path, "old\n")
    real = os.open

    def full(name: Any, *args: Any, **more: Any) -> int:
        return real("/dev/full" if str(name).endswith(".new") else name, *args, **more)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", full)
        with pytest.raises(OSError, match="No space left"):
            metrics.write(path, "new\n")
    assert path.read_text() == "old\n"


def _umask() -> int:
    before = os.umask(0)
    os.umask(before)
    return before

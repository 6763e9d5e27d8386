"""A simulated client: one join, and what came of it."""

from __future__ import annotations

from mingled.core import local
from mingled.core.config import Config
from mingled.core.events import Holder
from mingled.core.words import ParticipantId


class Client:
    """Mutable. Ends with `config` or `failure`; `gone` once its process is."""

    def __init__(
        self, participant: ParticipantId, join: local.Join, holder: Holder, runs_s: float
    ) -> None:
        self.participant = participant
        self.join = join
        self.holder = holder
        self.runs_s = runs_s  #: how long its training runs
        self.host = -1
        self.joined_at = 0.0
        self.ended_at: float | None = None
        self.config: Config | None = None
        self.failure: local.Failed | None = None
        self.gone = False
        self.finished = False
        self.stopped_until = 0.0  #: it says nothing before that, as if SIGSTOP had come
        self.heard: list[local.Local] = []

    @property
    def waits(self) -> bool:
        return self.config is None and self.failure is None and not self.gone

    def __str__(self) -> str:
        if self.config is not None:
            end = f"ready, rank {self.config.rank} of round {self.config.round}"
        elif self.failure is not None:
            end = f"{self.failure.code}: {self.failure.sentence}"
        else:
            end = "gone" if self.gone else "waiting"
        return f"{self.participant[:6]} on gpu{self.host + 1} ({self.join.job}): {end}"

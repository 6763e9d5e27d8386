"""What may happen to a node under torchrun: how long training stands still, with mingled's backend
and with c10d, whose endpoint is typed in and whose agents have restarts to spend.

    python -m benchmarks.survival [CASE ...]     # some twelve minutes; the table of docs/elastic.md
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from mingled.lab import Lan
from tests.lan.agents import Agents, Backend

GIVE_UP_S = 60.0
"""Whoever stands still for so long is not expected to go on."""

EARLY_S = 10.0

LOOK_S = 0.1

Case = Callable[[Agents], str]


def main() -> None:
    wanted = sys.argv[1:] or list(CASES)
    print("| what happens | mingle | c10d |\n|---|---|---|", flush=True)
    for name in wanted:
        cells = [play(name, backend) for backend in ("mingle", "c10d")]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def play(name: str, backend: Backend) -> str:
    case, fatal = CASES[name], name in FATAL
    with tempfile.TemporaryDirectory() as text, Lan(4, share=[text]) as lan:
        folder = Path(text)
        # A peer's death costs the workers of c10d's agents a restart each, as it always does.
        restarts = 0 if backend == "mingle" and name not in RESTARTS else 10
        script = ["bare"] if backend == "c10d" else []
        agents = Agents(lan, folder, backend, restarts=restarts, fatal=fatal, options=script)
        agents.start((1, 2, 3))
        if not fatal:
            agents.until_trained()
        return case(agents)


# ---------------------------------------------------------------- what came of it


def goes_on(agents: Agents, size: int, rounds: int) -> str:
    """Once everybody who lives is in a later round of that size."""
    until = time.monotonic() + GIVE_UP_S
    while time.monotonic() < until:
        if all(agents.in_round(n, size, rounds) for n in agents.alive()):
            kept = all(agents.rounds(n)[-1][0] > 0 for n in agents.alive())
            return f"{agents.pause_s():.1f} s" + ("" if kept else ", step lost")
        if all(running.over for running in agents.alive().values()):
            codes = {running.end().code for running in agents.alive().values()}
            return f"all end, exit {', '.join(map(str, sorted(codes)))}"
        time.sleep(LOOK_S)
    return f"stands still for over {GIVE_UP_S:.0f} s"


def ends(agents: Agents, since: float) -> str:
    """The survivors' exit codes, and how long after `since` the last one ended."""
    until = time.monotonic() + GIVE_UP_S
    while not all(running.over for running in agents.alive().values()):
        if time.monotonic() > until:
            return f"still there after {GIVE_UP_S:.0f} s"
        time.sleep(LOOK_S)
    took = time.monotonic() - since
    codes = sorted({running.end().code for running in agents.alive().values()})
    return f"exit {', '.join(map(str, codes))} after {took:.1f} s"


# ---------------------------------------------------------------- the cases


def follower_killed(agents: Agents) -> str:
    agents.kill(agents.follower())
    return goes_on(agents, 2, 2)


def store_host_killed(agents: Agents) -> str:
    agents.kill(agents.store_host)
    return goes_on(agents, 2, 2)


def store_host_stopped(agents: Agents) -> str:
    stopped = agents.store_host
    agents.signal(stopped, signal.SIGSTOP)
    agents.dead.add(stopped)
    first = goes_on(agents, 2, 2)
    agents.signal(stopped, signal.SIGCONT)
    if not first.endswith(" s") or first.startswith("stands"):
        return first
    agents.dead.clear()
    return f"{first}; thawed, all three again: {goes_on(agents, 3, 2)}"


def follower_cut_off(agents: Agents) -> str:
    agents.cut(agents.follower())
    return goes_on(agents, 2, 2)


def store_host_cut_off(agents: Agents) -> str:
    agents.cut(agents.store_host)
    return goes_on(agents, 2, 2)


def newcomer(agents: Agents) -> str:
    agents.start([4])
    return goes_on(agents, 4, 1)


def worker_killed(agents: Agents) -> str:
    os.kill(agents.workers(agents.follower())[0], signal.SIGKILL)
    return goes_on(agents, 3, 2)


def dies_before_the_ranks(agents: Agents) -> str:
    since = time.monotonic()
    agents.until_one_ended()
    came = goes_on(agents, 2, 1)
    if came.startswith(("all end", "stands")):
        return came
    first = min(agents.steps(n)[0].at_s for n in agents.alive())
    return f"trains {first - since:.1f} s after the start"


def one_finishes_early(agents: Agents) -> str:
    first = agents.store_host
    files = [agents.linger(number) for number in agents.alive() if number != first]
    (agents.folder / "enough").touch()
    time.sleep(EARLY_S)
    for path in files:
        path.unlink()
    return ends(agents, time.monotonic())


def store_host_dies_unfinished(agents: Agents) -> str:
    """The others have finished, and wait in the exit barrier."""
    agents.linger(agents.store_host)
    (agents.folder / "enough").touch()
    for number, running in agents.alive().items():
        if number != agents.store_host:
            running.until("ends at ", kind="out")
    time.sleep(2.0)  # for the agents to see that
    agents.kill(agents.store_host)
    return ends(agents, time.monotonic())


def five_rounds(agents: Agents) -> str:
    pauses = []
    for round_ in range(2, 6):
        os.kill(agents.workers(agents.follower())[0], signal.SIGKILL)
        came = goes_on(agents, 3, round_)
        if came.startswith(("all end", "stands")):
            return f"round {round_}: {came}"
        pauses.append(came)
    return ", ".join(pauses)


CASES: dict[str, Case] = {
    "follower killed": follower_killed,
    "store host killed": store_host_killed,
    "store host stopped, then thawed": store_host_stopped,
    "follower cut off without a packet": follower_cut_off,
    "store host cut off without a packet": store_host_cut_off,
    "a node comes late": newcomer,
    "one worker killed": worker_killed,
    "store host killed between roster and ranks": dies_before_the_ranks,
    "one agent finishes 10 s early": one_finishes_early,
    "store host killed unfinished, others in the exit barrier": store_host_dies_unfinished,
    "five rounds on one rank 0": five_rounds,
}

FATAL = ("store host killed between roster and ranks",)

RESTARTS = ("one worker killed", "five rounds on one rank 0")
"""A worker that fails by itself costs its own agent one."""

if __name__ == "__main__":
    main()

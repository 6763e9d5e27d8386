"""What the demo shows of its nodes' output."""

import subprocess
import sys
import time

from mingled.demo.run import _Followed, _Machine

LOST = """\
mingle-wait: job demo: runs torchrun train.py
E1126 02:11:05.145000 19 torch/distributed/elastic/agent/server/api.py:1008] Error waiting on exit \
barrier. Elapsed: 0.003 seconds
E1126 02:11:05.145000 19 torch/distributed/elastic/agent/server/api.py:1008] Traceback (most recent
E1126 02:11:05.145000 19 torch/distributed/elastic/agent/server/api.py:1008]     store.wait([key])
E1126 02:11:05.200000 19 torch/distributed/elastic/agent/server/api.py:700] more
{"event": "timing"}
"""


def test_an_end_of_the_store_that_is_no_harm_is_one_line() -> None:
    shown: list[str] = []
    words = [sys.executable, "-c", f"import sys; sys.stderr.write({LOST!r})"]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True) as process:
        followed = _Followed(_Machine("gpu2", lambda _: process), [], shown.append)
        assert followed.wait(time.time() + 60.0) == 0
    assert shown == [
        " gpu2 | mingle-wait: job demo: runs torchrun train.py",
        " gpu2 | torchrun: rank 0's ended first, and the store with it: no harm",
        " gpu2 | E1126 02:11:05.200000 19 torch/distributed/elastic/agent/server/api.py:700] more",
    ]
    assert len(followed.stderr) == 6

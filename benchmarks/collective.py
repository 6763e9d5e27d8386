"""A worker: one all_reduce over gloo, and when it was done (CLOCK_MONOTONIC, in seconds)."""

from __future__ import annotations

import json
import os
import time

import torch
import torch.distributed as dist

dist.init_process_group("gloo")
ones = torch.ones(1)
dist.all_reduce(ones)
end = time.monotonic()
assert ones.item() == dist.get_world_size(), "the sum is not the world's size"
os.write(1, (json.dumps({"end": end}) + "\n").encode())
dist.barrier()
os._exit(0)  # what gloo takes down at the end sometimes aborts the process

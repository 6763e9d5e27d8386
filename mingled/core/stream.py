"""Randomness handed in: one seed from the shell, and from it every nonce and jitter of the core."""

from __future__ import annotations

import builtins
import hashlib

from mingled.core.words import Nonce


class Stream:
    """SHA-256 in counter mode over a seed. The same seed gives the same run, which is what lets
    the simulator replay any network; the daemon seeds it with 32 bytes from the system."""

    def __init__(self, seed: bytes) -> None:
        self._seed = seed
        self._count = 0

    def bytes(self) -> bytes:
        """The next 32 bytes."""
        self._count += 1
        return hashlib.sha256(self._seed + self._count.to_bytes(8, "big")).digest()

    def salt(self, name: str) -> builtins.bytes:
        """The same 32 bytes for a name at any time; nobody else can know them."""
        return hashlib.sha256(self._seed + name.encode()).digest()

    def nonce(self) -> Nonce:
        """128 fresh bits."""
        return Nonce(self.bytes()[:16].hex())

    def uniform(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * int.from_bytes(self.bytes()[:8], "big") / 2**64

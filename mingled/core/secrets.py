"""What a job's name becomes on the network: HKDF (RFC 5869) over the cluster key and the job ID.

Nobody reads a job's name from its label, and with a cluster key nobody guesses it either. Without
one the job ID is the only secret, as guessable as any name.
"""

from __future__ import annotations

import base64
import hashlib
import hmac

from mingled.core.words import JobId, Label

NO_KEY_ID = "none"
"""The key id in adverts of a daemon without a cluster key."""


def hkdf(secret: bytes, info: bytes, length_bytes: int) -> bytes:
    """RFC 5869 with SHA-256 and an empty salt."""
    key = hmac.digest(b"\0" * 32, secret, hashlib.sha256)
    out = block = b""
    counter = 0
    while len(out) < length_bytes:
        counter += 1
        block = hmac.digest(key, block + info + bytes([counter]), hashlib.sha256)
        out += block
    return out[:length_bytes]


def label_of(job: JobId, cluster_key: bytes = b"") -> Label:
    """The job's discovery label: 128 bits, in base32."""
    # Both lengths are written out, so that no key and job run together into another pair.
    secret = len(cluster_key).to_bytes(4, "big") + cluster_key + job.encode()
    raw = hkdf(secret, b"mingled discovery label 1", 16)
    return Label(base64.b32encode(raw).decode().rstrip("=").lower())


def key_id_of(cluster_key: bytes = b"") -> str:
    """A short public name for a key, by which mixed keys are noticed; tells nothing about it."""
    return hkdf(cluster_key, b"mingled key id 1", 2).hex() if cluster_key else NO_KEY_ID

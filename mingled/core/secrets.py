"""What a job's name becomes on the network: HKDF (RFC 5869) over cluster key, job's secret, job ID.

Whoever knows all of these is in the job's realm: it finds the job by its label and proves over the
peer link that it belongs there. Nobody reads a job's name from its label, and with a cluster key
nobody guesses it either. Without one the job ID is the only secret, as guessable as any name.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterable

import msgspec

from mingled.core.words import JobId, Label

NO_KEY_ID = "none"
"""The key id in adverts of a daemon without a cluster key."""

KEY_BYTES = 32
"""Of a cluster key: 256 bits."""

SEED_BYTES = 48
"""Of a realm: 128 bits more than a P-256 scalar has, so that the remainder is unbiased (FIPS 186-5,
A.2.1)."""

KEYS_MAX = 8
"""Accepted at a time. A rotation needs two."""


class Realm(msgspec.Struct, frozen=True, kw_only=True):
    """Those who know the same secrets: one job's, or every daemon's that has the same key."""

    label: Label  #: its public name, in adverts and as the name that a TLS client asks for
    seed: bytes  #: SEED_BYTES, from which its certificate authority is made. A secret
    key_id: str

    def __repr__(self) -> str:
        return f"Realm({self.label}, key {self.key_id})"  # no log is to have the seed


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


def _joined(*parts: bytes) -> bytes:
    """Lengths are written out, so that no two lists of parts run together into the same bytes."""
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def realm_of(job: JobId, key: bytes = b"", secret: str = "") -> Realm:
    """Of a job. `key`: the cluster's; `secret`: the job's own (`secret_of`); empty: none."""
    return _realm(_joined(key, secret.encode(), job.encode()), b"job", key)


def realms_of(job: JobId, keys: Iterable[bytes] = (), secret: str = "") -> tuple[Realm, ...]:
    """Of a job under each key that is accepted; the first is the one to present."""
    return tuple(realm_of(job, key, secret) for key in tuple(keys) or (b"",))


def node_realms_of(keys: Iterable[bytes] = ()) -> tuple[Realm, ...]:
    """Of the daemons themselves, whatever their jobs: `mingle nodes` and doctor ask in there."""
    return tuple(_realm(_joined(key), b"node", key) for key in tuple(keys) or (b"",))


def _realm(secret: bytes, kind: bytes, key: bytes) -> Realm:
    label = hkdf(secret, b"mingled " + kind + b" label 1", 16)
    return Realm(
        label=Label(base64.b32encode(label).decode().rstrip("=").lower()),
        seed=hkdf(secret, b"mingled " + kind + b" authority 1", SEED_BYTES),
        key_id=key_id_of(key),
    )


def label_of(job: JobId, key: bytes = b"", secret: str = "") -> Label:
    """The job's discovery label: 128 bits, in base32."""
    return realm_of(job, key, secret).label


def key_id_of(key: bytes = b"") -> str:
    """A short public name for a key, by which mixed keys are noticed; tells nothing about it."""
    return hkdf(key, b"mingled key id 1", 2).hex() if key else NO_KEY_ID


def secret_of(content: bytes) -> str:
    """A job's own secret, as it is handed to the daemon, from what its file holds."""
    return hkdf(content, b"mingled job secret 1", 32).hex()

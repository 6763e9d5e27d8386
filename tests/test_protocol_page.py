"""A follower written from docs/protocol.md, with nothing of ours: it joins a real leader's job.

Python's own TLS, sockets and HMAC, and `cryptography` for certificates. What the page leaves out
would be missing here.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import getpass
import hashlib
import hmac
import json
import os
import secrets
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unique import job

x509 = pytest.importorskip("cryptography.x509")

from cryptography.hazmat.primitives import hashes, serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec  # noqa: E402

ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
WITHIN_S = 60.0
JOB = job("page")

Message = dict[str, Any]


# ---------------------------------------------------------------- realms


def hkdf(ikm: bytes, info: bytes, size: int) -> bytes:
    prk = hmac.digest(bytes(32), ikm, hashlib.sha256)
    out, block, count = b"", b"", 0
    while len(out) < size:
        count += 1
        block = hmac.digest(prk, block + info + bytes([count]), hashlib.sha256)
        out += block
    return out[:size]


def ikm_of(job_id: str) -> bytes:
    """Without a key and without a secret."""
    parts = (b"", b"", job_id.encode())
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def label_of(job_id: str) -> str:
    label = base64.b32encode(hkdf(ikm_of(job_id), b"mingled job label 1", 16))
    return label.decode().lower().rstrip("=")


def named(text: str) -> Any:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def context_of(job_id: str, folder: Path) -> ssl.SSLContext:
    """A TLS client that is in the job's realm."""
    label = label_of(job_id)
    seed = hkdf(ikm_of(job_id), b"mingled job authority 1", 48)
    scalar = int.from_bytes(seed, "big") % (ORDER - 1) + 1
    authority, mine = (
        ec.derive_private_key(scalar, ec.SECP256R1()),
        ec.generate_private_key(ec.SECP256R1()),
    )

    def certificate(subject: str, key: Any, serial: int, extensions: list[tuple[Any, bool]]) -> Any:
        builder = (
            x509.CertificateBuilder()
            .subject_name(named(subject))
            .issuer_name(named(f"mingled {label}"))
            .public_key(key.public_key())
            .serial_number(serial)
            .not_valid_before(datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC))
            .not_valid_after(datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), False
            )
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(authority, hashes.SHA256())

    def usage(*, signs: bool) -> Any:
        others = "content_commitment key_encipherment data_encipherment key_agreement crl_sign"
        no = dict.fromkeys([*others.split(), "encipher_only", "decipher_only"], False)
        return x509.KeyUsage(digital_signature=not signs, key_cert_sign=signs, **no)

    both = [x509.ExtendedKeyUsageOID.SERVER_AUTH, x509.ExtendedKeyUsageOID.CLIENT_AUTH]
    root = certificate(
        f"mingled {label}", authority, 1,
        [(x509.BasicConstraints(ca=True, path_length=0), True), (usage(signs=True), True)],
    )  # fmt: skip
    leaf = certificate(
        label, mine, x509.random_serial_number(),
        [
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (usage(signs=False), True),
            (x509.SubjectAlternativeName([x509.DNSName(label)]), False),
            (x509.ExtendedKeyUsage(both), False),
        ],
    )  # fmt: skip
    pem = serialization.Encoding.PEM
    path = folder / "leaf.pem"
    path.write_bytes(
        leaf.public_bytes(pem)
        + mine.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=root.public_bytes(serialization.Encoding.DER))
    context.load_cert_chain(path)
    return context


# ---------------------------------------------------------------- a follower


def advert_of(job_id: str) -> Message:
    """Asked for by unicast, as of a peer that somebody named."""
    asked: Message = {"type": "ask", "node": secrets.token_hex(16), "to": "one"}
    asked["labels"] = [label_of(job_id)]
    until = time.monotonic() + WITHIN_S
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(0.5)
        while time.monotonic() < until:
            sock.sendto(json.dumps(asked).encode(), ("127.0.0.1", 29_491))
            with contextlib.suppress(TimeoutError):
                answer = json.loads(sock.recv(1_500))
                if answer["type"] == "advert":
                    advert: Message = answer["advert"]
                    return advert
    raise AssertionError(f"nobody answers for {job_id}")


def word_of(address: str, port: int) -> str:
    """What is said there."""
    with socket.create_connection((address, port), 5) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        return sock.makefile("r").readline().rstrip("\n")


@contextlib.contextmanager
def ring_port(node: str) -> Iterator[int]:
    """It says the node id to whoever connects."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    with server.accept()[0] as connection:
                        connection.sendall(node.encode() + b"\n")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)


class Follower:
    """One participant of a job, on a node of its own."""

    def __init__(
        self, job_id: str, advert: Message, context: ssl.SSLContext, node: str, ring: int
    ) -> None:
        self.node, self.participant = node, secrets.token_hex(16)
        self.claim = advert["claim"]
        sock = socket.create_connection((advert["addresses"][0], advert["port"]), 10)
        self._tls = context.wrap_socket(sock, server_hostname=label_of(job_id))
        self._lines = self._tls.makefile("rb")
        card = {"node": self.node, "host": "other", "port": 29_999, "ring_port": ring}
        entry = {"participant": self.participant, "form": "process", "size_min": 2, "size_max": 2}
        entry |= {"rank": None, "nproc": 1, "user": getpass.getuser(), "pid": os.getpid()}
        self.say(
            type="join",
            version=[1, 0],
            label=label_of(job_id),
            job=job_id,
            node={**card, "addresses": ["127.0.0.1"]},
            entries=[entry],
            source="127.0.0.1",
            something_newer=1,  # a field that is not known is ignored
        )

    def say(self, **message: Any) -> None:
        self._tls.sendall(json.dumps({"claim": self.claim, **message}).encode() + b"\n")

    def hear(self, wanted: str) -> Message:
        """The next message of that type; what comes before is done as the page says."""
        for line in self._lines:
            message: Message = json.loads(line)
            if message["type"] == "ping":
                self.say(type="pong", node=self.node)
            elif message["type"] == wanted:
                return message
            assert message["type"] in ("ping", "progress", "gone", "waiting"), message
        raise AssertionError(f"hung up, before {wanted}")

    def close(self) -> None:
        self._lines.close()
        self._tls.close()


@pytest.fixture
def leader(runtime: Path) -> Iterator[subprocess.Popen[str]]:
    """`mingle-wait` as rank 0 of JOB."""
    program = "import os; print(os.environ['RANK'], os.environ['WORLD_SIZE'])"
    words = ["-m", "mingled.cli.wait", "--job", JOB, "--world-size", "2", "--rank", "0"]
    words += ["--timeout", "60s", "--", sys.executable, "-c", program]
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, *words], stdout=pipe, stderr=pipe, text=True)
    yield process
    process.kill()
    process.communicate()


@pytest.fixture
def follower(leader: subprocess.Popen[str], tmp_path: Path) -> Iterator[Follower]:
    """It has said join."""
    advert = advert_of(JOB)
    assert advert["label"] == label_of(JOB)
    assert advert["key_id"] == "none"
    node = secrets.token_hex(16)
    with ring_port(node) as ring:
        joined = Follower(JOB, advert, context_of(JOB, tmp_path), node, ring)
        yield joined
        joined.close()


@pytest.mark.daemon
def test_whoever_follows_the_page_takes_part(
    leader: subprocess.Popen[str], follower: Follower
) -> None:
    welcome = follower.hear("welcome")
    prepare = follower.hear("prepare")
    assert [m["rank"] for m in prepare["members"]] == [0, 1]
    assert prepare["members"][1]["participant"] == follower.participant
    # Rank 0's port says the proof; the next in the ring is rank 0's node again.
    assert word_of(prepare["master_addr"], prepare["master_port"]) == prepare["proof"]
    assert word_of("127.0.0.1", prepare["ring_ports"][0]) == welcome["node"]["node"]
    answer = {"round": prepare["round"], "proof": prepare["proof"]}
    follower.say(type="ack", **answer)
    commit = follower.hear("commit")
    assert {name: commit[name] for name in answer} == answer
    out, err = leader.communicate(timeout=WITHIN_S)
    assert (leader.returncode, out) == (0, "0 2\n"), err


@pytest.mark.daemon
def test_a_nack_is_told_to_rank_0s_people(
    leader: subprocess.Popen[str], follower: Follower
) -> None:
    follower.hear("welcome")
    prepare = follower.hear("prepare")
    answer = {"round": prepare["round"], "proof": prepare["proof"]}
    follower.say(type="nack", reason="no way, says page", **answer)
    abort = follower.hear("abort")
    assert abort["proof"] == prepare["proof"]
    assert abort["reason"] == "no way, says page"
    assert leader.stderr is not None
    assert any("[no way, says page]" in line for line in leader.stderr)

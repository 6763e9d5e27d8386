"""TLS between daemons: who gets in, who does not, and that the end of a line of words arrives."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import ssl
from collections.abc import AsyncIterator

import pytest

from mingled.core.secrets import Realm, node_realms_of, realm_of
from mingled.core.words import JobId, Label
from mingled.net import tls
from mingled.net.certificates import authority_of, leaf_of

BERT, GPT = realm_of(JobId("bert")), realm_of(JobId("gpt"))
LINE_MAX = 1000


class Server:
    """Echoes lines to whoever is let in; `heard` says who that was, and why others were not."""

    def __init__(self, *realms: Realm) -> None:
        self.vault = tls.Vault()
        for realm in realms:
            self.vault.trust(realm)
        self.heard: asyncio.Queue[Label | str] = asyncio.Queue()
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            channel, label = await tls.accept(reader, writer, self.vault)
            self.heard.put_nowait(label)
            while line := await channel.readline(LINE_MAX):
                channel.write(line)
            channel.finish()
        except OSError as error:
            self.heard.put_nowait(str(error))
        finally:
            writer.close()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    found = Server(BERT, GPT)
    listening = await asyncio.start_server(found.serve, "127.0.0.1", 0)
    found.port = listening.sockets[0].getsockname()[1]
    yield found
    listening.close()


async def dial(server: Server, with_: tls.Pass) -> tls.Channel:
    return await tls.dial(*await asyncio.open_connection("127.0.0.1", server.port), with_)


async def test_whoever_knows_the_job_gets_in_and_the_job_is_known(server: Server) -> None:
    for realm in (BERT, GPT):
        channel = await dial(server, tls.Pass(realm))
        assert await server.heard.get() == realm.label
        assert channel.tls.version() == "TLSv1.3"
        channel.write(b"hello\n" * 2)
        assert await channel.readline(LINE_MAX) == b"hello\n"
        channel.finish()  # what was not read is dropped
        assert await channel.readline(LINE_MAX) == b""
        channel.close()
        await channel.wait_closed()


async def test_what_was_said_before_the_goodbye_arrives(server: Server) -> None:
    channel = await dial(server, tls.Pass(BERT))
    channel.write(b"x" * 999_000 + b"\n")
    with pytest.raises(asyncio.LimitOverrunError):
        await channel.readline(0)
    channel.finish()
    channel.close()
    assert await server.heard.get() == BERT.label


async def test_another_job_is_not_there(server: Server) -> None:
    with pytest.raises(tls.NotOurs, match="it has no such job, or another key"):
        await dial(server, tls.Pass(realm_of(JobId("other"))))
    assert "no job of ours" in str(await server.heard.get())
    server.vault.distrust(BERT.label)
    with pytest.raises(tls.NotOurs):
        await dial(server, tls.Pass(BERT))
    with pytest.raises(tls.NotOurs):
        server.vault.of(BERT.label)


async def test_fault_42_whoever_knows_the_label_and_not_the_key_is_nobody(server: Server) -> None:
    """A label is public: it is in each advert. As a client and as a server it opens nothing."""
    thief = Realm(label=BERT.label, seed=GPT.seed, key_id="none")
    with pytest.raises(tls.NotOurs, match="its certificate is another key's"):
        await dial(server, tls.Pass(thief))
    assert "it does not take our certificate" in str(await server.heard.get())
    # ... nor where it does not mind who the server is: then it is the server that refuses.
    await refused_after_connect(server, context_of(thief), BERT.label)


async def refused_after_connect(server: Server, context: ssl.SSLContext, name: str) -> None:
    """TLS 1.3: the client sees success, and then the end."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", server.port, ssl=context, server_hostname=name
    )
    writer.write(b"hello\n")
    with pytest.raises(ssl.SSLError, match=r"(?i)alert|certificate"):
        await reader.readline()
    writer.transport.abort()
    assert isinstance(await server.heard.get(), str)


def context_of(realm: Realm | None) -> ssl.SSLContext:
    """A client that trusts everybody, and shows that realm's certificate, or none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if realm is not None:
        with tls._file(leaf_of(authority_of(realm), realm.label)) as path:
            context.load_cert_chain(path)
    return context


async def test_no_certificate_and_another_jobs(server: Server) -> None:
    await refused_after_connect(server, context_of(None), BERT.label)
    await refused_after_connect(server, context_of(GPT), BERT.label)


async def test_another_jobs_ticket_opens_nothing(server: Server) -> None:
    """There is none to have; and a session of one job is not taken up in another."""

    def visit(name: str, session: ssl.SSLSession | None) -> ssl.SSLSession | None:
        with (
            socket.create_connection(("127.0.0.1", server.port)) as sock,
            context.wrap_socket(sock, server_hostname=name, session=session) as client,
        ):
            client.sendall(b"hello\n")
            assert client.recv(100) == b"hello\n"
            assert not client.session_reused
            return client.session

    context = context_of(GPT)
    session = await asyncio.to_thread(visit, GPT.label, None)
    assert await server.heard.get() == GPT.label
    assert session is None or not session.has_ticket
    with pytest.raises((ssl.SSLError, AssertionError, ConnectionError)):
        await asyncio.to_thread(visit, BERT.label, session)
    assert isinstance(await server.heard.get(), str)


@pytest.mark.parametrize(
    "said", [b"GET / HTTP/1.1\r\n\r\n", b'{"type":"join"}\n', b"\x16\x03\x01\x02\x00", b""]
)
async def test_a_client_in_the_clear_is_sent_away(server: Server, said: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(said)
    writer.write_eof()
    await reader.read()
    writer.close()
    assert isinstance(await server.heard.get(), str)


async def test_a_hello_that_is_replayed_opens_nothing(server: Server) -> None:
    """All that a client of the job has sent, again: its keys are not the replayer's."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = tls.Pass(BERT).client(incoming, outgoing)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    sent = b""
    done = False
    while not done:
        try:
            client.do_handshake()
            done = True
            client.write(b"hello\n")
        except ssl.SSLWantReadError:
            pass
        flight = outgoing.read()
        sent += flight
        writer.write(flight)
        if not done:
            incoming.write(await reader.read(65_536))
    assert await server.heard.get() == BERT.label
    writer.close()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(sent)
    await reader.read()
    writer.close()
    assert isinstance(await server.heard.get(), str)


def test_a_certificate_is_one_realms_and_counts_at_any_time() -> None:
    bert, gpt = authority_of(BERT), authority_of(GPT)
    leaf = ssl.PEM_cert_to_DER_cert(leaf_of(bert, BERT.label).decode().partition("-----BEGIN P")[0])
    assert bert.issued(leaf)
    assert authority_of(BERT).issued(leaf)  # made by somebody else who knows the job
    assert not gpt.issued(leaf)
    assert not bert.issued(bert.der[:-1])
    assert not bert.issued(None)
    assert bert.certificate.not_valid_before_utc.year == 1970
    assert bert.certificate.not_valid_after_utc.year == 9999


def test_realms_of_jobs_and_of_nodes_are_apart() -> None:
    keys = [b"a" * 32, b"b" * 32]
    seeds = {r.seed for k in keys for r in (*node_realms_of([k]), realm_of(JobId("bert"), k), BERT)}
    assert len(seeds) == 5


async def test_a_hello_without_end_is_cut_off(server: Server) -> None:
    """OpenSSL would keep 128 KiB of it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    record = b"\x16\x03\x01\x40\x00"
    body = b"\x01\x01\xff\xf0" + b"a" * 16_380
    writer.write(record + body + (record + b"a" * 16_384) * 6)
    with contextlib.suppress(ConnectionError):
        await reader.read()
    writer.close()
    assert "a handshake of over 32768 bytes" in str(await server.heard.get())


async def test_no_room_for_a_certificate_is_not_another_key(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is out of descriptors may well be the one that is looked for."""

    def out_of_descriptors(_: bytes) -> None:
        raise OSError(24, "Too many open files")

    client = tls.Pass(BERT)
    client.warm()
    monkeypatch.setattr(tls, "_file", out_of_descriptors)
    with pytest.raises(tls.Shed, match="it cannot answer just now"):
        await dial(server, client)
    assert isinstance(await server.heard.get(), str)


async def test_a_name_of_no_letters_is_refused_and_says_nothing_in_our_log(server: Server) -> None:
    """pytest fails a test in which Python writes "Exception ignored in"."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    hello = tls.Pass(BERT).client(incoming, outgoing)
    with pytest.raises(ssl.SSLWantReadError):
        hello.do_handshake()
    said = outgoing.read()
    assert BERT.label.encode() in said
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(said.replace(BERT.label.encode(), b"\xff" * len(BERT.label)))
    assert isinstance(await server.heard.get(), str)
    await reader.read()
    writer.close()


async def test_what_cannot_be_made_ahead_is_made_when_it_is_needed(server: Server) -> None:
    """The limit of open files is reached just when the contexts are made for later use."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        server.vault.warm(BERT.label)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    channel = await dial(server, tls.Pass(BERT))
    assert await server.heard.get() == BERT.label
    channel.close()

"""Clients from many sources: `python library_client.py tcp|http|quic SOURCES` prints who answered each as JSON."""

from __future__ import annotations

import asyncio
import json
import sys

from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from deadline import DEADLINE

PORT = 9000
MANY = 20  # at a time


async def tcp(source: str) -> str:
    """Say hello to the server of lines."""
    reader, writer = await asyncio.open_connection("127.0.0.1", PORT, local_addr=(source, 0))
    writer.write(b"hello\n")
    answer = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return answer.decode()


async def http(source: str) -> str:
    """Get / over HTTP."""
    reader, writer = await asyncio.open_connection("127.0.0.1", PORT, local_addr=(source, 0))
    writer.write(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    assert answer.startswith((b"HTTP/1.0 200 ", b"HTTP/1.1 200 ")), answer
    return answer.decode().partition("\r\n\r\n")[2]


async def quic(source: str) -> str:
    """Say hello over QUIC; the certificate is the server's own."""
    configuration = QuicConfiguration(alpn_protocols=["example"], cafile="cert.pem", server_name="localhost")
    connection = QuicConnection(configuration=configuration)
    transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: QuicConnectionProtocol(connection), local_addr=(source, 0)
    )
    protocol.connect(("127.0.0.1", PORT))
    await protocol.wait_connected()
    reader, writer = await protocol.create_stream()
    writer.write(b"hello\n")
    writer.write_eof()
    answer = await reader.read()
    protocol.close()  # tells the server at once; what the client would wait for matters to nobody here
    transport.close()
    return answer.decode()


async def main(protocol: str, sources: list[str]) -> dict[str, int]:
    """The member that answered each source."""
    ask = {"tcp": tcp, "http": http, "quic": quic}[protocol]
    places = asyncio.Semaphore(MANY)

    async def member(source: str) -> int:
        async with places, asyncio.timeout(DEADLINE):
            answer = await ask(source)
        assert answer.startswith("member "), answer
        return int(answer[len("member ")])

    return dict(zip(sources, await asyncio.gather(*map(member, sources)), strict=True))


if __name__ == "__main__":
    json.dump(asyncio.run(main(sys.argv[1], sys.argv[2:])), sys.stdout)

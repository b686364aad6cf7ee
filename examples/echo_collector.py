"""Sends every datagram back to its source; the smallest collector there is."""

from aiolb import Collector


class Echo(Collector):
    """Answers with what it got."""

    async def handle(self, datagram: bytes, addr: tuple[str, int]) -> None:
        """Reply from the socket that the datagram came in on."""
        self.reply(datagram, addr)


if __name__ == "__main__":
    Echo.run(bind="127.0.0.1:9000", index=0, count=1)

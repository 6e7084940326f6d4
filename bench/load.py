"""Load over HTTP: many connections kept alive, each asking again as soon as it was answered, from one thread."""

import selectors
import socket
from collections.abc import Callable
from typing import Final

from msgspec import Struct

from shared.clock import monotonic

HEAD_ENDS: Final = b"\r\n\r\n"
LENGTH: Final = b"content-length:"


class Load(Struct, frozen=True, kw_only=True):
    """What many clients at once were answered: how many requests, in how long, and each one's milliseconds."""

    requests: int
    seconds: float
    milliseconds: list[float]

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds


class _Client:
    """A connection, and the request that it waits for."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._answer = b""
        self._asked_at = 0.0

    def ask(self, request: bytes) -> None:
        self._answer = b""
        self._asked_at = monotonic()
        self.socket.sendall(request)

    def answered(self) -> float | None:
        """Milliseconds that a complete answer took; None while some of it is missing. Raises RuntimeError."""
        received = self.socket.recv(65_536)
        self._answer += received
        head, found, body = self._answer.partition(HEAD_ENDS)
        if found and len(body) >= _length(head):
            if not head.startswith(b"HTTP/1.1 2"):
                raise RuntimeError(f"a request was refused: {self._answer.decode()}")
            return 1_000 * (monotonic() - self._asked_at)
        if not received:
            raise RuntimeError("the server closed a connection")
        return None


def _length(head: bytes) -> int:
    start = head.lower().index(LENGTH) + len(LENGTH)
    return int(head[start:].split(b"\r\n", 1)[0])


def load(address: tuple[str, int], make: Callable[[int], bytes], *, clients: int, seconds: float) -> Load:
    """Ask from so many connections for so long. make: the n-th request, whole. A refusal ends it."""
    milliseconds: list[float] = []
    waiting = [_Client(address) for _ in range(clients)]
    asked = 0
    started = monotonic()
    with selectors.DefaultSelector() as selector:
        for client in waiting:
            selector.register(client.socket, selectors.EVENT_READ, client)
            client.ask(make(asked))
            asked += 1
        while len(milliseconds) < asked:
            for key, _ in selector.select(timeout=30):
                took = key.data.answered()
                if took is not None:
                    milliseconds.append(took)
                    if monotonic() - started < seconds:
                        key.data.ask(make(asked))
                        asked += 1
    took = monotonic() - started
    for client in waiting:
        client.socket.close()
    return Load(requests=asked, seconds=took, milliseconds=milliseconds)


def post(path: str, body: bytes, headers: dict[str, str]) -> bytes:
    """A request as it goes over the wire."""
    lines = [f"POST {path} HTTP/1.1", "Host: bench", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + HEAD_ENDS + body

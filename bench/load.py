"""Load over HTTP: many connections kept alive, each asking again as soon as it was answered, from one thread."""

import selectors
import socket
from collections.abc import Callable
from contextlib import ExitStack
from itertools import count
from typing import Final, Self

from msgspec import Struct

from shared.clock import monotonic

HEAD_ENDS: Final = b"\r\n\r\n"
LENGTH: Final = b"content-length:"
OPENING_SECONDS: Final = 0.05  # between one connection and the next


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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

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
    """Ask from so many connections for so long. make: the n-th request, whole. A refusal ends it.

    Connections are opened one after another, while those before are at work: opened at once, all of them end up with
    the server's first process that wakes up. What is measured begins when all are open.
    """
    numbers = count()
    milliseconds: list[float] = []
    with selectors.DefaultSelector() as selector, ExitStack() as opened:

        def work_until(deadline: float) -> None:
            """Ask again whoever was answered; past the deadline, take in the answers that are still out."""
            out = len(selector.get_map())
            while out:
                for key, _ in selector.select(timeout=30):
                    took = key.data.answered()
                    if took is not None:
                        milliseconds.append(took)
                        if monotonic() < deadline:
                            key.data.ask(make(next(numbers)))
                        else:
                            out -= 1
            for key in selector.get_map().values():
                key.data.ask(make(next(numbers)))

        for _ in range(clients):
            client = opened.enter_context(_Client(address))
            selector.register(client.socket, selectors.EVENT_READ, client)
            client.ask(make(next(numbers)))
            work_until(monotonic() + OPENING_SECONDS)
        milliseconds.clear()
        started = monotonic()
        work_until(started + seconds)
        took = monotonic() - started
    return Load(requests=len(milliseconds), seconds=took, milliseconds=milliseconds)


def ask(address: tuple[str, int], request: bytes) -> None:
    """One request, on a connection of its own. A refusal raises RuntimeError."""
    with _Client(address) as client:
        client.ask(request)
        while client.answered() is None:
            pass


def post(path: str, body: bytes, headers: dict[str, str]) -> bytes:
    """A request as it goes over the wire."""
    lines = [f"POST {path} HTTP/1.1", "Host: bench", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + HEAD_ENDS + body

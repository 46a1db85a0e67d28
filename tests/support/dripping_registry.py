"""A registry process that answers, but sends its bytes one at a time with a pause after each."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path


class DrippingRegistry:
    """An HTTP server over the files of a registry that drips from a given part of each answer on.

    Args:
        root: directory of the registry.
        drips: `head` drips from the status line on, `body` from the first byte of the body on.
        pause_seconds: between two bytes; each is far within any timeout of a single wait.

    Attributes:
        url: its address.
        is_slow: whether it drips at present; otherwise it answers at once.
    """

    def __init__(self, root: Path, *, drips: str, pause_seconds: float = 0.05) -> None:
        self._root, self._drips, self._pause_seconds = root, drips, pause_seconds
        self.is_slow = True
        self._stop = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._threads: list[threading.Thread] = []

    @contextlib.contextmanager
    def running(self) -> Iterator[str]:
        """Serve until the block ends."""
        acceptor = threading.Thread(target=self._accept)
        acceptor.start()
        try:
            yield self.url
        finally:
            self._stop.set()
            self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()
            for thread in (acceptor, *self._threads):
                thread.join(10)

    def _accept(self) -> None:
        while not self._stop.is_set():
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(10)
            request = b""
            while b"\r\n\r\n" not in request:
                if not (data := connection.recv(65_536)):
                    return
                request += data
            path = request.split(b" ")[1].decode().partition("?")[0].removeprefix("/v1/files/")
            file = self._root / path
            found = file.is_file()
            body = file.read_bytes() if found else b'{"detail": "nothing here"}'
            status = b"200 OK" if found else b"404 Not Found"
            head = b"HTTP/1.1 %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % (status, len(body))
            fast = head + body if not self.is_slow else b"" if self._drips == "head" else head
            connection.sendall(fast)
            for place in range(len(fast), len(head + body)):
                if self._stop.is_set():
                    return
                connection.sendall((head + body)[place : place + 1])
                time.sleep(self._pause_seconds)

"""A proxy in front of an object store on this machine, which delays, refuses and cuts answers."""

import contextlib
import http.client
import random
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

# Headers that are of one connection.
_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "host"})


class Faults:
    """What happens to requests; it may be changed while the proxy runs.

    Attributes:
        latency: seconds before each answer.
        refused: fraction of the requests that are answered by 429 or 503 without reaching the store.
        cut: fraction of the answers with a body that end in its middle.
        requests: number of requests so far.
        most_in_flight: largest number of requests at a time.
    """

    def __init__(self, latency: float = 0.0, refused: float = 0.0, cut: float = 0.0, seed: int = 0):
        self.latency, self.refused, self.cut = latency, refused, cut
        self.requests = self.most_in_flight = self._in_flight = 0
        self._draw, self._lock = random.Random(seed), threading.Lock()

    @contextlib.contextmanager
    def request(self) -> Iterator[tuple[bool, bool]]:
        """Count a request; yield whether it is refused, and whether its answer is cut."""
        with self._lock:
            self.requests += 1
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
            refused, cut = self._draw.random() < self.refused, self._draw.random() < self.cut
        try:
            yield refused, cut
        finally:
            with self._lock:
                self._in_flight -= 1


@contextlib.contextmanager
def serve(store: str, faults: Faults) -> Iterator[str]:
    """Run a proxy of the store at the address `store`; yield its own address."""
    target = urlsplit(store).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def forward(self) -> None:
            with faults.request() as (refused, cut):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                time.sleep(faults.latency)
                if refused:
                    self.send_response(503 if faults.requests % 2 else 429)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                connection = http.client.HTTPConnection(target, timeout=60)
                # The signature of S3 covers the host that the client has asked.
                headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
                headers["Host"] = self.headers["Host"]
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
                content = answer.read()
                connection.close()
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in _HOP:
                        self.send_header(name, value)
                length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
                self.send_header("Content-Length", length or "0")
                self.end_headers()
                if cut and content and self.command == "GET":
                    self.wfile.write(content[: len(content) // 2])
                    self.close_connection = True
                else:
                    self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = do_PATCH = forward

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 256

        def handle_error(self, *_: object) -> None:
            pass  # the client has gone

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()

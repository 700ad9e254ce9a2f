"""A small real HTTP server that speaks as much of OpenAI's protocol as vLLM's client here needs, and fails on demand.

Its replies are about a dog and follow from the request's seed. As a program it takes vLLM's own arguments.
"""

import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

REPLY = '{"subject": "dog", "class": "dog", "caption": "a dog number %d on a beach"}'


class Server(ThreadingHTTPServer):
    """`fault` is asked, with a request's number, what to do wrong with it; see `Handler.do_POST`."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int = 0, model: str = "captions") -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.model = model
        self.fault: Callable[[int], str | None] = lambda number: None
        self.delay = 0.0
        self.received: list[dict[str, Any]] = []
        self.under_way = self.most_under_way = 0
        self.lock = threading.Lock()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._answer(200, {"data": [{"id": self.server.model}]} if self.path == "/v1/models" else {})

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.received.append(request)
            number = len(server.received)
            server.under_way += 1
            server.most_under_way = max(server.most_under_way, server.under_way)
        try:
            time.sleep(server.delay)
            self._complete(request, server.fault(number))
        finally:
            with server.lock:
                server.under_way -= 1

    def _complete(self, request: dict[str, Any], fault: str | None) -> None:
        match fault:
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True
                return
            case "cut short":
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b'{"choices": [')
                self.close_connection = True
                return
            case "hang":
                time.sleep(2)
            case "nonsense":
                return self._answer(200, {"choices": []})
            case None:
                pass
            case status:
                return self._answer(int(status), {"message": "no\nnot now"})
        count = request.get("response_format", {}).get("json_schema", {}).get("schema", {}).get("minItems", 1)
        texts = [REPLY % (request["seed"] + position) for position in range(count)]
        self._answer(200, {"choices": [{"text": texts[0] if count == 1 else f"[{', '.join(texts)}]"}]})

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def running(model: str = "captions") -> Iterator[Server]:
    """The server in this process."""
    server = Server(model=model)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def main() -> None:
    """Take vLLM's arguments; --die-at=N ends the server at its Nth request, --child gives it a child of its own."""
    options = dict(re.findall(r"--([\w-]+)[ =](\S+)", " ".join(sys.argv[1:])))
    server = Server(int(options["port"]), options["served-model-name"])
    if "die-at" in options:
        server.fault = lambda number: "die" if number == int(options["die-at"]) else None
    if "child" in options:
        child = subprocess.Popen(["sleep", "300"])
        print(f"child {child.pid}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()

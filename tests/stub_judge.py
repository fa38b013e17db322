"""A server with the interface of an OpenAI-compatible endpoint that can misbehave."""

from __future__ import annotations

import json
import math
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Fault = str | None
RUBBISH = {  # bodies sent instead of a reply
    "no json": b"<html>",
    "half a json": b'{"choices": [{"message": {"content": "yes"',
    "nested json": b"[" * 100_000,
    "no text": b"\xff\xfe",
    "nothing": b"",
    "no choices": b'{"choices": []}',
    "no content": b'{"choices": [{"message": {"content": null}}]}',
    "list": b"[1]",
    "parts": b'{"choices": [{"message": {"content": [{"text": "yes"}]}}]}',
    "no probability": b'{"choices": [{"message": {"content": "yes"}, "logprobs": {"content": [{"top_logprobs":'
    b' [{"token": "yes", "logprob": 1e9}]}]}}]}',
}


class StubJudge(ThreadingHTTPServer):
    """Server that answers yes with probability `p_yes`, or with `said[text]` where that is set.

    Each question first meets `faults` in order, one per request, and is answered after that.
    """

    daemon_threads = True

    def __init__(self, faults: tuple[Fault, ...] = (), p_yes: float = 0.9):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.faults, self.p_yes = faults, p_yes
        self.said: dict[str, str] = {}
        self.seen: Counter[str] = Counter()  # question -> number of requests
        self.bodies: list[dict] = []
        self.headers: list[dict] = []
        self.open = self.most_open = 0
        self.visits = 0  # requests of any kind
        self.location = ""  # sent with a redirect
        self.delay = 0.0
        self.lock = threading.Lock()
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @property
    def requests(self) -> int:
        return sum(self.seen.values())

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients that gave up waiting are expected


class _Handler(BaseHTTPRequestHandler):
    server: StubJudge

    def do_GET(self) -> None:
        self.server.visits += 1
        self._send(200, self._reply({}, "yes"))

    def do_POST(self) -> None:
        server = self.server
        server.visits += 1
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        *images, text = body["messages"][0]["content"]
        identity = text["text"] + "".join(image["image_url"]["url"] for image in images)
        with server.lock:
            turn = server.seen[identity]
            server.seen[identity] += 1
            server.bodies.append(body)
            server.headers.append(dict(self.headers))
            server.open += 1
            server.most_open = max(server.most_open, server.open)
        time.sleep(server.delay)
        fault = server.faults[turn] if turn < len(server.faults) else None
        reply = self._reply(body, text["text"])
        with server.lock:
            server.open -= 1  # before the reply: its reader may ask again before this thread goes on
        self._misbehave(fault, reply) if fault else self._send(200, reply)

    def _reply(self, body: dict, text: str) -> bytes:
        said = self.server.said.get(text, "yes")
        choice: dict = {"message": {"role": "assistant", "content": said}}
        if body.get("logprobs"):
            p = self.server.p_yes
            top = [("Yes", 0.6 * p), (" yes", 0.4 * p), ("No", 1 - p), ("maybe", 1e-3)]
            entries = [{"token": token, "logprob": math.log(max(value, 1e-9))} for token, value in top]
            choice["logprobs"] = {"content": [{"token": "Yes", "top_logprobs": entries}]}
        return json.dumps({"choices": [choice]}).encode()

    def _misbehave(self, fault: str, reply: bytes) -> None:
        if fault == "silent":
            self.server.closing.wait()
        elif fault == "dripping":
            self.send_response(200)
            self.end_headers()
            while not self.server.closing.wait(0.05):  # raises an error once the client has hung up
                self.wfile.write(b" ")
                self.wfile.flush()
        elif fault == "hangs up":
            self.connection.close()
        elif fault == "cut off":
            self._send(200, reply[:-20], len(reply))
            self.connection.close()
        elif fault in RUBBISH:
            self._send(200, RUBBISH[fault])
        elif fault == "neither":
            entries = [{"token": "maybe", "logprob": -0.1}]
            choice = {"message": {"content": "maybe"}, "logprobs": {"content": [{"top_logprobs": entries}]}}
            self._send(200, json.dumps({"choices": [choice]}).encode())
        else:
            self._send(int(fault), b'{"error": "told\nto"}')

    def _send(self, status: int, content: bytes, length: int | None = None) -> None:
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("Location", self.server.location)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def stub_judge(*faults: Fault, p_yes: float = 0.9) -> Iterator[StubJudge]:
    server = StubJudge(faults, p_yes)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()

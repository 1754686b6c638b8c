"""A server on this machine that answers what a test tells it to, in OpenAI's protocol or otherwise."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any


@dataclass(frozen=True)
class Reply:
    """What is sent for one request.

    Attributes:
        blocks: of the body, sent one by one; a number is a pause of so many seconds.
        status, kind, headers: of the response; ``kind`` is its content type.
    """

    blocks: Sequence[bytes | float]
    status: int = 200
    kind: str = "text/event-stream"
    headers: dict[str, str] = field(default_factory=dict)


def streamed(*deltas: dict[str, Any], finish: str | None = "stop", usage: dict[str, int] | None = None) -> Reply:
    """An answer as events: one for each delta, one with the reason of its end, one with the counts."""
    events: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas
    ]
    if finish is not None:
        events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    if usage is not None:
        events.append({"choices": [], "usage": usage})
    blocks = [f"data: {json.dumps(event)}\n\n".encode() for event in events]
    return Reply([*blocks, b"data: [DONE]\n\n"] if finish is not None else blocks)


def whole(value: Any, status: int = 200, **headers: str) -> Reply:
    """A body of JSON."""
    names = {name.replace("_", "-"): text for name, text in headers.items()}
    return Reply([json.dumps(value).encode()], status, "application/json", names)


class ScriptedServer:
    """Gives its replies in order to questions, and lists its models; a context manager.

    Args:
        replies: to questions; the last one again and again.
        models: that it lists; a Reply is sent as it is.
        port: that it listens on; 0 for any that is free.
    """

    def __init__(self, *replies: Reply, models: Sequence[str] | Reply = ("scripted",), port: int = 0) -> None:
        self.requests: list[dict[str, Any]] = []
        """Bodies of the questions."""
        self.headers: list[dict[str, str]] = []
        self._waiting, self._taking = list(replies), Lock()
        listing = models if isinstance(models, Reply) else whole({"data": [{"id": name} for name in models]})
        script = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._send(listing if self.path == "/v1/models" else whole({"detail": "Not Found"}, 404))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                script.requests.append(body)
                script.headers.append(dict(self.headers))
                known = self.path == "/v1/chat/completions"
                self._send(script.reply(body) if known else whole({"detail": "Not Found"}, 404))

            def _send(self, reply: Reply) -> None:
                self.send_response(reply.status)
                for name, text in {"content-type": reply.kind, **reply.headers}.items():
                    self.send_header(name, text)
                self.end_headers()
                for block in reply.blocks:
                    if isinstance(block, bytes):
                        self.wfile.write(block)
                        self.wfile.flush()
                    else:
                        time.sleep(block)

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that goes away is no error."""

        self._server = Server(("127.0.0.1", port), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def reply(self, body: dict[str, Any]) -> Reply:
        """What is sent for a question."""
        with self._taking:  # several may be asked for at once
            return self._waiting.pop(0) if len(self._waiting) > 1 else self._waiting[0]

    def __enter__(self) -> ScriptedServer:
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class AnsweringServer(ScriptedServer):
    """Answers each question by a function of its body: a text in the trained format or another, or a whole Reply."""

    def __init__(self, answer: Callable[[dict[str, Any]], str | Reply], models: Sequence[str] = ("answering",)) -> None:
        self._answer = answer
        super().__init__(models=models)

    def reply(self, body: dict[str, Any]) -> Reply:
        said = self._answer(body)
        if isinstance(said, Reply):
            return said
        choice = {"index": 0, "message": {"content": said}, "finish_reason": "stop"}
        return whole({"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": len(said.split())}})

"""A server of OpenAI's protocol that answers every question at once, and says when its first and last one came.

Run as a process of its own: it prints its port, and ends with its standard input. ``GET /v1/models`` begins a count,
``GET /times`` gives it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

ANSWER = {
    "id": "1", "object": "chat.completion", "created": 1, "model": "answering",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Answer: A"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 20, "total_tokens": 25},
}  # fmt: skip


class Counting:
    """Answers, and keeps the times of questions."""

    def __init__(self) -> None:
        self.times: list[float] = []

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one connection's requests until it is closed."""
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                lengths = [line[15:] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
                if lengths:
                    await reader.readexactly(int(lengths[0]))
                body = json.dumps(self.reply(head.split(b" ", 2)[:2])).encode()
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
                             b"content-length: %d\r\n\r\n" % len(body) + body)  # fmt: skip
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def reply(self, asked: list[bytes]) -> Any:
        """What a method and path get."""
        match asked:
            case [b"GET", b"/times"]:
                return {"questions": len(self.times), "seconds": self.times[-1] - self.times[0] if self.times else 0.0}
            case [b"GET", _]:
                self.times.clear()
                return {"data": [{"id": "answering"}]}
        self.times.append(time.monotonic())
        return ANSWER


async def main() -> None:
    """Serve until nobody wants it any more."""
    server = await asyncio.start_server(Counting().connected, "127.0.0.1", 0)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(main())

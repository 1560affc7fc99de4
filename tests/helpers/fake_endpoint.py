"""A real HTTP server on this machine that speaks OpenAI's chat completions protocol, well or badly."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """What the server sends back: a JSON value or raw bytes, after a pause in seconds."""

    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    pause: float = 0.0


def completion(content: str | None, refusal: str | None = None, finish_reason: str = "stop") -> Reply:
    message = {"role": "assistant", "content": content, "refusal": refusal}
    return Reply(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 0,
            "model": "tiny",
            "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
        }
    )


def nouns(foreground: list[str], background: list[str]) -> Reply:
    return completion(json.dumps({"foreground": foreground, "background": background}))


def error(status: int, message: str, code: str | None = None) -> Reply:
    return Reply({"error": {"message": message, "type": "error", "code": code}}, status, {"retry-after-ms": "5"})


@dataclass
class Endpoint:
    """The running server and what it saw.

    Attributes:
        url: for `prompts.base_url`.
        script: the answer to a request, given how often its image was asked for before.
        requests: bodies of all requests.
        received, answered: data URL of an image -> number of requests, and of answers with a completion sent in full.
        most_at_once: largest number of requests under way together.
    """

    url: str
    script: Callable[[int], Reply]
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    received: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    under_way: int = 0
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def serve(script: Callable[[int], Reply]) -> Iterator[Endpoint]:
    """Answer requests by `script` until the context ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            image = body["messages"][0]["content"][1]["image_url"]["url"]
            with endpoint.lock:
                endpoint.requests.append(body)
                endpoint.headers.append({name.lower(): value for name, value in self.headers.items()})
                asked_before = endpoint.received[image]
                endpoint.received[image] += 1
                endpoint.under_way += 1
                endpoint.most_at_once = max(endpoint.most_at_once, endpoint.under_way)
            reply = endpoint.script(asked_before)
            time.sleep(reply.pause)
            content = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            with endpoint.lock:
                endpoint.under_way -= 1
                try:
                    self.send_response(reply.status)
                    for name, value in (
                        {"content-type": "application/json", "content-length": str(len(content))} | reply.headers
                    ).items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(content)
                except OSError:  # the client is gone
                    return
                endpoint.answered[image] += reply.status == 200

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    endpoint = Endpoint(f"http://127.0.0.1:{server.server_port}/v1", script)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()

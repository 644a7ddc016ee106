"""An OpenAI-compatible chat server on this machine, whose answers a test prepares."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def reply(text: str | None, model: str = "stand-in", finish_reason: str = "stop", **message: Any) -> dict:
    """A completion as OpenAI's API has it."""
    choice = {"message": {"role": "assistant", "content": text, **message}, "finish_reason": finish_reason}
    usage = {"prompt_tokens": 100, "completion_tokens": 10}
    return {"model": model, "choices": [choice], "usage": usage}


class ChatServer:
    """Gives the prepared `responses`, then what `answer` makes of a request's body.

    A response is (status, body, headers), or a body of status 200: bytes, or anything that JSON has.
    `requests` has path, headers and body of each.
    """

    def __init__(self, answer: Callable[[dict], Any]):
        self.answer = answer
        self.responses: list[Any] = []
        self.requests: list[tuple[str, dict, dict]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.requests.append((self.path, dict(self.headers), body))
                response = server.responses.pop(0) if server.responses else server.answer(body)
                status, content, headers = response if isinstance(response, tuple) else (200, response, {})
                content = content if isinstance(content, bytes) else json.dumps(content).encode()

                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args):
                pass

        self.http = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):  # a client that was killed
        pass

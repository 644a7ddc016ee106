"""Errors of a request, in the shape of OpenAI's API.

    {"error": {"message": "...", "type": "invalid_request_error", "param": "n", "code": null}}

400 is a request that contradicts the API or the model's limits, 422 an image or video that cannot be read or
is larger than allowed. Nothing of the server's own (paths, addresses of objects, traces) is in a message.
"""

import re
from typing import Any

TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "timeout_error",
}
INTERNAL = "the server failed to answer this request; its log tells where"

# what a library may put into its sentences: paths of this machine, and addresses of objects
PATH = re.compile(r"(?<![\w:/.+=-])/(?:[\w.@+-]+/)+[\w.@+-]*")
OBJECT = re.compile(r"<[\w.]+ object at 0x[0-9a-fA-F]+>")


class ApiError(Exception):
    """What a request is answered with in place of an answer."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code

    def body(self) -> dict[str, Any]:
        """The error as OpenAI's API writes it."""
        kind = TYPES.get(self.status, "invalid_request_error")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}


def bad_request(message: str, param: str | None = None) -> ApiError:
    """A request that contradicts the API or the model's limits."""
    return ApiError(400, message, param=param)


def without_paths(message: str, quoted: str = "") -> str:
    """The message in one line, without paths and addresses of objects; `quoted`: what may stay in it."""
    message = OBJECT.sub("the file", " ".join(message.split()))
    return PATH.sub(lambda found: found[0] if found[0] in quoted else "(a path)", message)

"""A small stand-in of the Hub, which tests start on loopback: its HTTP API as far as `huggingface_hub` asks
for it when a model is created, uploaded over LFS, listed and downloaded.

It keeps everything in memory and says what it was asked (`requests`) and sent (`arrived`). Made from the
client's source and the Hub's documented answers; what the tests do not reach (pull requests, Xet, gated
repositories, spaces) is not here.

    with StandIn() as hub:        # HF_ENDPOINT is hub.endpoint, the token hub.TOKEN
        hub.breaks_after = 2      # the connection is cut within the third LFS upload, and from then on
"""

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from huggingface_hub import close_session, constants

NEW_REPOSITORY = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
LFS_SUFFIXES = (".safetensors", ".model")
REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"


class Blob(NamedTuple):
    """A file of a commit."""

    content: bytes
    is_lfs: bool

    @property
    def git_id(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def etag(self) -> str:
        return hashlib.sha256(self.content).hexdigest() if self.is_lfs else self.git_id


class Repository:
    """Branches, and the commits they are at: `commits[hash]` is what each file was."""

    def __init__(self, private: bool):
        self.private = private
        self.commits: dict[str, dict[str, Blob]] = {}
        self.messages: list[str] = []
        self.branches: dict[str, str] = {}
        self.commit("main", {".gitattributes": Blob(NEW_REPOSITORY, False)}, "initial commit")

    def commit(self, branch: str, files: dict[str, Blob], message: str) -> str:
        content = json.dumps(
            [len(self.commits), message, {name: files[name].git_id for name in sorted(files)}]
        )
        self.branches[branch] = hashlib.sha1(content.encode()).hexdigest()
        self.commits[self.branches[branch]] = files
        self.messages.append(message)
        return self.branches[branch]

    def at(self, revision: str) -> str | None:
        """The hash of a branch's commit or of a commit."""
        return self.branches.get(revision, revision if revision in self.commits else None)


class Refusal(Exception):
    """An answer other than success, with what the Hub puts in its headers."""

    def __init__(self, status: int, code: str | None, message: str, **headers: str):
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {}) | headers


class StandIn(ThreadingHTTPServer):
    """The server; see the module."""

    TOKEN, USER = "hf_standin", "someone"
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}  # of LFS, by SHA-256
        self.requests: list[str] = []
        self.arrived: list[str] = []  # objects that came whole, in order
        self.breaks_after: int | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> "StandIn":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    """Answers a request by the method of `ROUTES` that its path belongs to."""

    protocol_version = "HTTP/1.1"
    server: StandIn

    def log_message(self, *_):
        pass

    def _answer(self):
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        self._content = None
        for methods, pattern, answer in ROUTES:
            match = re.fullmatch(pattern, path) if self.command in methods.split() else None
            if match:
                return self._guarded(answer, **match.groupdict())
        return self._send({"error": f"the stand-in has no {self.command} {path}"}, 501)

    def _guarded(self, answer, **parts: str):
        try:
            with self.server.lock:  # one request at a time
                answer(self, **parts)
        except Refusal as refusal:
            self._body()  # what was not read of it would be taken for the next request
            self._send({"error": str(refusal)}, refusal.status, **refusal.headers)

    do_GET = do_HEAD = do_POST = do_PUT = _answer

    def _body(self) -> bytes:
        if self._content is None:
            chunks = [self.rfile.read(int(self.headers.get("Content-Length", 0)))]
            if self.headers.get("Transfer-Encoding") == "chunked":
                chunks = iter(self._chunk, b"")
            self._content = b"".join(chunks)
        return self._content

    def _chunk(self) -> bytes:
        chunk = self.rfile.read(int(self.rfile.readline(), 16))
        self.rfile.readline()
        return chunk

    def _json(self) -> dict:
        return json.loads(self._body() or b"{}")

    def _send(self, content, status: int = 200, **headers: str):
        """Sends bytes as they are, else JSON; HEAD gets the headers alone."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        if not isinstance(content, bytes):
            headers = {"Content-Type": "application/json"} | headers
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    # ---- who asks for what

    def _check_token(self):
        if self.headers.get("Authorization") != f"Bearer {self.server.TOKEN}":
            raise Refusal(401, None, "Invalid credentials in Authorization header")

    def _repository(self, repo: str, write: bool = False) -> Repository:
        if write:
            self._check_token()
        found = self.server.repositories.get(repo)
        has_token = self.headers.get("Authorization") == f"Bearer {self.server.TOKEN}"
        if found is None or (found.private and not has_token):
            raise Refusal(404 if has_token else 401, "RepoNotFound", "Repository not found")
        return found

    def _commit(self, repository: Repository, revision: str) -> str:
        if (commit := repository.at(revision)) is None:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    # ---- repositories

    def whoami(self):
        self._check_token()
        self._send({"type": "user", "name": self.server.USER, "orgs": []})

    def create(self):
        self._check_token()
        asked = self._json()
        repo = f"{asked['organization'] or self.server.USER}/{asked['name']}"
        exists = repo in self.server.repositories
        if not exists:
            private = asked.get("private", False) or asked.get("visibility") == "private"
            self.server.repositories[repo] = Repository(private)
        answer = {"url": f"{self.server.endpoint}/{repo}", "name": repo}
        self._send(
            answer | ({"error": "You already created this model repo"} if exists else {}),
            409 if exists else 200,
        )

    def validate_yaml(self):
        content = self._json()["content"]
        empty = [] if content.startswith("---\n") else [{"message": "empty or missing yaml metadata"}]
        self._send({"errors": [], "warnings": empty})

    def info(self, repo: str, revision: str | None):
        repository = self._repository(repo)
        commit = self._commit(repository, revision or "main")
        files = [{"rfilename": name} for name in repository.commits[commit]]
        self._send({"id": repo, "sha": commit, "private": repository.private, "siblings": files})

    def branch(self, repo: str, revision: str):
        repository = self._repository(repo, write=True)
        start = self._json().get("startingPoint", "main")
        if revision in repository.branches:
            raise Refusal(409, None, f"Reference already exists: {revision}")
        repository.branches[revision] = self._commit(repository, start)
        self._send({})

    def tree(self, repo: str, revision: str, folder: str | None):
        repository = self._repository(repo)
        files = repository.commits[self._commit(repository, revision)]
        listed = [
            _entry(name, blob)
            for name, blob in files.items()
            if name.startswith(f"{folder}/" if folder else "")
        ]
        if folder and not listed:
            raise Refusal(404, "EntryNotFound", f"{folder} does not exist on {revision}")
        self._send(listed)

    # ---- uploads

    def preupload(self, repo: str, revision: str):
        repository = self._repository(repo, write=True)
        there = repository.commits[self._commit(repository, revision)]
        self._send({"files": [_upload_mode(x["path"], there.get(x["path"])) for x in self._json()["files"]]})

    def lfs_batch(self, repo: str):
        self._repository(repo, write=True)
        objects = [{"oid": x["oid"], "size": x["size"]} for x in self._json()["objects"]]
        for x in objects:
            if x["oid"] not in self.server.objects:
                address = f"{self.server.endpoint}/lfs/{x['oid']}"
                x["actions"] = {"upload": {"href": address}, "verify": {"href": f"{address}/verify"}}
        self._send({"transfer": "basic", "objects": objects})

    def lfs_upload(self, oid: str):
        if self.server.breaks_after is not None and len(self.server.arrived) >= self.server.breaks_after:
            self.rfile.read(1000)
            self.close_connection = True
            return self.connection.shutdown(socket.SHUT_RDWR)
        content = self._body()
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refusal(400, None, "Bad digest")
        self.server.objects[oid] = content
        self.server.arrived.append(oid)
        return self._send(b"")

    def lfs_verify(self, oid: str):
        self._check_token()
        if len(self.server.objects[oid]) != self._json()["size"]:
            raise Refusal(400, None, "Wrong size")
        self._send({})

    def commit(self, repo: str, revision: str):
        repository = self._repository(repo, write=True)
        head, *changes = (json.loads(line) for line in self._body().splitlines())
        files = dict(repository.commits[self._commit(repository, revision)])
        for change in changes:
            name = change["value"]["path"]
            if change["key"] == "deletedFile":
                del files[name]
            elif change["key"] == "file":
                files[name] = Blob(base64.b64decode(change["value"]["content"]), False)
            elif change["value"]["oid"] in self.server.objects:
                files[name] = Blob(self.server.objects[change["value"]["oid"]], True)
            else:
                raise Refusal(400, None, f"{name}: LFS pointer pointed to a file that does not exist")
        commit = repository.commit(revision, files, head["value"]["summary"])
        self._send({"commitUrl": f"{self.server.endpoint}/{repo}/commit/{commit}", "commitOid": commit})

    # ---- downloads

    def resolve(self, repo: str, revision: str, name: str):
        repository = self._repository(repo)
        commit = self._commit(repository, revision)
        blob = repository.commits[commit].get(name)
        if blob is None:
            raise Refusal(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": commit})
        headers = {"X-Repo-Commit": commit, "ETag": f'"{blob.etag}"'}
        if blob.is_lfs:
            headers |= {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(len(blob.content))}
        self._send(blob.content, **headers)


def _entry(name: str, blob: Blob) -> dict:
    lfs = {"lfs": {"oid": blob.etag, "size": len(blob.content), "pointerSize": 130}} if blob.is_lfs else {}
    return {"type": "file", "path": name, "size": len(blob.content), "oid": blob.git_id} | lfs


def _upload_mode(name: str, there: Blob | None) -> dict:
    mode = "lfs" if name.endswith(LFS_SUFFIXES) else "regular"
    return {"path": name, "uploadMode": mode, "shouldIgnore": False} | ({"oid": there.etag} if there else {})


MODEL, REVISION = f"/api/models/{REPO}", r"(?P<revision>[^/]+)"
ROUTES = [
    ("GET", "/api/whoami-v2", Handler.whoami),
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate_yaml),
    ("GET", f"{MODEL}(/revision/{REVISION})?", Handler.info),
    ("POST", f"{MODEL}/branch/{REVISION}", Handler.branch),
    ("GET", f"{MODEL}/tree/{REVISION}(/(?P<folder>.+))?", Handler.tree),
    ("POST", f"{MODEL}/preupload/{REVISION}", Handler.preupload),
    ("POST", f"{MODEL}/commit/{REVISION}", Handler.commit),
    ("POST", f"/{REPO}.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", Handler.lfs_upload),
    ("POST", "/lfs/(?P<oid>[0-9a-f]{64})/verify", Handler.lfs_verify),
    ("GET HEAD", f"/{REPO}/resolve/{REVISION}/(?P<name>.+)", Handler.resolve),
]


def environment(hub: StandIn, home: Path) -> dict:
    """What tells another process to use the stand-in."""
    switches = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    where = {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(home),
        "HF_TOKEN": hub.TOKEN,
        "NO_PROXY": "127.0.0.1",
    }
    return switches | where


@contextmanager
def connected_stand_in(monkeypatch) -> Iterator[StandIn]:
    """A stand-in that the client in this process speaks to, with a token that may write."""
    monkeypatch.setenv("HF_TOKEN", StandIn.TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    close_session()  # the next one reads the environment
    with StandIn() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        yield server
    close_session()

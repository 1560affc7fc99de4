"""A local server of the Hugging Face hub's HTTP protocol, for the real huggingface_hub client: repositories, commits, faults.

Model information with all files, the paged tree, `resolve` with ETag, X-Repo-Commit and, for large files, a redirect to a
second server with signed addresses; Range; X-Error-Code; access tokens. Faults are given by rule: which requests, how often.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".bin", ".msgpack", ".onnx", ".ckpt", ".model")
_PAGE = 50  # entries of a tree


@dataclass
class Repository:
    """Commits of one repository, oldest first, and what its branches and tags stand for.

    Args:
        gated: only the token "granted" may read files.
        private: without the token "granted" it seems not to exist.
    """

    name: str
    commits: dict[str, dict[str, Path]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False

    def commit(self, folder: Path, branch: str = "main") -> str:
        """Add the state of a folder as a commit and move the branch to it."""
        files = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}
        state = [f"{path} {file.stat().st_size} {file.stat().st_mtime_ns}" for path, file in files.items()]
        commit = hashlib.sha1("\n".join([self.name, str(len(self.commits)), *state]).encode()).hexdigest()
        self.commits[commit] = files
        self.names[branch] = commit
        return commit


@dataclass
class Fault:
    """What happens to requests whose "METHOD path" matches.

    Args:
        match: regular expression.
        times: how often; None for always.
        status, headers: answer so.
        reset: close the connection without an answer.
        hang: seconds of silence before the answer.
        drop: close the connection after so many bytes of the body.
        corrupt: send other bytes of the same number.
        cut: send, and announce, so many bytes fewer.
    """

    match: str
    times: int | None = None
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    reset: bool = False
    hang: float = 0
    drop: int | None = None
    corrupt: bool = False
    cut: int = 0


class HubServer:
    """Two servers on free ports: the hub, and the store that large files lie in.

    Attributes:
        requests: "METHOD path" of every request to the hub, and "GET cdn path" for the store.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.bytes_sent = 0
        self.tokens: list[str | None] = []
        self._digests: dict[Path, str] = {}
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
        for server in self._servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._servers[0].server_port}"

    @property
    def store(self) -> str:
        return f"http://127.0.0.1:{self._servers[1].server_port}"

    def add(self, name: str, folder: Path, **options: bool) -> Repository:
        repository = self.repositories[name] = Repository(name, **options)
        repository.commit(folder)
        return repository

    def fetched(self) -> set[str]:
        """Paths of the files that were asked for; of two with the same content the client fetches one."""
        return {line.partition("/resolve/")[2].partition("/")[2] for line in self.requests if "/resolve/" in line}

    @contextmanager
    def failing(self, match: str, **what: object) -> Iterator[Fault]:
        """A fault for as long as the block runs."""
        fault = Fault(match, **what)  # type: ignore[arg-type]
        self.faults.append(fault)
        try:
            yield fault
        finally:
            self.faults.remove(fault)

    def forget(self) -> None:
        """Begin a new list of requests."""
        self.requests.clear()
        self.tokens.clear()
        self.bytes_sent = 0

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def fault_for(self, line: str) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                if re.search(fault.match, line) and fault.times != 0:
                    if fault.times is not None:
                        fault.times -= 1
                    return fault
        return None

    def sha256(self, file: Path) -> str:
        with self._lock:
            if file not in self._digests:
                with open(file, "rb") as content:
                    self._digests[file] = hashlib.file_digest(content, "sha256").hexdigest()
            return self._digests[file]


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        path, query = unquote(parts.path), parse_qs(parts.query)
        is_store = self.server is self.hub._servers[1]
        line = f"{self.command} {'cdn ' if is_store else ''}{path}"
        if path.startswith("/api/agent-harnesses"):  # the client asks this of its own accord when a program calls it
            self._send(404, b"", {})
            return
        self.hub.requests.append(line)
        self._fault = self.hub.fault_for(line)
        try:
            if self._fault and not self._broken(self._fault):
                return
            if is_store:
                self._stored(path)
            else:
                self._hub(path, query)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _broken(self, fault: Fault) -> bool:
        """Act on a fault; whether the request is to be answered all the same."""
        if fault.hang:
            threading.Event().wait(fault.hang)  # tests replace time.sleep
        if fault.reset:
            self.close_connection = True
            return False
        if fault.status:
            self._send(fault.status, b"", dict(fault.headers))
            return False
        return True

    def _hub(self, path: str, query: Mapping[str, list[str]]) -> None:
        given = self.headers.get("Authorization") or ""
        token = given.removeprefix("Bearer ") if given.startswith("Bearer ") else None
        self.hub.tokens.append(token)
        if token == "expired":
            return self._refuse(401, "", "Invalid credentials in Authorization header")
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+)(?:/.*)?)?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        match = api or file
        repository = self.hub.repositories.get(match[1]) if match else None
        if repository is None or (repository.private and token != "granted"):
            return self._refuse(401, "RepoNotFound", "Repository not found")
        revision = (api[3] if api else file[2] if file else None) or "main"
        commit = revision if revision in repository.commits else repository.names.get(revision)
        if commit is None:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files = repository.commits[commit]
        if api and api[2] == "tree":
            return self._tree(path, files, query)
        if api:
            siblings = [{"rfilename": name, **self._facts(name, content)} for name, content in files.items()]
            facts = {"id": repository.name, "sha": commit, "siblings": siblings, "gated": repository.gated, "tags": []}
            return self._send(200, json.dumps({**facts, "private": repository.private}).encode(), {})
        assert file is not None
        if repository.gated and token != "granted":
            return self._refuse(403 if token else 401, "GatedRepo", f"Access to model {repository.name} is restricted")
        if file[3] not in files:
            return self._refuse(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
        return self._resolve(files[file[3]], file[3], commit)

    def _resolve(self, content: Path, name: str, commit: str) -> None:
        facts = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if name.endswith(LARGE):
            digest = self.hub.sha256(content)
            address = f"{self.hub.store}/{digest}/{name}?Expires=9&Signature=secret-signature&Key-Pair-Id=K1"
            linked = {"X-Linked-Size": str(content.stat().st_size), "X-Linked-Etag": f'"{digest}"', "Location": address}
            return self._send(302, b"", facts | linked)
        data = content.read_bytes()
        return self._send_ranged(data, facts | {"ETag": f'"{hashlib.sha1(data).hexdigest()}"'})

    def _stored(self, path: str) -> None:
        digest = path.removeprefix("/").partition("/")[0]
        content = next(file for file, known in self.hub._digests.items() if known == digest)
        return self._send_file(content, {"ETag": f'"{digest}"'})

    def _tree(self, path: str, files: Mapping[str, Path], query: Mapping[str, list[str]]) -> None:
        first = int(query.get("cursor", ["0"])[0])
        entries = [{"type": "file", "path": name, "oid": "0" * 40, **self._facts(name, file)} for name, file in files.items()]
        more = {}
        if first + _PAGE < len(entries):
            more = {"Link": f'<{self.hub.url}{path}?recursive=true&cursor={first + _PAGE}>; rel="next"'}
        self._send(200, json.dumps(entries[first : first + _PAGE]).encode(), more)

    def _facts(self, name: str, file: Path) -> dict[str, object]:
        size = file.stat().st_size
        lfs = {"lfs": {"size": size, "sha256": "0" * 64, "pointerSize": 130}} if name.endswith(LARGE) else {}
        return {"size": size, **lfs}

    def _refuse(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        codes = {"X-Error-Code": code} if code else {}
        self._send(status, b"", {**codes, "X-Error-Message": message, **(headers or {})})

    def _send_file(self, file: Path, headers: dict[str, str]) -> None:
        size = file.stat().st_size
        first = self._first_byte()
        status = 206 if first else 200
        if first:
            headers = headers | {"Content-Range": f"bytes {first}-{size - 1}/{size}"}
        count = size - first - (self._fault.cut if self._fault else 0)
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(count)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        sent, limit = 0, self._fault.drop if self._fault else None
        with open(file, "rb") as content:
            content.seek(first)
            while sent < count:
                block = content.read(min(2**20, count - sent))
                if limit is not None and sent + len(block) > limit:
                    self.wfile.write(block[: limit - sent])
                    self.wfile.flush()
                    self.close_connection = True
                    return
                if self._fault and self._fault.corrupt:
                    block = bytes(len(block))
                self.wfile.write(block)
                sent += len(block)
                self.hub.bytes_sent += len(block)

    def _first_byte(self) -> int:
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        return int(match[1]) if match else 0

    def _send_ranged(self, data: bytes, headers: dict[str, str]) -> None:
        first = self._first_byte()
        if first:
            return self._send(206, data[first:], headers | {"Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"})
        return self._send(200, data, headers)

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
            self.hub.bytes_sent += len(body)

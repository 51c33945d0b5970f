"""A Hub on 127.0.0.1 that huggingface_hub's own client talks to, with faults to order.

Repositories live in memory: a list of commits, each a mapping of path to bytes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import struct
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"


@dataclass
class Fault:
    """What to do to requests whose method and path match, `times` of them (None: all)."""

    method: str = "GET"
    path: str = ".*"
    times: int | None = None
    status: int = 0  # answer this and nothing else
    headers: dict[str, str] = field(default_factory=dict)  # replace these headers
    cut: int | None = None  # send this many bytes of the body, then close
    reset: bool = False  # close with RST instead of FIN
    hang: bool = False  # answer nothing until the hub is reset
    flip: int | None = None  # flip a bit of this byte of the file
    slow: float = 0.0  # seconds between pieces of 1 KiB of the body


@dataclass
class Repo:
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)

    @property
    def head(self) -> str:
        return self.commits[-1][0]

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit[0] == revision), None)

    def commit(self, files: dict[str, bytes]) -> str:
        seed = f"{len(self.commits)} {sorted(files)}".encode() + b"".join(files[k] for k in sorted(files))
        self.commits.append((hashlib.sha1(seed).hexdigest(), dict(files)))
        return self.head


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def is_lfs(path: str) -> bool:
    return path.endswith((".safetensors", ".bin"))


class LocalHub:
    """The server and its state; `reset()` empties it between tests."""

    def __init__(self) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.hub = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.released = threading.Event()
        self.reset()
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def reset(self) -> None:
        self.released.set()
        self.released = threading.Event()
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str, dict[str, str]]] = []

    def add(self, repo: str, files: dict[str, bytes]) -> str:
        """Put one commit into a repository; returns its sha."""
        return self.repos.setdefault(repo, Repo()).commit(files)

    def fault(self, **fields: object) -> Fault:
        fault = Fault(**fields)  # type: ignore[arg-type]
        self.faults.append(fault)
        return fault

    def count(self, method: str, part: str = "") -> int:
        return sum(m == method and part in path for m, path, _ in self.requests)

    def take(self, method: str, path: str) -> Fault | None:
        for fault in self.faults:
            if fault.method == method and re.search(fault.path, path) and fault.times != 0:
                if fault.times is not None:
                    fault.times -= 1
                return fault
        return None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    @property
    def hub(self) -> LocalHub:
        return self.server.hub  # type: ignore[attr-defined]

    def serve(self) -> None:
        path = self.path.partition("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if path == "/api/agent-harnesses":
            return self.send(501)
        self.hub.requests.append((self.command, path, dict(self.headers)))
        self.fault = self.hub.take(self.command, path)
        if self.fault and self.fault.hang:
            self.hub.released.wait(60)
            self.close_connection = True
            return None
        if self.fault and self.fault.status:
            return self.send(self.fault.status, {"error": "ordered by the test"}, self.fault.headers)
        for pattern, method in ROUTES:
            if match := re.fullmatch(pattern, f"{self.command} {path}"):
                return getattr(self, method)(body, **match.groupdict())
        return self.send(404)

    do_GET = do_HEAD = do_POST = do_PUT = serve  # noqa: N815

    def send(self, status: int, data: object = None, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(data if data is not None else {}).encode()
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def found(self, repo: str, revision: str = "main") -> tuple[str, dict[str, bytes]] | None:
        if repo not in self.hub.repos:
            self.send(404, headers={"X-Error-Code": "RepoNotFound"})
            return None
        commit = self.hub.repos[repo].at(revision)
        if commit is None:
            self.send(404, headers={"X-Error-Code": "RevisionNotFound"})
        return commit

    def create(self, body: bytes) -> None:
        data = json.loads(body)
        repo = f"{data.get('organization') or 'me'}/{data['name']}"
        existed = repo in self.hub.repos
        if not existed:
            self.hub.add(repo, {".gitattributes": b""})
        self.send(409 if existed else 200, {"url": f"{self.hub.url}/{repo}"})

    def validate(self, body: bytes) -> None:
        self.send(200, {"errors": [], "warnings": []})

    def info(self, body: bytes, repo: str, revision: str = "main") -> None:
        if commit := self.found(repo, revision):
            files = [{"rfilename": path} for path in commit[1]]
            self.send(200, {"id": repo, "sha": commit[0], "siblings": files, "tags": []})

    def preupload(self, body: bytes, repo: str) -> None:
        if commit := self.found(repo):
            files = []
            for file in json.loads(body)["files"]:
                path = file["path"]
                old, mode = commit[1].get(path), "lfs" if is_lfs(path) else "regular"
                oid = old and (hashlib.sha256(old).hexdigest() if mode == "lfs" else git_sha1(old))
                files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
            self.send(200, {"files": files})

    def batch(self, body: bytes, repo: str) -> None:
        objects = []
        for item in json.loads(body)["objects"]:
            actions = {
                "upload": {"href": f"{self.hub.url}/lfs/{item['oid']}"},
                "verify": {"href": f"{self.hub.url}/verify"},
            }
            objects.append({**item, **({} if item["oid"] in self.hub.blobs else {"actions": actions})})
        self.send(200, {"transfer": "basic", "objects": objects})

    def put(self, body: bytes, oid: str) -> None:
        self.hub.blobs[hashlib.sha256(body).hexdigest()] = body
        self.send(200)

    def verify(self, body: bytes) -> None:
        self.send(200 if json.loads(body)["oid"] in self.hub.blobs else 404)

    def commit(self, body: bytes, repo: str) -> None:
        store = self.hub.repos[repo]
        files = dict(store.commits[-1][1])
        for line in body.splitlines():
            row = json.loads(line)
            value = row["value"]
            if row["key"] == "header" and value.get("parentCommit") not in (None, store.head):
                return self.send(412, {"error": "the head has moved"})
            if row["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            if row["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            if row["key"] == "deletedFile":
                files.pop(value["path"], None)
        oid = store.commit(files)
        return self.send(200, {"commitUrl": f"{self.hub.url}/{repo}/commit/{oid}", "commitOid": oid})

    def resolve(self, body: bytes, repo: str, revision: str, path: str) -> None:
        commit = self.found(repo, revision)
        if commit is None:
            return None
        if path not in commit[1]:
            return self.send(404, headers={"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit[0]})
        data, fault = commit[1][path], self.fault or Fault()
        etag = hashlib.sha256(data).hexdigest() if is_lfs(path) else git_sha1(data)
        headers = {"X-Repo-Commit": commit[0], "ETag": f'"{etag}"'}
        if is_lfs(path):
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(data))}
        if fault.flip is not None:
            data = data[: fault.flip] + bytes([data[fault.flip] ^ 1]) + data[fault.flip + 1 :]
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        status, offset = (206, int(start[1])) if start else (200, 0)
        if start:
            headers["Content-Range"] = f"bytes {offset}-{len(data) - 1}/{len(data)}"
        headers |= {"Content-Length": str(len(data) - offset), **fault.headers}
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.send_body(data[offset:], fault)
        return None

    def send_body(self, data: bytes, fault: Fault) -> None:
        part = data if fault.cut is None else data[: fault.cut]
        step = 1024 if fault.slow else max(1, len(part))
        try:
            for begin in range(0, len(part), step):
                self.wfile.write(part[begin : begin + step])
                if fault.slow:
                    self.hub.released.wait(fault.slow)
        except OSError:
            self.close_connection = True
            return
        if fault.cut is not None:
            self.close_connection = True
            if fault.reset:
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close() if fault.reset else self.connection.shutdown(socket.SHUT_RDWR)


ROUTES = [
    (r"POST /api/repos/create", "create"),
    (r"POST /api/validate-yaml", "validate"),
    (rf"GET /api/models/{REPO}", "info"),
    (rf"GET /api/models/{REPO}/revision/(?P<revision>.+)", "info"),
    (rf"POST /api/models/{REPO}/preupload/main", "preupload"),
    (rf"POST /{REPO}\.git/info/lfs/objects/batch", "batch"),
    (r"PUT /lfs/(?P<oid>[0-9a-f]{64})", "put"),
    (r"POST /verify", "verify"),
    (rf"POST /api/models/{REPO}/commit/main", "commit"),
    (rf"(?:GET|HEAD) /{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
]

"""The part of the Hugging Face Hub's HTTP API that pushing and pulling a model need, in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

READER, WRITER = "hf_reads", "hf_writes"
_REPOSITORY = r"(?P<repo>[\w.-]+/[\w.-]+)"


class FakeHub:
    """Repositories by name; each has branches, which hold files.

    Attributes:
        commits: message and branch of each commit.
        large: contents by SHA-256 that came as large files.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private: set[str] = set()
        self.commits: list[tuple[str, str]] = []
        self.large: dict[str, bytes] = {}
        self.endpoint = ""

    def answer(
        self, method: str, path: str, token: str | None, body: bytes
    ) -> tuple[int, dict[str, str], Any]:
        """Return status, headers, and bytes or what becomes JSON."""
        if token not in (None, READER, WRITER):
            return 401, {"X-Error-Message": "Invalid credentials in Authorization header"}, {}
        if path == "/api/validate-yaml":
            return 200, {}, {"errors": [], "warnings": []}
        if method in ("POST", "PUT") and not path.startswith("/large/") and token != WRITER:
            return (401 if token is None else 403), {"X-Error-Message": "You need write access"}, {}
        if (method, path) == ("POST", "/api/repos/create"):
            asked = json.loads(body)
            repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
            answer = {"url": f"{self.endpoint}/{repo}", "id": repo, "name": repo}
            if repo in self.repositories:
                return 409, {}, answer
            self.repositories[repo] = {"main": {}}
            if asked.get("visibility") == "private" or asked.get("private"):
                self.private.add(repo)
            return 200, {}, answer
        if method == "PUT" and (found := re.fullmatch("/large/(.+)", path)):
            assert hashlib.sha256(body).hexdigest() == found[1]
            self.large[found[1]] = body
            return 200, {}, {}
        for pattern, handle in (
            (rf"/api/models/{_REPOSITORY}/preupload/(?P<rev>.+)", self._preupload),
            (rf"/{_REPOSITORY}\.git/info/lfs/objects/batch", self._batch),
            (rf"/api/models/{_REPOSITORY}/commit/(?P<rev>.+)", self._commit),
            (rf"/api/models/{_REPOSITORY}/branch/(?P<rev>.+)", self._branch),
            (rf"/api/models/{_REPOSITORY}(/revision/(?P<rev>.+))?", self._info),
            (rf"/{_REPOSITORY}/resolve/(?P<rev>[^/]+)/(?P<file>.+)", self._file),
        ):
            if found := re.fullmatch(pattern, path):
                repo = found["repo"]
                if repo not in self.repositories or (repo in self.private and token is None):
                    return 401 if token is None else 404, {"X-Error-Code": "RepoNotFound"}, {}
                given = {name: value for name, value in found.groupdict().items() if name != "repo"}
                return handle(self.repositories[repo], repo, body, **given)
        return 404, {}, {}

    def _preupload(self, _: Any, repo: str, body: bytes, rev: str) -> tuple[int, dict[str, str], Any]:
        def mode(path: str) -> str:
            return "lfs" if path.endswith(".onnx") else "regular"

        names = [file["path"] for file in json.loads(body)["files"]]
        return 200, {}, {"files": [{"path": n, "uploadMode": mode(n), "shouldIgnore": False} for n in names]}

    def _batch(self, _: Any, repo: str, body: bytes) -> tuple[int, dict[str, str], Any]:
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.endpoint}/large/{each['oid']}"}}}
            for each in json.loads(body)["objects"]
        ]
        return (
            200,
            {"Content-Type": "application/vnd.git-lfs+json"},
            {"transfer": "basic", "objects": objects},
        )

    def _commit(self, branches: Any, repo: str, body: bytes, rev: str) -> tuple[int, dict[str, str], Any]:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.commits.append((value["summary"], rev))
            elif line["key"] == "file":
                branches[rev][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                branches[rev][value["path"]] = self.large[value["oid"]]
        oid = _sha(branches[rev])
        url = f"{self.endpoint}/{repo}/commit/{oid}"
        return 200, {}, {"commitUrl": url, "commitOid": oid, "success": True, "pullRequestUrl": None}

    def _branch(self, branches: Any, repo: str, body: bytes, rev: str) -> tuple[int, dict[str, str], Any]:
        if rev in branches:
            return 409, {}, {}
        branches[rev] = dict(branches["main"])
        return 200, {}, {}

    def _info(
        self, branches: Any, repo: str, body: bytes, rev: str | None = None
    ) -> tuple[int, dict[str, str], Any]:
        files = _at(branches, rev or "main")
        if files is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, {}
        siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
        known = {"id": repo, "private": repo in self.private, "sha": _sha(files)}
        return 200, {}, {**known, "siblings": siblings}

    def _file(
        self, branches: Any, repo: str, body: bytes, rev: str, file: str
    ) -> tuple[int, dict[str, str], Any]:
        files = _at(branches, rev)
        if files is None or file not in files:
            return 404, {"X-Error-Code": "EntryNotFound"}, {}
        tag = hashlib.sha256(files[file]).hexdigest()
        return 200, {"ETag": f'"{tag}"', "X-Repo-Commit": _sha(files)}, files[file]


def _at(branches: dict[str, dict[str, bytes]], rev: str) -> dict[str, bytes] | None:
    known = branches | {_sha(files): files for files in branches.values()}
    return known.get(rev)


def _sha(files: dict[str, bytes]) -> str:
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


@contextmanager
def running_hub() -> Iterator[FakeHub]:
    """Serve an empty hub on a port of this machine."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
            path = unquote(urlsplit(self.path).path)
            status, headers, content = hub.answer(self.command, path, token, body)
            if not isinstance(content, bytes):
                headers = {"Content-Type": "application/json", **headers}
                content = json.dumps(content).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_POST = do_PUT = _answer

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True, args=(0.01,)).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()

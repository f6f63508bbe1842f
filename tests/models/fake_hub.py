"""The part of the Hugging Face hub's file API that swarmd uses, on 127.0.0.1."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

__all__ = ["COMMIT", "FakeHub"]

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """Serves folders as repositories; weights as LFS files, unless `lfs` says no.

    `fetched` records the files whose whole content was sent, `ranges` those asked for in part.
    `refusals` maps a repository to (status, X-Error-Code).
    """

    def __init__(self) -> None:
        self.repos: dict[str, Path] = {}
        self.refusals: dict[str, tuple[int, str]] = {}
        self.fetched: list[str] = []
        self.ranges: list[str] = []
        self.tokens: set[str] = set()
        self.lfs = True
        self.listed_hashes = True
        self.corrupt: set[str] = set()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                hub.answer(self, body=False)

            def do_GET(self) -> None:
                hub.answer(self, body=True)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def weights_fetched(self) -> set[str]:
        return {name for name in self.fetched if name.endswith(".safetensors")}

    def __enter__(self) -> FakeHub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()

    def answer(self, request: BaseHTTPRequestHandler, body: bool) -> None:
        if authorization := request.headers.get("Authorization"):
            self.tokens.add(authorization.removeprefix("Bearer "))
        path = unquote(urlsplit(request.path).path).strip("/")
        if path.startswith("api/models/"):
            repo, _, revision = path.removeprefix("api/models/").partition("/revision/")
            self._api(request, repo, revision)
        else:
            repo, _, rest = path.partition("/resolve/")
            self._file(request, repo, *rest.split("/", 1), body=body)

    def _refused(self, request: BaseHTTPRequestHandler, repo: str, revision: str) -> bool:
        status, code = self.refusals.get(repo, (0, ""))
        if not status and repo not in self.repos:
            status, code = 404, "RepoNotFound"
        elif not status and revision not in ("main", COMMIT):
            status, code = 404, "RevisionNotFound"
        if status:
            self._send(request, status, {"X-Error-Code": code}, b"{}", body=True)
        return bool(status)

    def _api(self, request: BaseHTTPRequestHandler, repo: str, revision: str) -> None:
        if self._refused(request, repo, revision):
            return
        siblings = []
        for file in sorted(self.repos[repo].iterdir()):
            entry: dict[str, object] = {"rfilename": file.name, "size": file.stat().st_size}
            if self._is_lfs(file) and self.listed_hashes:
                sha = hashlib.sha256(file.read_bytes()).hexdigest()
                entry["lfs"] = {"size": entry["size"], "sha256": sha, "pointerSize": 130}
            siblings.append(entry)
        info = {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings, "tags": []}
        self._send(request, 200, {"Content-Type": "application/json"}, json.dumps(info).encode())

    def _file(
        self, request: BaseHTTPRequestHandler, repo: str, revision: str, name: str, *, body: bool
    ) -> None:
        if self._refused(request, repo, revision):
            return
        path = self.repos[repo] / name
        if not path.is_file():
            code = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}
            self._send(request, 404, code, b"", body=body)
            return
        content = path.read_bytes()
        sha1 = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{sha1}"', "Accept-Ranges": "bytes"}
        if self._is_lfs(path):
            headers["X-Linked-ETag"] = f'"{hashlib.sha256(content).hexdigest()}"'
            headers["X-Linked-Size"] = str(len(content))
        if body and name in self.corrupt:
            content = content[:-1] + bytes([content[-1] ^ 1])
        asked = request.headers.get("Range") or ""
        if body and asked.startswith("bytes="):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            end = min(int(last or len(content) - 1), len(content) - 1)
            self.ranges.append(name)
            headers["Content-Range"] = f"bytes {first}-{end}/{len(content)}"
            self._send(request, 206, headers, content[int(first) : end + 1])
            return
        if body:
            self.fetched.append(name)
        self._send(request, 200, headers, content, body=body)

    def _is_lfs(self, path: Path) -> bool:
        return self.lfs and path.suffix == ".safetensors"

    def _send(
        self,
        request: BaseHTTPRequestHandler,
        status: int,
        headers: dict[str, str],
        content: bytes,
        body: bool = True,
    ) -> None:
        request.send_response(status)
        for key, value in headers.items():
            request.send_header(key, value)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        if body and request.command != "HEAD":
            request.wfile.write(content)

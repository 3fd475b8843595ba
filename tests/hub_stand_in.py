"""A model hub on loopback that speaks the real protocol's part for uploads: repositories, LFS objects and commits."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

TOKEN = "hf_secretsecretsecretsecretsecret"
_FIXED: dict[str, dict[str, Any]] = {
    "/api/whoami-v2": {"type": "user", "name": "me", "fullname": "Me", "orgs": []},
    "/api/validate-yaml": {"errors": [], "warnings": []},
}


class Hub:
    """What the hub holds, what it was asked, and where it is to fail."""

    def __init__(self) -> None:
        self.endpoint = ""
        self.repositories: dict[str, dict[str, Any]] = {}
        """By id: whether `private`, and `commits`, each the files by path."""
        self.objects: dict[str, bytes] = {}
        """What was uploaded by the LFS protocol, by digest."""
        self.requests: list[str] = []
        """Method and path of each request."""
        self.failures: dict[str, tuple[int, str]] = {}
        """Status and message for requests whose path holds the key."""

    def answer(self, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        """Status and JSON of the answer to a request with a valid token."""
        if path in _FIXED:
            return 200, _FIXED[path]
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path.startswith("/storage/"):
            return self._store(path.rpartition("/")[2], body)
        if path.endswith(".git/info/lfs/objects/batch"):
            return 200, {"transfer": "basic", "objects": [*map(self._lfs_action, json.loads(body)["objects"])]}
        return self._of_repository("/".join(path.split("/")[3:5]), path, body)

    def _of_repository(self, repo: str, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        if repo not in self.repositories:
            return 404, {"error": "Repository not found"}
        if "/preupload/" in path:
            return 200, {"files": [*map(self._mode, json.loads(body)["files"])]}
        if "/commit/" in path:
            return self._commit(repo, [json.loads(line) for line in body.splitlines()])
        return 200, {"id": repo, "private": self.repositories[repo]["private"], "siblings": []}

    def _create(self, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
        url = {"url": f"{self.endpoint}/{repo}", "id": repo}
        if repo in self.repositories:
            return 409, {"error": "You already created this model repo", **url}
        self.repositories[repo] = {"private": asked.get("visibility") == "private", "commits": []}
        return 200, url

    def _mode(self, file: dict[str, Any]) -> dict[str, Any]:
        lfs = file["path"].endswith((".safetensors", ".gguf"))
        return {"path": file["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}

    def _lfs_action(self, wanted: dict[str, Any]) -> dict[str, Any]:
        upload = {"upload": {"href": f"{self.endpoint}/storage/{wanted['oid']}", "header": {}}}
        return wanted | ({} if wanted["oid"] in self.objects else {"actions": upload})

    def _store(self, digest: str, body: bytes) -> tuple[int, dict[str, Any]]:
        if hashlib.sha256(body).hexdigest() != digest:
            return 400, {"error": "other content than announced"}
        self.objects[digest] = body
        return 200, {}

    def _commit(self, repo: str, lines: list[dict[str, Any]]) -> tuple[int, dict[str, Any]]:
        files: dict[str, bytes] = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            if line["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
        self.repositories[repo]["commits"].append(files)
        oid = hashlib.sha1(repr(lines).encode()).hexdigest()
        return 200, {"success": True, "commitOid": oid, "commitUrl": f"{self.endpoint}/{repo}/commit/{oid}"}


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that listens on loopback."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self._body()
            path = self.path.partition("?")[0]
            hub.requests.append(f"{self.command} {path}")
            failure = next((each for part, each in hub.failures.items() if part in path), None)
            if failure:
                self._reply(failure[0], {"error": failure[1]})
            elif not path.startswith("/storage/") and self.headers["Authorization"] != f"Bearer {TOKEN}":
                self._reply(401, {"error": "Invalid user token."})
            else:
                self._reply(*hub.answer(path, body))

        do_GET = do_POST = do_PUT = _serve  # noqa: N815

        def _body(self) -> bytes:
            if self.headers["Transfer-Encoding"] != "chunked":
                return self.rfile.read(int(self.headers["Content-Length"] or 0))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def _reply(self, status: int, answer: dict[str, Any]) -> None:
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            if answer.get("error") == "Repository not found":
                self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Nothing: the test's output is its own."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.endpoint = f"http://127.0.0.1:{server.server_port}"
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield hub
        finally:
            server.shutdown()

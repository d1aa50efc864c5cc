"""A Hugging Face hub on a real socket: one dataset repository, as huggingface_hub speaks to it over HTTP."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class StubHub:
    """What a hub keeps.

    Attributes:
        files: what is in the repository, by path.
        created: what was asked for when repositories were made.
        uploads: the hashes of the large files that were sent, in order.
        refused: statuses that the next uploads of large files get.
        status: what every request gets instead of an answer, where it is not 200.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.created: list[dict[str, Any]] = []
        self.uploads: list[str] = []
        self.refused: list[int] = []
        self.status = 200
        self._stored: dict[str, bytes] = {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, found = hub._answer(self.path, body) if hub.status == 200 else (hub.status, {"error": "No."})
                raw = json.dumps(found).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            do_GET = do_POST = do_PUT = answer

            def log_message(self, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, path: str, body: bytes) -> tuple[int, Any]:
        if path == "/api/repos/create":
            asked = json.loads(body)
            self.created.append(asked)
            return 200, {"url": f"{self.url}/datasets/{asked['organization']}/{asked['name']}"}
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            return 200, {"files": [{**one, "uploadMode": _mode(one["path"]), "shouldIgnore": False} for one in files]}
        if "/tree/" in path:
            files = [{"type": "file", "path": name, "size": len(one), "oid": "0"} for name, one in self.files.items()]
            return 200, files
        if path.endswith("/objects/batch"):
            return 200, {"transfer": "basic", "objects": [self._wanted(one) for one in json.loads(body)["objects"]]}
        if path.startswith("/put/"):
            if self.refused:
                return self.refused.pop(), {}
            self.uploads.append(hashlib.sha256(body).hexdigest())
            self._stored[path.removeprefix("/put/")] = body
        if "/commit/" in path:
            self._commit([json.loads(line) for line in body.splitlines()])
            return 200, {"commitUrl": f"{self.url}{path.removeprefix('/api')}", "commitOid": "0" * 40}
        return 200, {}

    def _wanted(self, file: dict[str, Any]) -> dict[str, Any]:
        """What is to be done about a large file: nothing, where its content is known."""
        known = file["oid"] in self._stored
        return file if known else {**file, "actions": {"upload": {"href": f"{self.url}/put/{file['oid']}"}}}

    def _commit(self, operations: list[dict[str, Any]]) -> None:
        for one in operations:
            value = one["value"]
            if one["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif one["key"] == "lfsFile":
                self.files[value["path"]] = self._stored[value["oid"]]
            elif one["key"] == "deletedFile":
                del self.files[value["path"]]


def _mode(path: str) -> str:
    return "lfs" if path.endswith(".parquet") else "regular"

"""A model hub on loopback: real files by the real protocol, and every way it can misbehave.

Set HF_ENDPOINT to `url` and HF_HOME to an empty folder in a child process; a fault belongs to a
repository and starts at its first question, or at the file that it names.
"""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

STATUS = {"401": 401, "403": 403, "404": 404, "429": 429, "500": 500, "503": 503}


@dataclass
class Repository:
    """A folder that the hub serves.

    Attributes:
        folder: Its files.
        fault: "401", "403", "404", "gated", "429", "500", "503", "reset", "html", "short",
            "altered" or "silent"; empty is healthy.
        at: File at which the fault starts; empty is the first question.
    """

    folder: Path
    fault: str = ""
    at: str = ""

    @property
    def commit(self) -> str:
        names = "".join(sorted(str(path) for path in self.folder.iterdir()))
        return hashlib.sha1(names.encode()).hexdigest()


@dataclass
class FakeHub:
    """Serves repositories while its context is open.

    Attributes:
        repositories: By id, "gpt2" or "owner/name".
        asked: Every request line, in order.
    """

    repositories: dict[str, Repository]
    asked: list[str] = field(default_factory=list)
    authorization: list[str] = field(default_factory=list)
    port: int = 0

    def __enter__(self) -> FakeHub:
        hub = self

        class Bound(Handler):
            pass

        Bound.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Bound)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


class Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.hub.asked.append(f"{self.command} {self.path}")
        self.hub.authorization.append(self.headers.get("Authorization", ""))
        path = unquote(urlsplit(self.path).path).strip("/")
        if path.startswith("api/models/"):
            repo, _, revision = path.removeprefix("api/models/").partition("/revision/")
            name = ""
        else:
            repo, _, rest = path.partition("/resolve/")
            revision, _, name = rest.partition("/")
        found = self.hub.repositories.get(repo)
        if found is None:
            self._refuse(401, "RepoNotFound")
        elif revision not in ("", "main", found.commit):
            self._refuse(404, "RevisionNotFound")
        elif found.fault and name == found.at:
            self._misbehave(found, name)
        elif not name:
            self._list(repo, found)
        else:
            self._file(found, name)

    def _list(self, repo: str, found: Repository) -> None:
        names = sorted(path.name for path in found.folder.iterdir())
        listing = {
            "id": repo,
            "sha": found.commit,
            "siblings": [{"rfilename": name} for name in names],
        }
        self._send(json.dumps(listing).encode(), "application/json")

    def _file(self, found: Repository, name: str, keep: float = 1.0) -> None:
        path = found.folder / name
        if not path.is_file():
            self._refuse(404, "EntryNotFound")
            return
        body = path.read_bytes()
        named = _named(found, name, body)
        kept = body[: int(len(body) * keep)]
        self._send(kept, "application/octet-stream", named, length=len(body))

    def _misbehave(self, found: Repository, name: str) -> None:
        fault = found.fault
        if fault in STATUS:
            self._refuse(STATUS[fault])
        elif fault == "gated":
            self._refuse(403, "GatedRepo")
        elif fault == "html":
            self._send(b"<html><body>Please log in to this network</body></html>", "text/html")
        elif fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
        elif fault == "silent":
            time.sleep(30)
            self.close_connection = True
        elif fault == "altered":
            body = (found.folder / name).read_bytes()
            wrong = body[:-9] + b"corrupted"
            self._send(wrong, "application/octet-stream", _named(found, name, body))
        elif fault == "short":
            self._file(found, name, keep=0.5 if self.command == "GET" else 1.0)
            self.close_connection = True
        else:
            raise AssertionError(fault)

    def _refuse(self, status: int, code: str = "") -> None:
        headers = {"X-Error-Code": code} if code else {}
        self._send(b'{"error": "no"}', "application/json", headers, status=status)

    def _send(
        self,
        body: bytes,
        kind: str,
        headers: dict[str, str] | None = None,
        status: int = 200,
        length: int | None = None,
    ) -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body) if length is None else length))
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)
        except OSError:
            self.close_connection = True


def _named(found: Repository, name: str, body: bytes) -> dict[str, str]:
    """Large files are called by their SHA-256, others by a SHA-1."""
    kind = hashlib.sha256 if name.endswith(".safetensors") else hashlib.sha1
    return {"X-Repo-Commit": found.commit, "ETag": f'"{kind(body).hexdigest()}"'}

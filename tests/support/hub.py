"""A server on this machine that speaks what `huggingface_hub` asks of the Hub, and can fail in the ways of networks."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = ".tar", ".zip", ".npz"
"""Endings of the files that the Hub keeps by their SHA-256, and serves from another place."""


class Served(NamedTuple):
    """One answer with a file's content."""

    path: str
    first: int
    sent: int


def commit(number: int) -> str:
    return f"{number:040x}"


def git_blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Hub:
    """Repositories of data sets at their commits. As a context, it listens on `endpoint`.

    The pages of its API, the headers of its files and the redirect to where large files lie are those of the real one,
    as far as version 2.4 of the library reads them.
    """

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, dict[str, bytes]]] = {}
        self.gated: set[str] = set()
        self.files: dict[str, bytes] = {}
        """Files that are in no repository, below /files/."""
        self.cut_after: dict[str, list[int]] = {}
        """By path: after how many bytes the next answers break off."""
        self.corrupt: set[str] = set()
        """Paths of which one byte is changed on the way."""
        self.stall: dict[str, threading.Event] = {}
        """By path: an answer stops in its middle until this is set."""
        self.served: list[Served] = []
        self.asked: list[str] = []
        self.page_size = 1000
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # clients are killed
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"

    def add(self, repo: str, revision: str, files: dict[str, bytes]) -> None:
        """Add a commit; the newest is `main`."""
        self.commits.setdefault(repo, {})[revision] = files

    def bytes_of(self, path: str) -> int:
        """Return how many bytes of a file have been sent."""
        return sum(answer.sent for answer in self.served if answer.path == path)

    def __enter__(self) -> "Hub":
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for event in self.stall.values():
            event.set()
        self.server.shutdown()
        self.server.server_close()

    def _handler(hub) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                url = urlsplit(self.path)
                parts = unquote(url.path).strip("/").split("/")
                hub.asked.append(f"{self.command} {url.path}")
                if parts[:2] == ["api", "datasets"]:
                    self.api("/".join(parts[2:4]), parts[4:], parse_qs(url.query))
                elif parts[0] == "datasets":
                    self.resolve("/".join(parts[1:3]), parts[4], "/".join(parts[5:]))
                elif parts[0] == "cdn":
                    path = "/".join(parts[3:])
                    self.content(path, hub.commits["/".join(parts[1:3])][parse_qs(url.query)["of"][0]][path], {})
                elif parts[0] == "files" and "/".join(parts[1:]) in hub.files:
                    path = "/".join(parts[1:])
                    self.content(path, hub.files[path], {})
                else:
                    self.answer(404, b"", {})

            def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
                self.send_response(status)
                for key, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def find(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
                commits = hub.commits.get(repo)
                if commits is None:
                    self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
                    return None
                if repo in hub.gated:
                    self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
                    return None
                revision = list(commits)[-1] if revision == "main" else revision
                if revision not in commits:
                    self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
                    return None
                return revision, commits[revision]

            def api(self, repo: str, rest: list[str], query: dict[str, list[str]]) -> None:
                found = self.find(repo, rest[1] if len(rest) > 1 else "main")
                if found is None:
                    return
                revision, files = found
                headers = {"Content-Type": "application/json"}
                if rest[:1] != ["tree"]:
                    self.answer(200, json.dumps({"id": repo, "sha": revision}).encode(), headers)
                    return
                assert query["recursive"] == ["True"] or query["recursive"] == ["true"]
                folders = sorted({path.rpartition("/")[0] for path in files} - {""})
                entries = [{"type": "directory", "path": folder, "oid": "0" * 40, "size": 0} for folder in folders]
                for path, data in files.items():
                    entry = {"type": "file", "path": path, "size": len(data), "oid": git_blob(data)}
                    if path.endswith(LARGE):
                        digest = hashlib.sha256(data).hexdigest()
                        entry |= {"oid": "1" * 40, "lfs": {"oid": digest, "size": len(data), "pointerSize": 130}}
                    entries.append(entry)
                start = int(query.get("cursor", ["0"])[0])
                following = start + hub.page_size
                if following < len(entries):
                    next_page = f"{hub.endpoint}{urlsplit(self.path).path}?recursive=true&cursor={following}"
                    headers["Link"] = f'<{next_page}>; rel="next"'
                self.answer(200, json.dumps(entries[start:following]).encode(), headers)

            def resolve(self, repo: str, revision: str, path: str) -> None:
                found = self.find(repo, revision)
                if found is None:
                    return
                revision, files = found
                if path not in files:
                    self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
                elif path.endswith(LARGE):
                    # On another host: redirects to its own are followed before headers are read.
                    cdn = hub.endpoint.replace("127.0.0.1", "localhost")
                    location = {"Location": f"{cdn}/cdn/{repo}/{path}?of={revision}", "X-Repo-Commit": revision}
                    etag = f'"{hashlib.sha256(files[path]).hexdigest()}"'
                    linked = {"X-Linked-ETag": etag, "X-Linked-Size": str(len(files[path]))}
                    self.answer(302, b"", location | linked)
                else:
                    self.content(path, files[path], {"X-Repo-Commit": revision, "ETag": f'"{git_blob(files[path])}"'})

            def content(self, path: str, data: bytes, headers: dict[str, str]) -> None:
                asked = self.headers.get("Range")
                first = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
                if path in hub.corrupt:
                    data = data[:10] + bytes([data[10] ^ 1]) + data[11:]
                body = data[first:]
                self.send_response(206 if asked else 200)
                self.send_header("Content-Length", str(len(body)))
                if asked:
                    self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
                for key, value in headers.items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command != "GET":
                    return
                cuts = hub.cut_after.get(path)
                cut = cuts.pop(0) if cuts else None
                if path in hub.stall and not hub.stall[path].is_set():
                    half = len(body) // 2
                    self.wfile.write(body[:half])
                    self.wfile.flush()
                    hub.served.append(Served(path, first, half))
                    hub.stall[path].wait()
                    self.close_connection = True
                    return
                sent = body if cut is None else body[:cut]
                hub.served.append(Served(path, first, len(sent)))
                self.wfile.write(sent)
                if cut is not None:
                    self.wfile.flush()
                    self.close_connection = True

        return Handler

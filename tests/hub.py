"""A Hugging Face hub of one model and one dataset, on this machine: as much of its HTTP interface as downloads use."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serve(repositories: dict[str, Path]):
    """Serve folders as repositories.

    Args:
        repositories: by kind and name, such as `models/Qwen/Qwen2.5-1.5B` or `datasets/openai/gsm8k`.

    Yields:
        The address to set HF_ENDPOINT to, and the list of requests made so far.
    """
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self, status: int, body: bytes = b"", **headers):
            self.send_response(status)
            headers = {"X-Repo-Commit": COMMIT, "Content-Length": str(len(body)), **headers}
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self):
            path = unquote(urlsplit(self.path).path).strip("/")
            requests.append(f"{self.command} {path}")
            kind, name, rest = self.locate(path)
            if name is None:
                return self.answer(404, **{"X-Error-Code": "RepoNotFound"})
            folder = repositories[f"{kind}/{name}"]
            files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
            if path.startswith("api/"):
                if rest.startswith("tree/"):
                    within = folder / (rest.split("/", 2)[2] if rest.count("/") > 1 else "")
                    paths = within.rglob("*") if "recursive=True" in self.path else within.glob("*")
                    entries = [self.describe(folder, file) for file in sorted(paths)]
                    return self.answer(200, json.dumps(entries).encode())
                if rest.startswith("paths-info/"):
                    wanted = unquote(self.rfile.read(int(self.headers["Content-Length"])).decode())
                    entries = [self.describe(folder, folder / file) for file in files if file in wanted]
                    return self.answer(200, json.dumps(entries).encode())
                info = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files], "tags": []}
                return self.answer(200, json.dumps({**info, "private": False, "gated": False}).encode())
            file = folder / rest.split("/", 2)[2]
            if not file.is_file():
                return self.answer(404, **{"X-Error-Code": "EntryNotFound"})
            body = file.read_bytes()
            return self.answer(200, body, ETag=f'"{hashlib.sha1(body).hexdigest()}"', **{"Accept-Ranges": "bytes"})

        do_HEAD = do_POST = do_GET

        def locate(self, path: str):
            for repository in repositories:
                kind, name = repository.split("/", 1)
                for prefix in (f"api/{repository}", name if kind == "models" else repository):
                    if path == prefix or path.startswith(f"{prefix}/"):
                        return kind, name, path[len(prefix) :].strip("/")
            return None, None, None

        def describe(self, folder: Path, path: Path) -> dict:
            entry = {"path": str(path.relative_to(folder)), "oid": "0" * 40, "size": 0, "type": "directory"}
            if path.is_file():
                oid = hashlib.sha1(path.read_bytes()).hexdigest()
                entry |= {"type": "file", "oid": oid, "size": path.stat().st_size}
            return entry

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()

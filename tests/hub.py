"""A stand-in for the Hugging Face hub on loopback: one data set of one JSON file over its HTTP interface."""

import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextlib.contextmanager
def hub(name: str, records: list[dict]):
    """Serves the data set `name` with the records in data.json; yields (endpoint, requested paths)."""
    body = json.dumps(records).encode()  # one JSON file with escaped Cyrillic, as the real data set has it
    etag = hashlib.sha256(body).hexdigest()
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self, status: int, content: bytes = b"", **headers):
            self.send_response(status)
            for key, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(key.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def do_GET(self):
            path = urlparse(self.path).path
            asked.append(path)
            if name not in path:
                self.answer(404, b"{}", X_Error_Code="RepoNotFound", Content_Type="application/json")
            elif path.startswith("/api/"):
                self.answer(200, json.dumps(self.listing(path)).encode(), Content_Type="application/json")
            elif path.endswith("/data.json"):
                self.answer(200, body, ETag=f'"{etag}"', X_Repo_Commit=COMMIT)
            else:
                self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)

        do_HEAD = do_POST = do_GET

        def listing(self, path: str):
            file = {"type": "file", "path": "data.json", "size": len(body), "oid": etag}
            if "/tree/" in path or "/paths-info/" in path:
                return [file]
            siblings = [{"rfilename": "data.json"}]
            return {"id": name, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()

"""A provider of embeddings over HTTP that does what it is told, and its embedder."""

import json
import os
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from embedsync.embedders.hashing import HashingEmbedder


class HttpEmbedder(HashingEmbedder):
    """Asks a server, as a project's own embedder might; knows nothing of embedsync's exceptions."""

    batch_size = 64

    def __init__(self, *, url, timeout=5.0, **more):
        super().__init__(**more)
        self.url, self.timeout = url, timeout

    def embed_documents(self, texts):
        request = urllib.request.Request(self.url, json.dumps(list(texts)).encode())
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            error.close()
            raise


class NeedsAKey(HashingEmbedder):
    def __init__(self, **more):
        super().__init__(**more)
        self.key = os.environ["SECRET_KEY_OF_A_PROVIDER"]


def drip(body):
    for number in range(len(body)):
        time.sleep(0.05)
        yield body[number : number + 1]


class Provider:
    """``answer(texts)`` gives status, headers and what becomes JSON; ``calls`` are the texts.

    ``heard`` are the path and the headers of each call, ``connections`` where they came from. What
    is a string or bytes is sent as it is.
    """

    protocol = "HTTP/1.0"  # which has a connection for each call

    def __init__(self, server):
        self.server = server
        self.calls = []
        self.heard = []
        self.connections = set()
        self.answer = self.works
        self._embedder = HashingEmbedder(model="", dimensions=64)

    @property
    def url(self):
        host, port = self.server.server_address
        return f"http://{host}:{port}/"

    def pieces(self, body):
        return [body]

    def drips(self):
        """Send a byte now and then, without end."""
        self.pieces = drip

    def works(self, texts):
        return 200, {}, self._embedder.embed_documents(texts)

    def fails(self, status, **headers):
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        self.answer = lambda texts: (status, names, {"error": f"this is a {status}"})

    def recovers(self):
        self.answer = self.works


@contextmanager
def running_provider(kind=Provider):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = kind.protocol

        def do_POST(self):
            texts = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            headers = {name.lower(): value for name, value in self.headers.items()}
            provider.heard.append((self.path, headers))
            provider.connections.add(self.client_address)
            provider.calls.append(texts)
            status, headers, content = provider.answer(texts)
            if not isinstance(content, (str, bytes)):
                content = json.dumps(content)
            body = content.encode() if isinstance(content, str) else content
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            # Whom the answer came too late for is gone.
            with suppress(ConnectionError):
                for piece in provider.pieces(body):
                    self.wfile.write(piece)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    provider = kind(server)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield provider
    server.shutdown()
    server.server_close()
    thread.join()

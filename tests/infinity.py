"""Infinity, an embedding server that nobody here has written, serving the demo's model offline."""

import os
import socket
import subprocess
import time
import urllib.request
from contextlib import contextmanager

from example_project.minilm import MODEL_DIRECTORY
from example_project.postgres import PROJECT

PROGRAM = PROJECT / ".venv-infinity" / "bin" / "infinity_emb"
KEY = "sk-of-the-real-server-0123"
MODELS = ["minilm", "another"]  # a server of one model does not look at the name


@contextmanager
def running_infinity(log):
    """Its URL, once it answers; raises ``RuntimeError`` with what it has said if it ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["--host", "127.0.0.1", "--port", str(port), "--engine", "torch"]
    arguments += ["--device", "cpu", "--no-bettertransformer", "--no-model-warmup"]
    for name in MODELS:
        arguments += ["--model-id", MODEL_DIRECTORY, "--served-model-name", name]
    environment = {
        **os.environ,
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "INFINITY_API_KEY": KEY,
        "OMP_NUM_THREADS": "1",
    }
    with log.open("wb") as output:
        server = subprocess.Popen(
            [PROGRAM, "v2", *arguments], env=environment, stdout=output, stderr=output
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{url}/health", server, log)
        yield url
    finally:
        server.terminate()
        server.wait()


def wait_for(url, server, log, seconds=300):
    end = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url):
                return
        except OSError:
            if server.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"Infinity does not answer: {log.read_text()}") from None
            time.sleep(0.2)

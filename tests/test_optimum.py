"""Backends of the library optimum (``make optimum``): their vectors are those of torch.

In an environment of its own: optimum-onnx wants older libraries than embedsync's own has.
"""

import json
import shutil
import subprocess

import numpy as np
import pytest

from embedsync.embedders.sentence_transformers import SentenceTransformerEmbedder
from example_project.minilm import MODEL_DIRECTORY
from example_project.postgres import PROJECT

PYTHON = PROJECT / ".venv-optimum" / "bin" / "python"
pytestmark = pytest.mark.skipif(
    not PYTHON.exists(), reason="optimum is not installed: run 'make optimum'"
)
TEXTS = ["robots left on earth", "A heist that goes wrong, told by the getaway driver.", "x " * 300]
PROGRAM = """
import json, sys
import numpy as np
from embedsync.embedders.sentence_transformers import SentenceTransformerEmbedder

options, texts = json.load(sys.stdin)
embedder = SentenceTransformerEmbedder(**options)
documents = np.asarray(embedder.embed_documents(texts)).tolist()
queries = [np.asarray(embedder.embed_query(text)).tolist() for text in texts]
print(json.dumps([embedder.fingerprint, embedder.max_tokens, documents, queries]))
"""


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_the_vectors_are_those_of_torch(tmp_path, backend):
    model = tmp_path / "minilm"  # an export may be written beside the weights
    shutil.copytree(MODEL_DIRECTORY, model)
    options = {"model": str(model), "dimensions": 384}
    asked = json.dumps([{**options, "backend": backend, "local_files_only": True}, TEXTS])
    answer = subprocess.run(
        [PYTHON, "-c", PROGRAM], cwd=PROJECT, input=asked, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    fingerprint, max_tokens, *found = json.loads(answer.stdout.splitlines()[-1])
    torch = SentenceTransformerEmbedder(**options)
    expected = torch.embed_documents(TEXTS), [torch.embed_query(text) for text in TEXTS]
    for vectors, those in zip(found, expected, strict=True):
        assert (np.asarray(vectors) * np.asarray(those)).sum(axis=1).min() >= 0.9999
    assert max_tokens == torch.max_tokens
    assert fingerprint != torch.fingerprint

"""An embedder that does on demand what real ones do on bad days: the orders are in the texts."""

import os
import time

from embedsync.embedders.hashing import HashingEmbedder


class ScriptedEmbedder(HashingEmbedder):
    """``HashingEmbedder`` that does what a word in capitals in a text says."""

    batch_size = 100

    def embed_documents(self, texts):
        vectors = super().embed_documents(texts)
        for position, text in enumerate(texts):
            if "SLEEP" in text:
                print("asleep", flush=True)
                time.sleep(float(os.environ.get("SCRIPTED_SLEEP", "0")))
            if "DIE" in text:
                os._exit(137)
            if "FAIL" in text:
                raise RuntimeError("the provider is unwell")
            if "NAN" in text:
                vectors[position][0] = float("nan")
            if "ZERO" in text:
                vectors[position] = [0.0] * self.dimensions
            if "SHORT" in text:
                vectors[position] = vectors[position][:-1]
            if "MISSING" in text:
                return vectors[:-1]
        return vectors

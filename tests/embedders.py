"""An embedder that does on demand what real ones do on bad days: the orders are in the texts."""

import os
import time
from functools import cached_property

from tokenizers import Tokenizer, models, pre_tokenizers

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


class WordedEmbedder(ScriptedEmbedder):
    """Reads words: each is a token, and of a text it reads twelve. Keeps what it was asked for."""

    batch_size = 4
    asked: list = []

    @cached_property
    def tokenizer(self):
        tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return tokenizer

    @property
    def max_tokens(self):
        return 12

    def embed_documents(self, texts):
        self.asked.append(list(texts))
        return super().embed_documents(texts)

"""Embedders that each break one promise, and some that keep them all."""

import itertools
import random
import time

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

from embedsync.embedders.hashing import HashingEmbedder


class Unlike(HashingEmbedder):
    """Right: numpy's arrays, queries with a prompt, a small batch, a model that it insists on."""

    batch_size = 2

    def __init__(self, *, model, dimensions):
        if model.endswith("-another"):
            raise FileNotFoundError("there is no such model")
        super().__init__(model=model, dimensions=dimensions)

    def embed_documents(self, texts):
        return np.array(super().embed_documents(texts), dtype="f4")

    def embed_query(self, text):
        return self.embed_documents([f"query: {text}"])[0]


class NoBatches(HashingEmbedder):
    batch_size = 0


class OneTooFew(HashingEmbedder):
    def embed_documents(self, texts):
        return super().embed_documents(texts)[: max(1, len(texts) - 1)]


class TooShort(HashingEmbedder):
    def embed_documents(self, texts):
        return [vector[:-1] for vector in super().embed_documents(texts)]


class NotOfFullBatches(HashingEmbedder):
    batch_size = 50

    def embed_documents(self, texts):
        if len(texts) == self.batch_size:
            raise ValueError("too many")
        return super().embed_documents(texts)


class Sorted(HashingEmbedder):
    def embed_documents(self, texts):
        return super().embed_documents(sorted(texts))


class OfTheBatch(HashingEmbedder):
    def embed_documents(self, texts):
        vectors = np.array(super().embed_documents(texts))
        return vectors + vectors.mean(axis=0)


class PartsAsTheyCome(HashingEmbedder):
    def embed_documents(self, texts):
        vectors = super().embed_documents(texts)
        parts = [vectors[start : start + 8] for start in range(0, len(vectors), 8)]
        return [vector for part in parts[::-1] for vector in part]


class SortedWhereMany(HashingEmbedder):
    def embed_documents(self, texts):
        return super().embed_documents(sorted(texts, key=len) if len(texts) > 5 else texts)


class RepeatsItself(HashingEmbedder):
    def embed_documents(self, texts):
        vectors = super().embed_documents(texts)
        return vectors[:16] + vectors[15:16] * len(vectors[16:])


class OfALargeBatch(OfTheBatch):
    def embed_documents(self, texts):
        few = HashingEmbedder.embed_documents(self, texts)
        return super().embed_documents(texts) if len(texts) >= 32 else few


class Random(HashingEmbedder):
    def embed_documents(self, texts):
        return [[random.gauss() for _ in range(self.dimensions)] for _ in texts]


class Constant(HashingEmbedder):
    def embed_documents(self, texts):
        return [[1.0] * self.dimensions for _ in texts]


class ZeroWithoutWords(HashingEmbedder):
    def embed_documents(self, texts):
        vectors = super().embed_documents(texts)
        for n, text in enumerate(texts):
            if not any(map(str.isalnum, text)):
                vectors[n] = [0.0] * self.dimensions
        return vectors


class NoLongTexts(HashingEmbedder):
    def embed_documents(self, texts):
        if max(map(len, texts)) > 32_000:
            raise ValueError("400: maximum context length exceeded")
        return super().embed_documents(texts)


class OpposedQueries(HashingEmbedder):
    def embed_query(self, text):
        return [-value for value in super().embed_query(text)]


class NoFingerprint(HashingEmbedder):
    fingerprint = ""


class FingerprintWithNul(HashingEmbedder):
    fingerprint = "a\0b"


class OfItsOwn(HashingEmbedder):
    numbers = itertools.count()

    def __init__(self, **more):
        super().__init__(**more)
        self.number = next(self.numbers)

    @property
    def fingerprint(self):
        return f"{super().fingerprint}:{self.number}"


class Counting(HashingEmbedder):
    calls = 0

    def embed_documents(self, texts):
        self.calls += 1
        return super().embed_documents(texts)

    @property
    def query_fingerprint(self):
        return f"{self.fingerprint}:{self.calls}"


class SameForAllModels(HashingEmbedder):
    @property
    def fingerprint(self):
        return f"hashing:{self.dimensions}"


class SameForAllLengths(HashingEmbedder):
    @property
    def fingerprint(self):
        return f"hashing:{self.model}"


class KeepsTheCall(HashingEmbedder):
    def embed_documents(self, texts):
        self.texts = texts
        time.sleep(0.01)
        return super().embed_documents(self.texts)


class Worded(HashingEmbedder):
    """Right: it reads twelve words."""

    max_tokens = 12
    tokenizer = None  # in place of the property, so that instances may have one

    def __init__(self, **more):
        super().__init__(**more)
        self.tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
        self.tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()


class ReadsNothing(HashingEmbedder):
    max_tokens = 0


class Padding(Worded):
    def __init__(self, **more):
        super().__init__(**more)
        self.tokenizer.enable_padding(pad_id=0, pad_token="?")


class Truncating(Worded):
    def __init__(self, **more):
        super().__init__(**more)
        self.tokenizer.enable_truncation(12)


class TokensOfCharacters(Worded):
    """Its tokenizer takes a word for ten tokens, so that one word is too long already."""

    max_tokens = 1

    def __init__(self, **more):
        super().__init__(**more)
        self.tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")

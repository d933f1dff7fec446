"""What the tests of long texts share: articles whose paragraphs are one passage each."""

from django.utils import timezone

from embedsync.embedders import get_embedder
from tests.articles.models import Article

ArticleEmbedding = Article.embedding.model
KEY = "articles.articleembedding"


def body(*words):
    """A paragraph of six words for each word: two do not fit into one passage."""
    return "\n\n".join(f"{word} and so on and on" for word in words)


def write(*words, **fields):
    """A published article of such paragraphs."""
    fields.setdefault("published_time", timezone.now())
    return Article.objects.create(body=body(*words), **fields)


def stored(article):
    """The first words of an article's passages, by ordinal."""
    rows = ArticleEmbedding.objects.filter(source_id=article.pk).values_list("ordinal", "passage")
    return {ordinal: passage.split()[0] for ordinal, passage in rows}


def vectors(article):
    """The vectors of an article's passages, by ordinal."""
    rows = ArticleEmbedding.objects.filter(source_id=article.pk)
    return {row.ordinal: list(row.vector) for row in rows}


class Asked:
    """The texts that an embedder has been asked for since it was last looked at."""

    def __init__(self):
        self.calls = get_embedder("worded").asked
        self.calls.clear()

    def words(self):
        found = [text.split()[0] for call in self.calls for text in call]
        self.calls.clear()
        return found

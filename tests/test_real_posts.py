"""Real posts of real blogs with the real model, where ../shared has them."""

import gzip
import json

import pytest

from embedsync.embedders import get_embedder
from embedsync.sweep import Pace, sweep
from example_project.blog.models import Post
from example_project.postgres import PROJECT

POSTS = PROJECT.parent / "shared" / "data" / "blog" / "posts.jsonl.gz"

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(not POSTS.exists(), reason="../shared/data/blog is not here"),
]


def sample(count):
    """The longest post, the shortest, and some in between; drafts are made of a few of them."""
    with gzip.open(POSTS, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    rows.sort(key=lambda row: len(row["contents"]))
    return [rows[-1], rows[0], *rows[5 : len(rows) - 400 : (len(rows) - 405) // count]]


def test_real_posts(drain):
    rows = sample(8)
    Post.objects.bulk_create(
        Post(
            title=row["title"],
            slug=f"p{row['id']}",
            body=row["contents"],
            published_time=None if n % 5 == 4 else row["published_time"],
        )
        for n, row in enumerate(rows)
    )
    drain()
    sidecar = Post.embedding.model
    published = Post.objects.filter(published_time__isnull=False)
    assert set(sidecar.objects.values_list("source_id", flat=True)) == {p.pk for p in published}
    embedder = get_embedder("default")
    limit = embedder._loaded.max_seq_length
    longest = published.get(slug=f"p{rows[0]['id']}")
    passages = list(sidecar.objects.filter(source=longest).order_by("ordinal"))
    assert len(passages) > 150
    # As the model itself counts, special tokens included: nothing of any passage is cut off.
    tokenizer = embedder.tokenizer
    for row in sidecar.objects.all():
        assert len(tokenizer.encode(row.passage)) <= min(limit, 202)
    place = 0
    for row in passages:
        # In order, and the words between two passages are blanks only.
        place = longest_text(longest).index(row.passage[:40], max(0, place - 1500))
    found = Post.objects.similar(passages[40].passage)[0]
    assert (found.pk, found.passage) == (longest.pk, passages[40].passage)
    nearest = sidecar.objects.similar(passages[40].passage)[:3]
    assert nearest[0].ordinal == 40

    before = {row.pk: row.embedded_at for row in sidecar.objects.filter(source=longest)}
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        original = type(embedder).embed_documents
        patch.setattr(
            type(embedder),
            "embed_documents",
            lambda self, texts: asked.extend(texts) or original(self, texts),
        )
        Post.objects.filter(pk=longest.pk).update(body=longest.body + "\n\nOne more paragraph.")
        drain()
    assert 1 <= len(asked) <= 2
    kept = [row for row in sidecar.objects.filter(source=longest) if row.pk in before]
    assert sum(row.embedded_at == before[row.pk] for row in kept) >= len(before) - 2
    assert sweep(sidecar, pace=Pace(rate=0)).drift == 0


def longest_text(post):
    return f"# {post.title}\n\n{post.body}"

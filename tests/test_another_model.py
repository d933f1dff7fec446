"""From one model to another, as docs/search.md says: searches find the same at every moment."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event

from tests.workers import until

# Vectors of the same length that mean something else.
EMBEDDERS = """
import time
from embedsync.embedders.hashing import HashingEmbedder

class Better(HashingEmbedder):
    def embed_documents(self, texts):
        time.sleep(0.3)
        return [vector[::-1] for vector in super().embed_documents(texts)]
"""
MORE = """
EMBEDSYNC_EMBEDDERS["better"] = {"BACKEND": "shop.embedders.Better", "DIMENSIONS": 8}
"""
MOVIE = """
class Movie(EmbeddedModel):
    title = models.TextField()
"""
ONE = '    embedding = Embedding("title"{})\n'
OTHER = '    better = Embedding("title", embedder="better"{})\n'
DEFAULT = ", default=True"

SEARCH = """
from shop.models import Movie
print([(m.title, round(abs(m.distance), 2)) for m in Movie.objects.similar("red planet"{})[:2]])
"""
FOUND = "[('red planet', 0.0), ('red', 0.29)]"


def search(code, embedding=""):
    return code.run("shell", "--verbosity", "0", "-c", SEARCH.format(embedding)).strip()


@contextmanager
def serving(*sites):
    """Searches in web processes of these versions of the code, again and again meanwhile."""
    ended, answers = Event(), []

    def serve():
        while True:
            last = ended.is_set()
            answers.extend(search(site) for site in sites)
            if last:
                return

    with ThreadPoolExecutor(1) as thread:
        served = thread.submit(serve)
        try:
            yield
        finally:
            ended.set()
    served.result()
    assert set(answers) == {FOUND}


def test_from_one_model_to_another_with_no_moment_without_results(project):
    """Fault 31."""
    (project.folder / "shop" / "embedders.py").write_text(EMBEDDERS)
    first = project.code(MOVIE + ONE.format(""))
    first.upgrade()
    project.sql(
        "INSERT INTO shop_movie (title) SELECT 'blue sea ' || n FROM generate_series(1, 9) n"
    )
    project.sql("INSERT INTO shop_movie (title) VALUES ('red planet'), ('red')")
    first.drain()
    assert search(first) == FOUND

    # A second one beside it.
    both = project.code(MOVIE + ONE.format(DEFAULT) + OTHER.format(""), more=MORE)
    with serving(first):
        both.upgrade()
    assert search(both, ', embedding="better"') == "[]"
    with serving(first, project.code(MOVIE + ONE.format(DEFAULT) + OTHER.format(""), more=MORE)):
        with ThreadPoolExecutor(1) as pool:
            filled = pool.submit(both.run, "embed_worker", "--drain", "--batch-size", "2")
            until(lambda: len(project.vectors("shop_moviebetter")) >= 4)
            # Of rows that the fill has passed, and of rows that are still before it.
            project.sql("UPDATE shop_movie SET title = title || '.' WHERE title LIKE 'blue%%'")
            assert len(project.vectors("shop_moviebetter")) < 11
            filled.result()
        both.drain()
    assert search(both, ', embedding="better"') == FOUND
    one, other = (project.vectors(f"shop_movie{name}") for name in ("embedding", "better"))
    assert one.keys() == other.keys()
    assert all(one[pk] == other[pk][::-1] for pk in one)

    # The default moves, in some web processes sooner than in others.
    moved = project.code(MOVIE + ONE.format("") + OTHER.format(DEFAULT), more=MORE)
    moved.is_clean()
    with serving(both, moved):
        project.sql("INSERT INTO shop_movie (title) VALUES ('grey cloud')")

    # And the first one goes.
    last = project.code(MOVIE + OTHER.format(DEFAULT), more=MORE)
    with serving(moved):
        last.upgrade()
        project.sql("INSERT INTO shop_movie (title) VALUES ('green hill')")
        last.drain()
    assert search(last) == FOUND
    assert project.tables() == ["shop_movie", "shop_moviebetter"]
    assert project.known() == ["shop.moviebetter"]


def test_the_same_vectors_are_not_searched_by_another_model(project):
    (project.folder / "shop" / "embedders.py").write_text(EMBEDDERS)
    declared = project.code(MOVIE + ONE.format(""))
    declared.upgrade()
    project.sql("INSERT INTO shop_movie (title) VALUES ('red planet'), ('red')")
    declared.drain()
    replaced = 'EMBEDSYNC_EMBEDDERS["default"]["BACKEND"] = "shop.embedders.Better"\n'
    wrong = project.code(MOVIE + ONE.format(""), more=replaced)
    assert "were made by HashingEmbedder" in wrong.fail("shell", "-c", SEARCH.format(""))
    assert "made by another embedder" in wrong.fail("embed_worker", "--drain")
    assert search(declared) == FOUND

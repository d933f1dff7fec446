"""Fault 33: the table of a source is dropped, while rows of it are owed."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.migration_project import vectors_of
from tests.shop import insert, movie
from tests.workers import until

MODELS = movie('embedding = Embedding("title")') + movie('embedding = Embedding("title")', "Film")
KEY = "shop.movieembedding"


@pytest.fixture
def code(project):
    code = project.code(MODELS)
    code.upgrade()
    insert(project, "first", "second")
    code.drain()
    insert(project, "owed")
    project.sql("INSERT INTO shop_film (title, plot, year) VALUES ('a film', '-', 2000)")
    project.sql("DROP TABLE shop_movie CASCADE")
    return code


def test_a_worker_that_runs_serves_the_others(project):
    code = project.code(MODELS)
    code.upgrade()
    insert(project, "first")
    event = "INSERT INTO embedsync_inbox (sidecar, kind, source_pk) VALUES (%s, 'row', '1')"
    with ThreadPoolExecutor(1) as pool:
        served = pool.submit(project.code(MODELS).fail, "embed_worker", "--max-seconds", "10")
        until(lambda: project.vectors("shop_movieembedding"))
        project.sql("DROP TABLE shop_movie CASCADE")
        for n in range(5):
            project.sql(event, KEY)
            project.sql("INSERT INTO shop_film (title, plot, year) VALUES ('a film', '-', 2000)")
            until(lambda n=n: len(project.vectors("shop_filmembedding")) == n + 1)
        output = served.result()
    assert "Traceback" not in output
    # When it was found, by each of its two errors, and at the end; and not every few seconds.
    assert 1 <= output.count(f"{KEY} is not served") <= 3
    assert project.sql("SELECT count(*) FROM embedsync_ledger WHERE run_at IS NULL") == [(0,)]
    assert len(project.vectors("shop_movieembedding")) == 1


def test_its_vectors_stay_until_they_are_purged(project, code):
    assert [key for _, key, _ in project.triggers()] == ["shop.filmembedding"]
    assert "relation shop_movie does not exist" in code.fail("embed_worker", "--drain").replace(
        '"', ""
    )
    films = dict(project.sql("SELECT id, title FROM shop_film"))
    assert project.vectors("shop_filmembedding") == vectors_of(films)
    assert project.sql("SELECT count(*) FROM embedsync_ledger WHERE run_at IS NULL") == [(0,)]
    assert "orphaned: table shop_movie is missing" in code.fail("embed_status")

    assert "2 vectors left" in code.fail("embed_sweep", "shop.Movie", "--repair")
    assert len(project.vectors("shop_movieembedding")) == 2
    code.run("embed_sweep", "shop.Movie", "--purge")
    assert project.vectors("shop_movieembedding") == {}

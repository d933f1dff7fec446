"""Chunks that come to a declaration, change, and go: stock migrations, and a comparison."""

import pytest

MODELS = """
from embedsync.models import Chunks

class Movie(EmbeddedModel):
    title = models.TextField()
    embedding = Embedding("title"{chunks})
"""


def passages(project, column="passage"):
    return project.sql(
        f"SELECT source_id, ordinal, {column} FROM shop_movieembedding ORDER BY 1, 2"
    )


def vectors(project):
    return dict(
        project.sql("SELECT digest::text, vector::text FROM shop_movieembedding ORDER BY 1")
    )


def test_chunks_come_change_and_go(project):
    plain = project.code(MODELS.format(chunks=""))
    plain.run("makemigrations")
    plain.run("migrate")
    long = "one two three. four five six. seven eight nine."
    project.sql(f"INSERT INTO shop_movie (title) VALUES ('short'), ('{long}')")
    plain.drain()
    before = vectors(project)
    assert passages(project, "cut") == [(1, 0, False), (2, 0, False)]

    chunked = project.code(MODELS.format(chunks=", chunks=Chunks(size=5, markdown=False)"))
    output = chunked.run("makemigrations", "--no-input")
    assert "Add field passage to movieembedding" in output
    chunked.run("migrate")
    chunked.drain()
    found = passages(project)
    assert found[0] == (1, 0, "short")
    assert [row[1] for row in found[1:]] == list(range(len(found) - 1))
    assert len(found) > 3
    assert " ".join(row[2] for row in found[1:]) == long
    # The vector of what stayed whole was not made again.
    assert len(before.items() & vectors(project).items()) == 1

    wider = project.code(MODELS.format(chunks=", chunks=Chunks(size=8, markdown=False)"))
    assert "No changes detected" in wider.run("makemigrations")
    wider.drain()
    fewer = passages(project)
    assert 2 < len(fewer) < len(found)
    assert " ".join(row[2] for row in fewer[1:]) == long

    gone = project.code(MODELS.format(chunks=""))
    assert "Remove field passage from movieembedding" in gone.run("makemigrations", "--no-input")
    gone.run("migrate")
    gone.drain()
    assert vectors(project) == before
    assert passages(project, "cut") == [(1, 0, False), (2, 0, False)]


@pytest.mark.parametrize("field", ["passage = models.TextField()"])
def test_a_field_named_passage_is_refused(project, field):
    code = project.code(
        "from embedsync.models import Chunks\n"
        "class Movie(EmbeddedModel):\n"
        f"    {field}\n"
        "    embedding = Embedding('passage', chunks=Chunks(size=5))\n"
    )
    output = code.fail("makemigrations")
    assert "embedsync.E028" in output
    assert "something named passage" in output

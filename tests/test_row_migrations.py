"""Row-level triggers and migrations: theirs come and go, and the application's are not refused."""

import pytest

from tests.levels import settle
from tests.shop import PLAIN, TITLE_AND_PLOT, Shape, assert_in_step, insert, movie


def shape(level, declaration='"title"', **more):
    level = "" if level == "statement" else f', capture="{level}"'
    return Shape(movie(f"embedding = Embedding({declaration}{level})"), **more)


LEVELS = ("statement", "row", "always", "row", "statement", "always", "statement")
# tgenabled of all triggers, and whether those of rows run for each row.
STATES = {"statement": ("O", False), "row": ("O", True), "always": ("A", True)}


def triggers(project):
    """What is installed, by event: tgenabled, and whether it runs for each row."""
    rows = project.sql(
        "SELECT split_part(name::text, '_', 4), enabled::text, for_each_row FROM embedsync_trigger"
    )
    return {event: state for event, *state in rows}


def functions(project):
    """The functions of triggers that are there, and those that triggers use."""
    there = project.sql("SELECT proname FROM pg_proc WHERE proname LIKE 'embedsync_capture%%'")
    used = project.sql("SELECT DISTINCT function FROM embedsync_trigger")
    return sorted(there), sorted(used)


def assert_captured(project, code, level):
    """All is made anew for a level, nothing is left over, and rows are compared and followed."""
    enabled, for_each_row = STATES[level]
    each = [enabled, for_each_row]
    assert triggers(project) == {
        "insert": each, "update": each, "delete": each, "truncate": [enabled, False]
    }  # fmt: skip
    there, used = functions(project)
    assert there == used
    assert len(there) == 4
    shape = Shape("")
    code.drain()
    assert_in_step(project, shape)
    project.sql("UPDATE shop_movie SET title = title || '!' WHERE id = 1")
    project.sql("UPDATE shop_movie SET year = year + 1")
    assert project.events(shape.key) == [("row", "1")]
    code.drain()
    assert_in_step(project, shape)


def write_unseen(project):
    project.sql(
        "SET embedsync.capture = 'off'; UPDATE shop_movie SET title = title || '?' WHERE id = 2;"
        "RESET embedsync.capture"
    )


def test_levels_follow_one_another_forward_and_back(project):
    codes = {level: project.code(shape(level).models) for level in STATES}
    for number, level in enumerate(LEVELS):
        code = codes[level] = project.code(shape(level).models)
        if number:
            write_unseen(project)
        code.upgrade()
        if not number:
            insert(project, "Alien", "Brazil", "Casablanca")
        assert_captured(project, code, level)
    for number, level in reversed([*enumerate(LEVELS, 1)][:-1]):
        write_unseen(project)
        code.run("migrate", "shop", f"{number:04}")
        assert_captured(project, codes[level], level)


def test_the_functions_of_a_declaration_go_with_it(project):
    project.code(shape("row").models).upgrade()
    assert len(functions(project)[0]) == 4
    plain = project.code(PLAIN.models)
    plain.upgrade()
    assert functions(project) == ([], [])
    plain.run("migrate", "shop", "0001")
    assert len(functions(project)[0]) == 4
    plain.run("migrate", "shop", "zero")
    plain.run("migrate", "embedsync", "zero")
    assert project.objects() == []


# What the application changes, and how it is declared afterwards.
CHANGES = {
    "type": (
        movie('embedding = Embedding("title", "plot", capture="row")').replace(
            "CharField(max_length=200)", "TextField()"
        ),
        TITLE_AND_PLOT.texts,
    ),
    "length": (
        movie('embedding = Embedding("title", "plot", capture="row")').replace("200", "300"),
        TITLE_AND_PLOT.texts,
    ),
    "key": (
        movie(
            "id = models.IntegerField(primary_key=True)\n"
            '    embedding = Embedding("title", "plot", capture="row")'
        ),
        TITLE_AND_PLOT.texts,
    ),
    "name": (
        movie('embedding = Embedding("title", "story", capture="row")').replace("plot", "story"),
        "SELECT id, concat_ws(E'\\n', title, story) FROM shop_movie",
    ),
    "columns": (
        movie('embedding = Embedding("title", capture="row")').replace(
            'plot = models.TextField(default="-")', ""
        ),
        "SELECT id, title FROM shop_movie",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_migrations_of_the_application_are_not_refused(project, change):
    models, texts = CHANGES[change]
    before = project.code(shape("row", '"title", "plot"').models)
    before.upgrade()
    project.sql("INSERT INTO shop_movie VALUES (1, 'Alien', '-', 1), (2, 'Brazil', '-', 1)")
    before.drain()
    after = project.code(models)
    after.upgrade("y")
    project.sql("UPDATE shop_movie SET title = title || '!' WHERE id = 1")
    assert ("row", "1") in project.events("shop.movieembedding")
    after.drain()
    assert_in_step(project, Shape(models, texts=texts))
    after.run("migrate", "shop", "0001")
    project.sql("UPDATE shop_movie SET title = title || '?' WHERE id = 2")
    before.drain()
    assert_in_step(project, TITLE_AND_PLOT)


@pytest.mark.parametrize("level", ["statement", "row"])
class TestSessionsThatGoOn:
    """A session has planned a trigger's function before a column gets another type."""

    @pytest.fixture
    def code(self, project, level):
        code = project.code(shape(level).models)
        code.upgrade()
        insert(project, "Alien", "Brazil")
        code.drain()
        return code

    @pytest.fixture
    def session(self, project, code):
        notices = []
        with project.connect() as session:
            session.add_notice_handler(lambda notice: notices.append(notice.message_primary))
            session.notices = notices
            for _ in range(10):
                session.execute("UPDATE shop_movie SET title = title || '!' WHERE id = 1")
            assert notices == []
            yield session

    @pytest.mark.parametrize(
        "change",
        ["ALTER title TYPE text", "ALTER title TYPE varchar(9999)", "ALTER id TYPE numeric"],
    )
    def test_it_warns_once_at_most_and_is_right_again(self, project, code, session, change):
        project.sql("ALTER TABLE shop_movie ALTER id DROP IDENTITY")
        project.sql(f"ALTER TABLE shop_movie {change}")
        for _ in range(3):
            session.execute("UPDATE shop_movie SET title = title || '?' WHERE id = 1")
        assert len(session.notices) <= 1
        before = len(project.events("shop.movieembedding"))
        session.execute("UPDATE shop_movie SET title = title || '.' WHERE id = 2")
        assert len(project.events("shop.movieembedding")) == before + 1
        settle(project, code)
        assert_in_step(project, Shape(""))

    def test_what_the_warning_was_about_is_compared(self, project, code, session, level):
        project.sql("ALTER TABLE shop_movie ALTER title TYPE text")
        session.execute("UPDATE shop_movie SET title = 'unseen' WHERE id = 2")
        assert len(session.notices) == (level != "statement")
        settle(project, code)
        assert_in_step(project, Shape(""))

    def test_a_column_may_be_dropped_under_a_trigger(self, project, code, session):
        project.sql("ALTER TABLE shop_movie DROP COLUMN title")
        session.execute("UPDATE shop_movie SET plot = 'x'")
        session.execute("DELETE FROM shop_movie WHERE id = 2")
        assert len(session.notices) == 1

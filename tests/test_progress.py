"""How a drain shows how far it is."""

import logging
import sys

import pytest

from embedsync import progress


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO, "embedsync")
    return lambda: caplog.messages


def test_lines_where_there_is_no_terminal(lines, monkeypatch):
    shown = progress.drain_progress(10)
    shown.update(4)
    assert lines() == []  # not so soon again
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    shown.update(2)
    shown.update(6)
    shown.close()
    assert [line.split(" rows")[0] for line in lines()] == ["6 of 10", "12 of 12", "12 of 12"]
    assert "rows/s" in lines()[0]


def test_nothing_to_do(lines):
    progress.drain_progress(0).close()
    assert lines() == ["0 of 0 rows, 0.0 rows/s, 0 s left"]


@pytest.fixture
def terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)


def test_a_bar_on_a_terminal(terminal, capsys):
    bar = progress.drain_progress(10)
    bar.update(10)
    bar.close()
    output = capsys.readouterr().err
    assert "10/10" in output
    assert "rows/s" in output


def test_lines_on_a_terminal_without_tqdm(terminal, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert isinstance(progress.drain_progress(10), progress.LineProgress)

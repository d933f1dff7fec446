"""How a drain shows how far it is."""

import fcntl
import logging
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

from embedsync import progress
from example_project.postgres import PROJECT


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
    assert [line.partition(",")[0] for line in lines()] == ["6 of 10 rows", "12 rows"]
    assert ["left" in line for line in lines()] == [True, False]


def test_nothing_to_do(lines):
    progress.drain_progress(0).close()
    assert lines() == []


def test_a_bar_on_a_terminal():
    """A real terminal, because tqdm asks it for its width."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    code = (
        "from embedsync.progress import drain_progress\n"
        "bar = drain_progress(10)\nbar.update(10)\nbar.close()"
    )
    run = subprocess.run([sys.executable, "-c", code], stderr=follower, cwd=PROJECT, check=True)
    os.close(follower)
    output = os.read(leader, 10_000).decode()
    os.close(leader)
    assert run.returncode == 0
    assert "10/10" in output
    assert "rows/s" in output


def test_lines_on_a_terminal_without_tqdm(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert isinstance(progress.drain_progress(10), progress.LineProgress)

"""The alive-file is for a supervisor; a worker does not need it."""

import shutil

import pytest

from embedsync.heartbeat import Heartbeat

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_folder_that_is_gone_ends_no_worker(drain, tmp_path, caplog):
    drain()
    folder = tmp_path / "run"
    folder.mkdir()
    heartbeat = Heartbeat("default", "me", folder / "alive")
    heartbeat.beat("", {}, {})
    shutil.rmtree(folder)
    heartbeat._touch_at = 0.0
    heartbeat.beat("", {}, {})
    assert "alive-file" in caplog.text
    heartbeat.end()

import logging
import os
import subprocess
import sys
import threading
import time

import pytest

from dfkd.checkpoint import Checkpoint
from dfkd.errors import UserError
from dfkd.locks import NAME, clear, hold, release

HOLDER = (
    "import sys, time; from dfkd.locks import hold, release; hold(sys.argv[1]); print('held', flush=True); sys.stdin.read()"
)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds tmp_path/c until its input ends or it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "c")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_the_second_waits_and_says_who_holds_it(holder, tmp_path, caplog):
    done = threading.Event()

    def second():
        with caplog.at_level(logging.WARNING):
            hold(tmp_path / "c")
        done.set()

    threading.Thread(target=second, daemon=True).start()
    deadline = time.monotonic() + 60
    while "waiting" not in caplog.text and time.monotonic() < deadline:
        time.sleep(0.02)
    assert f"in use by process {holder.pid} on {os.uname().nodename}; waiting for its end" in caplog.text
    assert not done.is_set()
    holder.kill()  # a kill frees it
    assert done.wait(60)
    release(tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_process_does_not_wait_for_itself(tmp_path):
    hold(tmp_path / "c")
    hold(tmp_path / "c")
    release(tmp_path / "c")
    hold(tmp_path / "c")
    release(tmp_path / "c")
    release(tmp_path / "c")


def test_a_folder_removed_by_hand_is_held_anew(tmp_path):
    hold(tmp_path / "c")
    (tmp_path / "c" / NAME).unlink()
    (tmp_path / "c").rmdir()
    hold(tmp_path / "c")
    assert (tmp_path / "c" / NAME).read_text().startswith(f"process {os.getpid()} on ")
    release(tmp_path / "c")


def test_clear_leaves_the_lock_alone(tmp_path):
    hold(tmp_path / "c")
    (tmp_path / "c" / "deep" / "er").mkdir(parents=True)
    (tmp_path / "c" / "state.pt").write_text("")
    (tmp_path / "c" / "link").symlink_to(tmp_path)
    clear(tmp_path / "c")
    assert os.listdir(tmp_path / "c") == [NAME]
    assert tmp_path.exists()
    release(tmp_path / "c")


def test_a_checkpoint_waits_for_the_process_that_has_it(holder, tmp_path, caplog):
    threading.Timer(0.5, holder.kill).start()
    checkpoint = Checkpoint(tmp_path / "c", {"lr": 0.1})
    assert "waiting for its end" in caplog.text
    checkpoint.save({"step": 1})
    checkpoint.remove()
    assert not (tmp_path / "c").exists()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made or written"):
        hold(tmp_path / "file" / "c")

import csv
import math

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dfkd.errors import UserError
from dfkd.history import GRIDS, History, is_shown, panels_of, partial, read_history, timing
from dfkd.tensorboard import tile


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr("dfkd.history.REFRESH_SECONDS", -1)


def filled(folder, epochs, state=None):
    """A history of these epochs in `folder`, the epochs of `state` before them."""
    history = History(folder / "history.csv", folder / "tensorboard", columns=("lr",))
    history.load_state(state or {})
    for epoch in epochs:
        history.append({"epoch": epoch, "loss": 1 / epoch, "lr": 0.1}, seconds=2.0 * epoch, images=100)
        history.show("made", torch.full((3, 1, 8, 8), epoch, dtype=torch.uint8))
    return history


def points(folder):
    """Of every tag of TensorBoard, its steps and values."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()
    tags = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    return tags | {tag: [event.step for event in events.Images(tag)] for tag in events.Tags()["images"]}


def test_rows_are_written_with_the_counter_first_and_times_apart(tmp_path):
    history = filled(tmp_path, [1, 2])
    assert (tmp_path / "history.partial.csv").read_text() == "epoch,lr,loss\n1,0.1,1.0\n2,0.1,0.5\n"
    assert not (tmp_path / "history.csv").exists()
    history.publish()
    assert (tmp_path / "history.csv").read_text() == "epoch,lr,loss\n1,0.1,1.0\n2,0.1,0.5\n"
    rows = list(csv.DictReader((tmp_path / "timing.csv").open()))
    assert rows[1] == {"epoch": "2", "seconds": "2.0", "images": "100", "images_per_second": "50.0"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history.csv", "tensorboard", "timing.csv"]


def test_the_partial_files_are_not_written_for_every_row_of_a_fast_stage(tmp_path, monkeypatch):
    monkeypatch.setattr("dfkd.history.REFRESH_SECONDS", 3600)
    history = filled(tmp_path, [1, 2, 3])
    assert read_history(tmp_path / "history.partial.csv")["epoch"] == [1]
    history.publish()
    assert read_history(tmp_path / "history.csv")["epoch"] == [1, 2, 3]


def test_no_row_is_a_history_too(tmp_path):
    filled(tmp_path, []).publish()
    assert (tmp_path / "history.csv").read_text() == "epoch,lr\n"
    assert read_history(tmp_path / "history.csv") == {"epoch": [], "lr": []}
    assert not (tmp_path / "tensorboard").exists()


def test_a_killed_job_doubles_no_point_and_loses_none(tmp_path):
    first = filled(tmp_path, [1, 2])
    saved = {name: [dict(row) for row in rows] for name, rows in first.state().items()}
    first.append({"epoch": 3, "loss": 99.0, "lr": 0.1}, 6.0, 100)  # passed on, and then killed before it was saved
    first.show("made", torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    second = filled(tmp_path, [], saved)
    assert (tmp_path / "history.partial.csv").read_text().count("\n") == 3
    second = filled(tmp_path, [3, 4], saved)
    second.publish()
    found = points(tmp_path / "tensorboard")
    assert found["loss/loss"] == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3)), (4, 0.25)]
    assert found["rate/lr"] == [(epoch, pytest.approx(0.1)) for epoch in (1, 2, 3, 4)]
    assert [step for step, _ in found["speed/images_per_second"]] == [1, 2, 3, 4]
    assert found["images/made"] == [1, 2, 3, 4]
    assert read_history(tmp_path / "timing.csv")["seconds"] == [2.0, 2.0, 2.0, 2.0]


def test_a_job_that_starts_anew_takes_nothing_over(tmp_path):
    filled(tmp_path, [1, 2, 3])
    filled(tmp_path, [1])
    assert points(tmp_path / "tensorboard")["loss/loss"] == [(1, 1.0)]
    assert read_history(tmp_path / "history.partial.csv")["epoch"] == [1.0]
    History(tmp_path / "history.csv", tmp_path / "tensorboard")
    assert not partial(tmp_path / "history.csv").exists()


def test_rows_beyond_what_else_is_saved_are_dropped(tmp_path):
    history = filled(tmp_path, [1, 2, 3])
    history.truncate(2)
    assert [row["epoch"] for row in history.rows] == [row["epoch"] for row in history.timing] == [1, 2]


def test_names_of_the_files(tmp_path):
    assert timing(tmp_path / "init.history.csv") == tmp_path / "init.timing.csv"
    assert timing(tmp_path / "history.partial.csv") == tmp_path / "timing.partial.csv"
    assert partial(tmp_path / "history.csv") == tmp_path / "history.partial.csv"


def test_a_column_of_no_panel_is_the_generators_or_the_students():
    columns = {
        "epoch": [1],
        "acc1": [50],
        "agree1": [math.nan],
        "loss": [1],
        "weight": [1],
        "g_loss": [1],
        "g_tv": [1],
        "lr_g": [1],
    }
    found = {panel.title: labels for panel, labels in panels_of(columns)}
    assert found == {
        "On the test split, %": {"acc1": "Acc@1"},
        "Training loss": {"loss": "total", "weight": "weight"},
        "Generator's loss": {"g_loss": "total", "g_tv": "tv"},
        "Learning rate": {"lr_g": "generator"},
    }


@pytest.mark.parametrize("total", [1, 5, 20, 21, 240, 400])
def test_few_rows_are_shown_and_the_first_and_the_last_are(total):
    shown = [number for number in range(1, total + 1) if is_shown(number, total)]
    assert (shown[0], shown[-1]) == (1, total)
    assert len(shown) <= GRIDS
    assert len(shown) >= min(total, GRIDS // 2)


def test_tiles_are_rows_of_images_enlarged_and_within_512_pixels():
    images = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 3, 16, 16)
    grid = tile(images)
    assert grid.shape == (3, 2 * 34, 3 * 34)  # 2 × enlarged, a white border of one pixel each
    assert [int(grid[0, 34 * (place // 3) + 5, 34 * (place % 3) + 5]) for place in range(6)] == [0, 1, 2, 3, 4, 255]
    assert tile(torch.zeros(100, 1, 32, 32, dtype=torch.uint8)).shape == (1, 8 * 34, 8 * 34)
    assert max(tile(torch.zeros(64, 3, 224, 224, dtype=torch.uint8)).shape) <= 512
    assert tile(torch.zeros(36, 1, 32, 32, dtype=torch.uint8), group=3).shape == (1, 6 * 34, 6 * 34)
    assert tile(torch.zeros(3, 1, 32, 32, dtype=torch.uint8), group=3).shape == (1, 34, 3 * 34)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "history.csv"
    for text, words in (
        ("a,b\n1,2\n", "its first column is none of `epoch`, `batch`, `step`"),
        ("", "its first column is none of"),
        ("epoch,acc1\n1,high\n", "not a history.csv of this package"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=words):
            read_history(path)
    path.write_bytes(b"epoch\n\xff\n")
    with pytest.raises(UserError, match=r"not a history\.csv of this package"):
        read_history(path)
    with pytest.raises(UserError, match="no such file"):
        read_history(tmp_path / "missing.csv")

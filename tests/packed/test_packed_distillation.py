"""Students learn from images that stay in the packed file: the same images, the same steps, whoever decodes them."""

import io
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dfkd.datasets.prepare import prepare
from dfkd.datasets.prepared import read_info, read_packed_train, read_split
from dfkd.distillation import given as images_given
from dfkd.distillation.distill import distill
from dfkd.distillation.first_stage import train_first_stage
from dfkd.distillation.stream import ArraySource, StreamedStore
from dfkd.distillation.teacher import train_teacher
from dfkd.errors import UserError
from dfkd.evaluation.commands import weights_command
from dfkd.files import file_sha256, read_json
from dfkd.methods import METHODS
from dfkd.models.weights import read_card
from dfkd.packed import pack as packing
from dfkd.packed import stream as packed_stream
from dfkd.packed.file import PackedFile
from dfkd.packed.pack import pack
from dfkd.packed.stream import PackedSource
from dfkd.progress import Stopped
from dfkd.settings import DatasetSettings, TeacherSettings

SMALL = {"precision": "reference", "epochs": 2, "kd_steps": 5, "batch_size": 8, "milestones": [1], "shuffle_buffer": 10}


class Light:
    """Bright and dark photographs of several shapes, 24 and 8 of them, packed; the data set, and a teacher of it."""

    def __init__(self, folder, runtime):
        self.folder, self.runtime = folder, runtime
        draw = np.random.default_rng(0)
        for split, count in (("train", 12), ("test", 4)):
            for label, name in enumerate(("bright", "dark")):
                place = folder / "files" / split / name
                place.mkdir(parents=True)
                for number in range(count):
                    shape = (10 + number % 3, 12 - number % 5, 3)
                    pixels = draw.integers(0, 90, shape) + 150 * (1 - label)
                    Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number}.jpg")
        self.packed = folder / "light.lmdb"
        pack(folder / "files", self.packed)
        self.data, self.test = self.prepared("light"), folder / "light.test.h5"
        settings = TeacherSettings(precision="reference", epochs=4, batch_size=6, lr=0.05, milestones=[], shuffle_buffer=10)
        self.teacher = folder / "teacher" / "weights.safetensors"
        train_teacher(self.data, "wrn101", settings, self.teacher, folder / "state", runtime, packed=self.packed)

    def prepared(self, name, **changes):
        """A data set of these images."""
        values = {"source": f"packed:{self.packed}", "image_size": 8, "mean": [0.5] * 3, "std": [0.3] * 3, "keep_packed": True}
        settings = DatasetSettings(**({**values, "crop": "resized"} | changes))
        prepare(name, settings, self.folder / f"{name}.h5", self.folder / f"{name}.test.h5", self.folder)
        return self.folder / f"{name}.h5"

    def distil(self, folder, method="kd", data=None, packed="own", first_stage=None, **changes):
        """Distil into a folder; the card."""
        settings = METHODS[method].settings(**(SMALL | changes))
        packed = self.packed if packed == "own" else packed
        distill(
            self.teacher, [], "wrn101", self.test, settings, 0, folder / "out" / "student.safetensors", folder / "state",
            self.runtime, method, data or self.data, first_stage, packed=packed,
        )  # fmt: skip
        return read_json(folder / "out" / "student.json")


@pytest.fixture(scope="module")
def light(tmp_path_factory, reference):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "BLOCK_IMAGES", 5)
        return Light(tmp_path_factory.mktemp("light"), reference)


def artefacts(folder):
    files = [path for path in sorted((folder / "out").iterdir()) if path.is_file()]
    return {path.name: path.read_bytes() for path in files if path.name not in ("cost.json", "timing.csv")}


class Blocks(ArraySource):
    """A packed split whose images were decoded beforehand: the same blocks, in memory."""

    def __init__(self, source):
        images, _ = source.file.decoded("train", source.info.image_size, 3, workers=0)
        super().__init__(images, source.labels)
        self.starts = source.starts

    def read(self, blocks, images, key):
        images[:] = np.concatenate([self.images[self.starts[block] : self.starts[block + 1]] for block in blocks])


@pytest.mark.parametrize("method", ["kd", "kd-crd"])
def test_a_run_on_the_file_is_the_run_on_its_images_in_memory(light, tmp_path, monkeypatch, method):
    data = light.prepared("padded", crop="padded", crop_padding=1)
    teacher, light.teacher = light.teacher, light.folder / "padded" / "weights.safetensors"
    settings = TeacherSettings(precision="reference", epochs=1, batch_size=6, shuffle_buffer=10)
    train_teacher(data, "wrn101", settings, light.teacher, tmp_path / "state", light.runtime, packed=light.packed)
    changes = {"negatives": 7} if method == "kd-crd" else {"beta": 0.5}
    try:
        light.distil(tmp_path / "file", method, data, **changes)
        own, made = packed_stream.kept_source, []

        def in_memory(*arguments):
            source = own(*arguments)
            source.close()
            made.append(source)
            return Blocks(source)

        monkeypatch.setattr(images_given, "kept_source", in_memory)
        monkeypatch.setattr(images_given, "packed_lineage", lambda source: packed_stream.packed_lineage(made[0]))
        light.distil(tmp_path / "memory", method, data, **changes, store="streamed")
    finally:
        light.teacher = teacher
    file, memory = artefacts(tmp_path / "file"), artefacts(tmp_path / "memory")
    assert file["student.safetensors"] == memory["student.safetensors"]
    assert file["history.csv"] == memory["history.csv"]


def test_stopped_and_resumed_it_ends_with_the_same_bytes(light, tmp_path, monkeypatch):
    card = light.distil(tmp_path / "whole", "kd-vid")
    digest = PackedFile(light.packed).digest
    assert card["lineage"]["packed light.lmdb"] == digest == read_packed_train(light.data)["digest"]
    assert card["lineage"]["data"] == file_sha256(light.data)
    assert card["notes"]["store"] == "streamed, shuffle buffer of 10 images"
    assert "--packed light.lmdb --data data/light.h5" in weights_command(None, card, "wrn101", "student.safetensors")
    fetch, steps = StreamedStore.fetch, []

    def interrupted(*arguments):
        steps.append(arguments[2])
        if len(steps) in (3, 7):
            signal.raise_signal(signal.SIGTERM)
        return fetch(*arguments)

    monkeypatch.setattr(StreamedStore, "fetch", interrupted)
    for _ in range(2):
        with pytest.raises(Stopped):
            light.distil(tmp_path / "parts", "kd-vid")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)  # other processes decode
    light.distil(tmp_path / "parts", "kd-vid")
    assert len(steps) == 12  # the images that were waited for when a signal came are asked for again
    assert artefacts(tmp_path / "parts") == artefacts(tmp_path / "whole")


def test_the_control_and_both_stages_of_a_method_in_two(light, tmp_path):
    card = light.distil(tmp_path / "real", "real", temperature=4.0)
    assert "packed light.lmdb" in card["lineage"]
    changes = {"first_epochs": 1}
    settings = METHODS["kd-ab"].settings(**(SMALL | changes))
    first = tmp_path / "ab" / "first_stage.safetensors"
    train_first_stage(
        light.teacher, [], "wrn101", settings, 0, first, tmp_path / "state", light.runtime, "kd-ab", light.data, light.packed
    )
    begun = light.distil(tmp_path / "ab", "kd-ab", first_stage=first, **changes)
    assert read_json(first.with_suffix(".json"))["lineage"].items() < begun["lineage"].items()


def test_another_packed_data_set_gives_its_images_and_no_labels(light, tmp_path):
    others = light.prepared("others", crop="padded")
    settings = METHODS["kd"].settings(transfer_set="dataset:others")
    given = images_given.read_given("kd", settings, read_card(light.teacher), [], others, light.packed)
    assert set(given.outside.labels.tolist()) == {-1}
    assert given.outside.cropped  # as the teacher's images were
    assert given.streamed(settings, 0, (3, 8, 8), light.runtime)
    given.close()


def test_what_cannot_be_is_refused(light, tmp_path, tiny_data):
    with pytest.raises(UserError, match=r"lie in the packed file light\.lmdb; give it with --packed"):
        light.distil(tmp_path, packed=None)
    with pytest.raises(UserError, match=r"stay in light\.lmdb and are streamed from there, not resident"):
        light.distil(tmp_path, store="resident")
    pack(light.folder / "files" / "test", tmp_path / "other.lmdb")
    with pytest.raises(UserError, match=r"other\.lmdb: is not the light\.lmdb that .* was prepared from"):
        light.distil(tmp_path, packed=tmp_path / "other.lmdb")
    with pytest.raises(UserError, match="leave --packed away"):
        light.distil(tmp_path, data=light.folder / "files", transfer_set=f"folder:{light.folder}")
    whole = light.prepared("whole", keep_packed=False)
    with pytest.raises(UserError, match=r"whole\.h5: holds its training images itself; leave --packed away"):
        light.distil(tmp_path, data=whole)
    assert not (tmp_path / "out").exists()


def test_a_decoder_that_is_killed_is_told_in_a_sentence(light):
    source = PackedSource(light.packed, "train", read_info(light.data), workers=1)
    (number,) = source._pool._processes
    os.kill(number, signal.SIGKILL)
    with pytest.raises(UserError, match=r"light\.lmdb: a process that decodes its images was killed"):
        source.read([0], np.empty((5, 3, 8, 8), np.uint8), (0,))
    source.close()


def decode_for_ever(packed, info, numbers):
    source = PackedSource(packed, "train", info, workers=2)
    numbers.send(list(source._pool._processes))
    time.sleep(600)


def test_a_killed_run_leaves_no_process_behind(light):
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    run = context.Process(target=decode_for_ever, args=(light.packed, read_info(light.data), there))
    run.start()
    assert here.poll(60)
    numbers = here.recv()
    assert len(numbers) == 2
    assert all(_runs(number) for number in numbers)
    run.kill()
    run.join()
    deadline = time.monotonic() + 20
    while any(_runs(number) for number in numbers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _runs(number):
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_the_test_split_is_a_centre_square_of_the_share_asked_for(light):
    near = light.prepared("near", test_centre=0.5)
    file = PackedFile(light.packed)
    content, image = file.contents(file.split_images("test"))[0], read_split(near, "test")[0][0]
    whole = Image.open(io.BytesIO(content))
    side = min(whole.size) / 2
    left, top = (whole.width - side) / 2, (whole.height - side) / 2
    expected = whole.resize((8, 8), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    assert np.array_equal(np.asarray(expected).transpose(2, 0, 1), image.numpy())

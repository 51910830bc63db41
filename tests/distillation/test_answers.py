"""The teacher's answers that are kept: the same training with and without, what is asked of the teacher, and the file."""

import logging
import signal
from pathlib import Path
from types import SimpleNamespace

import h5py
import pytest
import torch
from typer.testing import CliRunner

from dfkd.cli import app
from dfkd.datasets.prepared import read_split
from dfkd.datasets.views import draw_views, normalise, to_unit, views_of
from dfkd.distillation import answers as module
from dfkd.distillation.answer_file import AnswerFile
from dfkd.distillation.answers import DEFAULT_MB, AnswerCache, CacheOptions, ahead, expected_share, identity, open_answers
from dfkd.distillation.distill import distill
from dfkd.distillation.run import Run
from dfkd.distillation.store import ImageStore, ShuffledPasses
from dfkd.files import read_json
from dfkd.methods import METHODS
from dfkd.models.weights import load_model
from dfkd.progress import Stopped
from dfkd.runtime import Runtime

SMALL = {"precision": "reference", "epochs": 3, "kd_steps": 16, "batch_size": 24, "milestones": [2]}
OFF = CacheOptions(limit_mb=0)


@pytest.fixture(scope="module")
def world(tiny_teacher, tiny_data, reference):
    """A store of 20 images with their 18 views each, the teacher, and batches of 24 of them."""
    teacher, card = load_model(tiny_teacher, reference)
    images, labels = read_split(tiny_data.data, "train")
    store = ImageStore(20, tiny_data.info.shape, reference)
    store.append(images[:20], labels[:20])

    def open_cache():
        return AnswerCache(teacher, store, tiny_data.info, 24, reference)

    return SimpleNamespace(teacher=teacher, card=card, store=store, info=tiny_data.info, runtime=reference, open=open_cache)


def seen(world, rows, views):
    """What the networks see, as a run makes it."""
    views = views.apply(world.store.images[rows], world.info)
    return world.runtime.images(normalise(to_unit(views), world.info))


def walk(world, cache, steps, seed=0):
    """Steps of a round as a run takes them; each batch's answers, and those of the teacher without the cache."""
    torch.manual_seed(seed)
    order, later = (ShuffledPasses(world.store.count, cache.size, seed) for _ in range(2))
    for step in range(steps):
        rows, views = order.batch(step), draw_views(cache.size, world.info)
        images = seen(world, rows, views)
        following = ahead((later.batch(number) for number in range(step + 1, steps)), world.info)
        with torch.no_grad():
            plain = world.teacher(images)
        yield cache.answers((rows, views), images, following), plain


def test_answers_are_the_teachers_bit_for_bit(world):
    cache = world.open()
    assert len(cache) == 20 * views_of(world.info) == 20 * 18
    for kept, plain in walk(world, cache, 40):
        assert torch.equal(kept, plain)


def test_the_teacher_is_asked_for_each_view_once_and_in_whole_batches(world, monkeypatch):
    cache, shapes, steps = world.open(), [], 30
    monkeypatch.setattr(cache, "_forward", lambda images: shapes.append(len(images)) or world.teacher(images).detach())
    before, drawn = cache.queries, set()
    for _ in walk(world, cache, steps):
        pass
    torch.manual_seed(0)
    order = ShuffledPasses(20, 24, 0)
    for step in range(steps):
        drawn |= set((order.batch(step) * 18 + draw_views(24, world.info).numbers(world.info)).tolist())
    assert set(cache.filled.nonzero().flatten().tolist()) == drawn
    assert set(shapes) == {24}
    assert len(shapes) == -(-len(drawn) // 24) or len(shapes) == 1 + len(drawn) // 24 + 1  # the last batch is filled up
    assert cache.queries - before == 24 * len(shapes) < cache.asked == 24 * steps
    for kept, plain in walk(world, cache, steps):
        assert torch.equal(kept, plain)
    assert len(shapes) * 24 == cache.queries - before  # nothing was asked again


def test_looking_ahead_leaves_the_draws_alone_and_foresees_them(world):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    rows = [torch.arange(5), torch.arange(5, 10)]
    foreseen = list(ahead(iter(rows), world.info))
    assert torch.equal(torch.get_rng_state(), state)
    for own, views in foreseen:
        assert all(torch.equal(one, other) for one, other in zip(views, draw_views(len(own), world.info), strict=True))


def test_a_wrong_forecast_costs_time_alone(world):
    cache = world.open()
    torch.manual_seed(5)
    for step in range(6):
        rows, views = torch.randint(20, (24,)), draw_views(24, world.info)
        images = seen(world, rows, views)
        wrong = ahead((torch.randint(20, (24,), generator=torch.Generator().manual_seed(step)) for _ in range(3)), world.info)
        assert torch.equal(cache.answers((rows, views), images, wrong), world.teacher(images).detach())


def test_a_teacher_that_looks_at_its_neighbours_has_no_cache(world, caplog):
    class Neighbourly(torch.nn.Module):
        def forward(self, images):
            return world.teacher(images) + images.mean((1, 2, 3), keepdim=False).cumsum(0)[:, None]

    caplog.set_level(logging.INFO)
    with pytest.raises(ValueError, match="depends on the others of its batch"):
        AnswerCache(Neighbourly(), world.store, world.info, 24, world.runtime)
    assert open_answers(Neighbourly(), world.card, world.store, 10**6, 24, world.runtime, CacheOptions()) is None
    assert "answers are not kept: what the teacher says of an image depends on the others of its batch" in caplog.text


def test_it_is_kept_where_it_pays_and_fits(world, caplog, tmp_path):
    caplog.set_level(logging.INFO)

    def opened(draws=10**6, **options):
        return open_answers(world.teacher, world.card, world.store, draws, 24, world.runtime, CacheOptions(**options))

    assert expected_share(240 * 50_000, 162 * 50_000) == pytest.approx(0.478, abs=1e-3)
    assert opened().filled.sum() == 0
    assert opened(limit_mb=0) is None
    assert opened(draws=24) is None  # 24 of 360 views: 3 % would come again
    assert "would be asked for again" in caplog.text
    assert opened(draws=24, folder=tmp_path) is not None  # others may ask for them
    assert views_of(world.info) * 20 * 3 * 4 < 10**6 / 2
    large = SimpleNamespace(count=10**6, images=world.store.images)
    assert open_answers(world.teacher, world.card, large, 10**9, 24, world.runtime, CacheOptions(limit_mb=100)) is None
    assert "they take 216 MB, --cache-mb allows 100" in caplog.text
    boxes = world.card.model_copy(update={"dataset": world.info.model_copy(update={"crop": "resized", "crop_padding": 0})})
    assert open_answers(world.teacher, boxes, world.store, 10**6, 24, world.runtime, CacheOptions()) is None
    assert "no random box is seen a second time" in caplog.text


def filled_cache(world, folder, steps=3, seed=0):
    cache = world.open()
    cache.load(AnswerFile(folder, identity(world.card, world.store, 24, world.runtime)))
    for kept, plain in walk(world, cache, steps, seed):
        assert torch.equal(kept, plain)
    return cache


def test_runs_leave_their_answers_to_each_other(world, tmp_path):
    first, second = filled_cache(world, tmp_path / "a"), filled_cache(world, tmp_path / "a", 4, seed=1)
    first.publish()
    second.publish()  # takes over what the first has added meanwhile
    third = filled_cache(world, tmp_path / "a", 0)
    both = first.filled | second.filled
    assert torch.equal(third.filled, both)
    assert both.sum() > max(first.filled.sum() - 1, 0)
    tried = third.queries
    for seed, steps in ((0, 3), (1, 4)):
        for kept, plain in walk(world, third, steps, seed):
            assert torch.equal(kept, plain)
    assert third.queries == tried  # the teacher was not asked once
    before = (tmp_path / "a" / "answers.h5").stat().st_mtime_ns
    third.publish()
    assert (tmp_path / "a" / "answers.h5").stat().st_mtime_ns == before  # nothing new, nothing written
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["answers.h5"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign", "rubbish"])
def test_a_file_that_does_not_fit_is_said_and_made_anew(world, tmp_path, caplog, damage):
    filled_cache(world, tmp_path / "a").publish()
    path = tmp_path / "a" / "answers.h5"
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "rubbish":
        path.write_bytes(b"rubbish")
    elif damage == "flipped":
        with h5py.File(path) as file:
            place = file["answers"].id.get_chunk_info(0).byte_offset
        content[place + 5] ^= 4
        path.write_bytes(content)
    else:
        with h5py.File(path, "r+") as file:
            file.attrs["identity"] = "{}"
    caplog.clear()
    cache = filled_cache(world, tmp_path / "a", 2, seed=7)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.startswith(f"{path}: not this teacher's answers to these images")
    cache.publish()
    caplog.clear()
    assert torch.equal(filled_cache(world, tmp_path / "a", 0).filled, cache.filled)
    assert not caplog.records


def test_what_decides_an_answer_is_its_identity(world):
    own = identity(world.card, world.store, 24, world.runtime)
    darker = ImageStore(20, world.info.shape, world.runtime)
    darker.append(world.store.images // 2, world.store.labels)
    wider = world.card.model_copy(update={"dataset": world.info.model_copy(update={"crop_padding": 2})})
    others = [
        identity(world.card, darker, 24, world.runtime),
        identity(world.card, world.store, 25, world.runtime),
        identity(wider, world.store, 24, world.runtime),
        identity(world.card.model_copy(update={"sha256": "0" * 64}), world.store, 24, world.runtime),
        identity(world.card, world.store, 24, Runtime.create("fast", "cpu")),
    ]
    assert own == identity(world.card, world.store, 24, Runtime.create("reference", "cpu"))
    assert all(own != other for other in others)


def test_a_folder_that_cannot_be_written_costs_the_answers_alone(world, tmp_path, caplog):
    (tmp_path / "a").write_text("in the way")
    filled_cache(world, tmp_path / "a" / "b").publish()
    assert "the teacher's answers are not kept for other runs" in caplog.text


@pytest.fixture
def run(tiny_teacher, tiny_data, tiny_bank, reference):
    """Distil by a method into a folder; the folder."""

    def into(folder, cache, method="kd-vanilla", **changes):
        settings = METHODS[method].settings(**(SMALL | changes))
        bank = METHODS[method].banks or settings.transfer_set.startswith("bank")
        given = ([tiny_bank], None) if bank else ([], tiny_data.data)
        output = folder / "out" / "student.safetensors"
        arguments = (tiny_data.test, settings, 0, output, folder / "state", reference, method, given[1])
        distill(tiny_teacher, given[0], "wrn101", *arguments, cache=cache)
        return folder / "out"

    return into


def same_bytes(one, other):
    names = {path.name for path in one.iterdir() if path.is_file()} - {"cost.json", "timing.csv"}
    assert {"student.safetensors", "history.csv", "student.json"} <= names
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_a_run_ends_with_the_bytes_of_one_without(run, tmp_path):
    plain = run(tmp_path / "plain", OFF)
    costs = {"plain": read_json(plain / "cost.json")}
    for name in ("cold", "warm"):
        folder = run(tmp_path / name, CacheOptions(tmp_path / "kept"))
        same_bytes(plain, folder)
        costs[name] = read_json(folder / "cost.json")
    asked = 3 * 16 * 24
    assert (costs["plain"]["teacher_queries"], costs["plain"]["cached_answers"]) == (asked, 0)
    cold = costs["cold"]
    assert cold["teacher_queries"] + cold["cached_answers"] == asked + 2 * 24  # two batches to try it
    assert 0.1 * asked < cold["cached_answers"] < 0.3 * asked  # 1,152 draws from 2,160 views: 0.226 is expected
    assert (costs["warm"]["teacher_queries"], costs["warm"]["cached_answers"]) == (2 * 24, asked)


def test_stopped_and_resumed_it_ends_with_the_same_bytes(run, monkeypatch, tmp_path):
    plain = run(tmp_path / "plain", OFF, "cmi-nonadversarial")
    own, calls = Run.distill, 0

    def interrupted(self, turn):
        nonlocal calls
        calls += 1
        if calls in (9, 29):
            signal.raise_signal(signal.SIGTERM)
        return own(self, turn)

    monkeypatch.setattr(Run, "distill", interrupted)
    kept = CacheOptions(tmp_path / "kept")
    for options in (kept, CacheOptions()):
        with pytest.raises(Stopped):
            run(tmp_path / "parts", options, "cmi-nonadversarial")
    same_bytes(plain, run(tmp_path / "parts", kept, "cmi-nonadversarial"))
    assert len(list((tmp_path / "kept").glob("bars_wrn101_*/answers.h5"))) == 1


def test_an_objective_that_looks_at_features_keeps_none(run, monkeypatch, caplog, tmp_path):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(module, "AnswerCache", None)
    run(tmp_path, CacheOptions(tmp_path / "kept"), "kd-at", epochs=1, milestones=[])
    assert "the teacher's answers are not kept: AT looks at its features too" in caplog.text
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    ("words", "options"),
    [([], CacheOptions()), (["--cache", "kept", "--cache-mb", "7"], CacheOptions(Path("kept"), 7))],
)
def test_the_command_says_where_and_how_many(monkeypatch, words, options):
    given = []
    monkeypatch.setattr("dfkd.distillation.distill.distill", lambda *arguments: given.append(arguments[-2]))
    needed = ["--teacher", "t", "--student", "wrn101", "--test", "x.h5", "-o", "s", "--method", "kd", "--device", "cpu"]
    done = CliRunner().invoke(app, ["distill", *needed, *words])
    assert done.exit_code == 0, done.output
    assert given == [options]
    assert options.limit_mb == DEFAULT_MB or words

"""Several processes do what one does: gloo on the CPU, with batches that they cannot divide evenly."""

import contextlib
import csv
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from shared_batch import IMAGES, statistics_term, trained

from dfkd import gpus, launch
from dfkd.bank.reader import BankReader
from dfkd.distillation.run import build_method
from dfkd.errors import UserError
from dfkd.files import read_json
from dfkd.methods import METHODS
from dfkd.models import build_model
from dfkd.models.weights import load_model
from dfkd.parallel import ALONE, Ranks
from dfkd.plugins import load
from dfkd.runtime import Runtime

WORLD = 3
# What several processes cannot share yet; docs/clusters.md tells it.
ALONE_ONLY = {"cmi", "cmi-adversarial", "kd-crd", "kd-crd-kd", "kd-semckd"}
# Methods with a synthesis of their own, or that compare the images of a batch: each is run by one process and by two.
COMPARED = [
    *("noise", "dda", "csd", "dafl", "zskt", "dfad", "dfq", "fast", "fastmeta", "nayer", "deepinv", "adi", "cudfkd", "adadfkd"),
    *("kd-sp", "kd-cc", "kd-rkd", "kd-pkt"),
]


def run(name, *words):
    """Run a program of this folder."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run([sys.executable, Path(__file__).with_name(name), *words], check=True, env=environment)


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What each of three processes found."""
    folder = tmp_path_factory.mktemp("together")
    run("shared_batch.py", folder, str(WORLD))
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(WORLD)]


def far(one, other):
    """The largest relative difference of two sets of tensors, in norm; absolute where there is next to nothing."""
    assert one.keys() == other.keys()
    pairs = [(one[name].double(), other[name].double()) for name in one]
    return max(((a - b).norm() / b.norm().clamp_min(1e-3)).item() for a, b in pairs)


def test_training_in_float64_is_that_of_one_process(together):
    alone = trained(ALONE)
    for found in together:
        assert far(found["trained"], alone) < 1e-12
        for name, value in together[0]["trained"].items():
            assert torch.equal(found["trained"][name], value)  # the processes are bitwise equal


def test_statistics_of_a_synthesis_are_those_of_the_whole_batch(together):
    alone = statistics_term(ALONE)
    for found in together:
        assert far(found["term"], alone) < 1e-6  # in float32


def test_what_is_exchanged(together):
    assert [found["rank"] for found in together] == [(rank, WORLD, WORLD) for rank in range(WORLD)]
    for found in together:
        assert torch.equal(found["bytes"], torch.arange(2 * IMAGES, dtype=torch.uint8).view(IMAGES, 2) + 200)
        assert found["agreed"] == 10 * (WORLD - 1)
        assert found["small"] == "a batch of 2 images is too small for 3 processes; run fewer (--ranks 2)."


def test_items_are_dealt_and_come_in_order_to_the_first_process(together):
    first, *others = together
    assert first["dealt"] == ([(item, item**2) for item in range(8)], "")  # the last round has two items for three processes
    assert all(found["dealt"] == ([], "") for found in others)
    came, told = first["lost"]
    assert came == [(item, item**2) for item in range(4)]
    assert "work: loss is not finite" in told
    assert all(found["lost"] == ([], told) for found in others)
    came, told = first["stopped"]  # the second process alone was asked to
    assert came == [(item, item**2) for item in range(3)]
    assert "stopped by signal 15" in told
    assert all(found["stopped"] == ([], told) for found in others)


def test_one_process_exchanges_nothing():
    values = torch.rand(3)
    assert ALONE.mine(values) is values
    assert ALONE.whole(values, 3) is values
    assert ALONE.mean(values, 1.0) is values
    assert (ALONE.agree(7), ALONE.share(5), ALONE.part(5)) == (7, 1.0, slice(0, 5))
    layer = torch.nn.BatchNorm2d(2)
    ALONE.share_statistics(layer)
    assert type(layer) is torch.nn.BatchNorm2d


# -- methods ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def epochs(tmp_path_factory):
    """What two epochs of each method come to: in one process, and in each of two."""
    found = []
    for processes in (1, 2):
        folder = tmp_path_factory.mktemp(f"by{processes}")
        run("shared_methods.py", folder, str(processes), *COMPARED)
        found.append([torch.load(folder / f"rank{rank}.pt") for rank in range(processes)])
    return found[0][0], found[1]


@pytest.mark.parametrize("method", COMPARED)
def test_a_method_in_float64_is_that_of_one_process(method, epochs):
    alone, together = epochs
    for found in together:
        assert far(found[method], alone[method]) < 1e-10  # measured 5e-12
        for name, value in found[method].items():
            if name.startswith(("images", "labels")):
                assert torch.equal(value, alone[method][name])


def test_every_method_that_can_be_shared_says_so():
    halves = {name: (load(method.synthesizer), load(method.objective)) for name, method in METHODS.items()}
    assert {name for name, both in halves.items() if not all(half.shareable for half in both)} == ALONE_ONLY


@pytest.mark.parametrize("method", sorted(ALONE_ONLY))
def test_methods_that_nobody_has_shared_out_are_refused(method, tiny_teacher, reference):
    teacher, card = load_model(tiny_teacher, reference)
    shared = Runtime(reference.device, "reference", torch.float32, False, Ranks(0, 2))
    settings = METHODS[method].settings()
    with pytest.raises(UserError, match=f"method {method}: .* is not made to share a batch .*--ranks 1"):
        build_method(method, teacher, build_model("wrn101", 3, 1, 8), card, settings, shared)


def test_the_contrastive_term_is_refused(tiny_teacher, reference):
    teacher, card = load_model(tiny_teacher, reference)
    shared = Runtime(reference.device, "reference", torch.float32, False, Ranks(0, 2))
    settings = METHODS["dda"].settings(precision="reference", contrastive=0.5, latent_size=16, width=4)
    with pytest.raises(UserError, match="contrastive term compares images; set contrastive to 0"):
        build_method("dda", teacher, build_model("wrn101", 3, 1, 8), card, settings, shared)


# -- stages -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def stage(program, tiny_data, tiny_teacher, tiny_bank, tmp_path):
    """Start a stage with some of its settings, in a folder of `tmp_path`, as so many processes."""
    settings = {
        "teacher": ["epochs=12", "batch_size=31", "lr=0.1", "milestones=[9]"],
        "init-bank": ["batches=7", "batch_size=24", "steps=6", "latent_size=16", "width=8"],
        "augment": [
            *("backend=bank-diffusion", "share=0.375", "variations=20"),
            *(f"bank_diffusion.{own}" for own in ("channels=[8,16]", "train_steps=12", "batch_size=15", "sampling_steps=3")),
        ],
        "distill": [
            *("epochs=2", "kd_steps=4", "batch_size=25", "synthesis_batch_size=23", "g_steps=6", "latent_size=16", "width=8"),
            "lr_g=0.01",
        ],
    }
    inputs = {
        "teacher": ["teacher", "train", "--data", tiny_data.data, "--model", "wrn101"],
        "init-bank": ["init-bank", "--teacher", tiny_teacher],
        "augment": ["augment", "--teacher", tiny_teacher, "--bank", tiny_bank],
        "distill": ["distill", "--teacher", tiny_teacher, "--bank", tiny_bank, "--student", "wrn101", "--test", tiny_data.test],
    }
    files = {
        "teacher": "weights.safetensors",
        "init-bank": "init.lmdb",
        "augment": "kept.lmdb",
        "distill": "student.safetensors",
    }
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}

    def start(name, folder, ranks, *more, by=()):
        out = tmp_path / folder
        words = [*inputs[name], "--checkpoints", out / "checkpoints", "-o", out / "out" / files[name]]
        words += [] if by else ["--ranks", str(ranks)]
        if name == "augment":
            words += ["--rejected", out / "out" / "rejected.lmdb", "--plot", out / "out" / "filter.png"]
        changes = [word for setting in ("precision=reference", *settings[name]) for word in ("--set", setting)]
        command = [*by, program, *words, *changes, *more]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment), out

    yield start
    left = [path for path in temporary.iterdir() if not path.name.startswith("torchelastic_")]  # torchrun's own
    assert left == []


def finish(started):
    """The folder of artefacts of a stage that ends well, and its log."""
    process, out = started
    log = process.communicate()[1]
    assert process.returncode == 0, log
    assert not (out / "checkpoints").exists()
    return out / "out", log


def rows(path):
    return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(path.open())]


def close(one, other, tolerance):
    """Whether two histories agree."""
    assert len(one) == len(other) > 0
    assert all(mine == pytest.approx(theirs, rel=tolerance, abs=1e-5) for mine, theirs in zip(one, other, strict=True))


def test_a_teacher_killed_and_stopped_on_other_numbers_of_processes(stage):
    whole, _ = finish(stage("teacher", "whole", 1))
    process, out = stage("teacher", "parts", 2)
    assert any("epoch 2 " in line for line in process.stderr)
    first = int((out / "checkpoints" / "lock").read_text().split()[1])  # who writes
    launcher = int(Path(f"/proc/{first}/stat").read_text().rpartition(")")[2].split()[1])
    children = [int(child) for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()]
    assert len(children) == 2
    (second,) = {*children} - {first}
    os.kill(second, signal.SIGKILL)
    log = process.communicate(timeout=300)[1]
    assert process.returncode == 128 + signal.SIGKILL
    told = "dfkd: process 2 of 2 was ended by signal 9, for want of memory perhaps; run the same command again to continue.\n"
    assert log.count("dfkd:") == 1
    assert log.endswith(told)

    process, _ = stage("teacher", "parts", 3)
    assert "resuming" in next(process.stderr)
    assert any("epoch 5 " in line for line in process.stderr)
    process.terminate()
    log = process.communicate(timeout=300)[1]
    assert process.returncode == 143
    assert log.count("dfkd: stopped by signal 15; run the same command again to continue\n") == log.count("dfkd:") == 1
    assert not (out / "out" / "weights.safetensors").exists()

    parts, log = finish(stage("teacher", "parts", 1))
    assert "resuming" in log
    # measured 5e-7 after 32 steps; 1e-12 in float64, above
    assert far(load_file(parts / "weights.safetensors"), load_file(whole / "weights.safetensors")) < 1e-4
    close(rows(parts / "history.csv"), rows(whole / "history.csv"), 1e-3)
    assert read_json(parts / "cost.json")["optimiser_steps"] == read_json(whole / "cost.json")["optimiser_steps"]
    assert {path.name for path in parts.iterdir()} == {path.name for path in whole.iterdir()}


def test_other_launchers_and_several_nodes_end_with_the_same_bytes(stage):
    own, _ = finish(stage("teacher", "own", 2))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = f"torch.distributed.run --nnodes 2 --nproc-per-node 1 --master-addr 127.0.0.1 --master-port {port} --no-python"
    accelerate = "accelerate.commands.launch --multi_gpu --num_processes 2 --main_process_port 0 --no_python"
    first, second = (
        stage("teacher", "nodes", 2, by=[sys.executable, "-m", *torchrun.split(), "--node-rank", str(node)]) for node in (0, 1)
    )
    nodes, _ = finish(first)
    assert second[0].communicate()[1].count("dfkd") == second[0].returncode == 0
    launched, _ = finish(stage("teacher", "accelerate", 2, by=[sys.executable, "-m", *accelerate.split()]))
    for found in (nodes, launched):
        assert (found / "weights.safetensors").read_bytes() == (own / "weights.safetensors").read_bytes()
        assert read_json(found / "cost.json")["hardware"]["ranks"] == 2


def test_a_student_and_its_own_images(stage):
    (one, _), (two, log) = (finish(stage("distill", str(ranks), ranks)) for ranks in (1, 2))
    assert far(load_file(two / "student.safetensors"), load_file(one / "student.safetensors")) < 1e-3  # measured 3e-5
    close(rows(two / "history.csv"), rows(one / "history.csv"), 1e-3)
    assert log.count(" epoch 1 ") == 1  # one process alone says so
    banks = [BankReader(folder / "bank.lmdb").load() for folder in (one, two)]
    assert torch.equal(banks[0].labels, banks[1].labels)
    apart = (banks[0].images.int() - banks[1].images.int()).abs()
    assert apart.max() <= 2  # 8 bits of numbers that differ by rounding
    costs = [read_json(folder / "cost.json") for folder in (one, two)]
    for counted in ("images", "teacher_queries", "optimiser_steps"):
        assert costs[0][counted] == costs[1][counted] > 0
    assert [cost["hardware"].get("ranks") for cost in costs] == [None, 2]


def test_the_init_bank_has_the_same_bytes_on_any_number_of_processes(stage):
    whole, _ = finish(stage("init-bank", "one", 1))
    for ranks in (2, 3):  # seven batches: the last round is uneven
        shared, _ = finish(stage("init-bank", f"on{ranks}", ranks))
        assert (shared / "init.lmdb").read_bytes() == (whole / "init.lmdb").read_bytes()
        assert (shared / "init.history.csv").read_bytes() == (whole / "init.history.csv").read_bytes()
        seconds = [row["seconds"] for row in rows(shared / "init.timing.csv")]
        assert len(seconds) == 7
        assert all(taken > 0 for taken in seconds)

    process, _ = stage("init-bank", "changed", 2)
    assert any("batches 2/7" in line for line in process.stderr)
    process.terminate()
    process.communicate(timeout=300)
    assert process.returncode == 143
    changed, log = finish(stage("init-bank", "changed", 3))
    assert "resuming" in log
    assert (changed / "init.lmdb").read_bytes() == (whole / "init.lmdb").read_bytes()


def test_variations_are_made_once_each(stage):
    whole, _ = finish(stage("augment", "one", 1))
    shared, _ = finish(stage("augment", "two", 2))
    close(rows(shared / "kept.history.csv"), rows(whole / "kept.history.csv"), 1e-4)
    made = []
    for name in ("kept.lmdb", "rejected.lmdb"):
        bank = BankReader(shared / name)
        arrays = bank.load()
        made += list(zip(arrays.parents.tolist(), arrays.scores["variation"].int().tolist(), strict=True))
    varied = [pair for pair in made if pair[1] >= 0]
    assert len(varied) == len(set(varied)) == 36 * 20

    # a UNet that one process has trained: what two make of it then, in three blocks, has the bytes that one makes
    process, _ = stage("augment", "changed", 1)
    assert any("bank diffusion 12/12" in line for line in process.stderr)
    process.terminate()
    process.communicate(timeout=300)
    assert process.returncode == 143
    changed, _ = finish(stage("augment", "changed", 2))
    for name in ("kept.lmdb", "rejected.lmdb", "kept.history.csv"):
        assert (changed / name).read_bytes() == (whole / name).read_bytes()


def test_a_mistake_is_told_once(stage):
    process, out = stage("distill", "mistake", 2, "--method", "kd-semckd")
    log = process.communicate()[1]
    assert process.returncode == 2
    assert log.count("dfkd:") == 1
    assert not out.exists()


def test_divergence_is_met_by_all_and_rolled_back(stage):
    grows = (
        "lr=8",
        "weight_decay=1",
        "momentum=0",
        "nesterov=false",
        "milestones=[100]",
        "epochs=4",
    )
    changes = [word for setting in grows for word in ("--set", setting)]
    out, _ = finish(stage("teacher", "wild", 2, *changes, "--on-divergence", "rollback"))
    assert read_json(out / "weights.json")["notes"]["rollbacks"].endswith(("× 0.5", "× 0.25", "× 0.125"))
    assert len(rows(out / "history.csv")) == 4


# -- how many, and where ----------------------------------------------------------------------------------------------


@pytest.fixture
def alone(monkeypatch):
    """A process that neither torchrun nor a job has started, on a machine with three GPUs: how many it becomes."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", gpus.COUNT, gpus.FOLDER, gpus.VISIBLE):
        monkeypatch.delenv(name, raising=False)
    launched = []
    monkeypatch.setenv(launch.THREADS, "8")
    monkeypatch.setattr(gpus, "installed_gpus", lambda: ["GPU-a", "GPU-b", "GPU-c"])
    monkeypatch.setattr(launch, "_run", lambda count: launched.append((count, os.environ[launch.THREADS])))
    return launched


@pytest.mark.parametrize(
    ("asked", "device", "job", "count"),
    [
        (None, "auto", None, 1),
        (None, "auto", "1", 1),
        (None, "auto", "0", 1),
        (None, "auto", "2", 2),
        (None, "cuda", "5", 3),  # as many as there are
        (None, "cuda:1", "2", 1),
        (None, "cpu", "2", 1),
        (4, "cpu", None, 4),
        (2, "auto", None, 2),
        (1, "auto", "2", 1),
    ],
)
def test_how_many_processes_a_command_becomes(alone, monkeypatch, asked, device, job, count):
    if job is not None:
        monkeypatch.setenv(gpus.COUNT, job)
    with contextlib.suppress(KeyError):
        launch.launch(asked, device)
    assert alone == ([(count, str(8 // count))] if count > 1 else [])


def test_numbers_that_do_not_fit_are_refused(alone, monkeypatch):
    with pytest.raises(UserError, match="--device cuda:1: is one GPU"):
        launch.launch(2, "cuda:1")
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    launch.launch(2, "auto")  # which torchrun has made of it
    assert alone == []
    with pytest.raises(UserError, match="--ranks 3: 2 processes have been started already"):
        launch.launch(3, "auto")
    monkeypatch.setenv(gpus.VISIBLE, "GPU-c,0")
    launch.see_own_gpu()
    assert os.environ[gpus.VISIBLE] == "GPU-a"
    monkeypatch.setenv(gpus.VISIBLE, "2")
    with pytest.raises(UserError, match="process 2 of this machine has no GPU: 1 are visible"):
        launch.see_own_gpu()

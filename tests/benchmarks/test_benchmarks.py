import importlib.metadata
import json
import logging
import math
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from benchmarks import __main__ as command
from benchmarks import bank, memory, planning, reference
from benchmarks.cache import HITS, MISSES, OFF, cache_rows
from benchmarks.flops import aligner_flops, forward_flops, generator_flops, student_flops, synthesis_flops
from benchmarks.methods import INIT_BANK, Budget, measure_method, published
from benchmarks.objectives import objective_names
from benchmarks.peak import Peaks
from benchmarks.settings import INFO, QUICK, Options, network
from benchmarks.table import Row, Section, markdown
from benchmarks.timing import Clock, take_turns
from benchmarks.variants import COMPILED, EAGER, ORIGINAL, REFERENCE, step_rows
from dfkd.datasets.views import rotations
from dfkd.distillation.csd import CSDObjective
from dfkd.distillation.objective import Batch
from dfkd.methods import ALIASES, METHODS, DDASettings
from dfkd.runtime import Runtime
from dfkd.synthesis.inversion import GeneratorInversion

CPU = torch.device("cpu")
TINY = Options(
    teacher="wrn161", student="wrn161", batch=4, student_batch=4, method_batch=4, steps=1, rounds=2, compile=False,
    device="cpu", store=8, objective_batch=4, transfer_images=40,
    small_bank=300, large_bank=600, loads=2, files=10, plan_jobs=10, turns=2, peak_size=64,
    peak_seconds=1e-4, peak_windows=2,
)  # fmt: skip


def test_work_is_that_of_the_published_networks():
    teacher, student = network("wrn402", 0), network("wrn161", 1)
    assert forward_flops(teacher) / 1e9 == pytest.approx(0.655, abs=6e-4)
    assert forward_flops(student) / 1e9 == pytest.approx(0.053, abs=6e-4)
    assert generator_flops() / 1e9 == pytest.approx(0.234, abs=6e-4)
    assert aligner_flops(teacher, student) == 2 * 64 * (640_000 - 1024)  # 8 × 8 positions; 1024 are BN's
    assert synthesis_flops(teacher) / 1e9 == pytest.approx(2 * 0.655 + 3 * 0.234, abs=3e-3)
    expected = 0.655 + 7 * 0.0533 + 3 * 0.0819
    assert student_flops(teacher, student) / 1e9 == pytest.approx(expected, abs=3e-3)


def test_the_network_has_statistics_of_its_own():
    layers = [module for module in network("wrn161", 0).modules() if isinstance(module, nn.BatchNorm2d)]
    assert all((layer.running_mean != 0).any() and (layer.running_var - 1).abs().max() > 0.01 for layer in layers)


def test_reference_synthesis_has_the_losses_of_the_package():
    teacher = network("wrn161", 0)
    runtime = Runtime.create("reference", "cpu")
    inversion = GeneratorInversion(
        teacher, INFO, runtime, batch_size=8, steps=1, lr=1e-3, latent_size=256, generator="small", width=64, bn=1.0, oh=1.0
    )
    original = reference.OriginalNetwork(teacher, CPU)
    generator = torch.Generator().manual_seed(0)
    ours = torch.randn(8, *INFO.shape, generator=generator).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    labels = torch.arange(8)
    with inversion.statistics.recording():
        expected = inversion._losses(ours, labels)
    found = original.losses(theirs, labels)
    for name in ("bn", "oh"):
        assert found[name].item() == pytest.approx(expected[name].item(), rel=1e-4)
        assert expected[name].item() > 0.1
    (expected["bn"] + expected["oh"]).backward()
    (found["bn"] + found["oh"]).backward()
    assert torch.allclose(theirs.grad, ours.grad, rtol=1e-3, atol=1e-5 * ours.grad.abs().max().item())


def test_reference_keeps_the_habits():
    teacher = network("wrn161", 0).requires_grad_(False)
    original = reference.OriginalNetwork(teacher, CPU)
    clock = Clock(CPU)
    images = reference.invert(original, INFO, 4, 2, CPU, clock)
    assert images.shape == (4, *INFO.shape)
    assert len(clock.intervals()) == 2
    assert all(parameter.grad is not None for parameter in original.model.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_reference_student_has_the_losses_of_the_package():
    teacher, student = network("wrn161", 0).requires_grad_(False), network("wrn161", 1)
    settings = DDASettings(batch_size=8)
    objective = CSDObjective(teacher, student, INFO, settings, Runtime.create("reference", "cpu"))
    original = reference.OriginalDistillation(teacher, student, INFO, settings, CPU)
    original.aligner.load_state_dict(objective.aligner.state_dict())
    original.head.load_state_dict(objective.head.state_dict())
    images = torch.randn(8, *INFO.shape, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(8)
    student.train()
    original.student.train()
    expected, found = objective.losses(Batch(images, labels)), original.losses(images, labels)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value.item(), rel=1e-4)
        assert value.item() > 1e-3
    objective.step(Batch(images, labels))
    original.step(images, labels)
    for ours, theirs in zip(objective.head.parameters(), original.head.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-5)
    for ours, theirs in zip(student.parameters(), original.student.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4)
    assert rotations(images).shape[0] == 32


def test_png_folder_gives_the_images_back(tmp_path):
    info = INFO.model_copy(update={"crop_padding": 0, "flip": False, "mean": [0.0] * 3, "std": [1.0] * 3})
    images = torch.randint(0, 256, (6, *INFO.shape), dtype=torch.uint8)
    labels = torch.tensor([0, 0, 1, 2, 2, 2])
    reference.write_pngs(tmp_path, images, labels)
    folder = reference.PngFolder(tmp_path, info)
    folder.transform.transforms = [step for step in folder.transform.transforms if "Flip" not in type(step).__name__]
    assert [label for _, label in folder] == labels.tolist()
    assert torch.equal(torch.stack([image for image, _ in folder]), images.float() / 255)


def test_variants_take_turns():
    order = []

    def variant(name):
        def run(steps, clock):
            clock.mark()
            for _ in range(steps):
                order.append(name)
                clock.mark()

        return run

    found = take_turns("test", {"a": variant("a"), "b": variant("b")}, rounds=2, steps=2, device=CPU)
    assert "".join(order) == "aabbaabb"
    assert {name: len(seconds) for name, seconds in found.items()} == {"a": 4, "b": 4}


def test_a_clock_of_its_own_does_not_count_what_others_take():
    passed, own = Clock(CPU), Clock(CPU, own=True)
    for clock in (passed, own):
        clock.mark()
        time.sleep(0.05)
        clock.mark()
    assert passed.intervals()[0] >= 0.05
    assert own.intervals()[0] < 0.04


def test_rates_ratios_and_fractions_follow_from_the_seconds():
    samples = {ORIGINAL: [4.0, 5.0, 90.0], REFERENCE: [3.0] * 3, EAGER: [2.0] * 3, COMPILED: [1.0, 1.0, 7.0]}
    first = {ORIGINAL: 6.0, REFERENCE: 3.0, EAGER: 2.5, COMPILED: 62.5}
    rows = {row.name: row for row in step_rows(samples, first, 100, 10**9, Peaks(fp32=100e9, bf16=400e9), "≥ 6", "≥ 45")}
    assert rows[ORIGINAL].value == 20
    assert rows[f"{COMPILED} / {ORIGINAL}"].value == 5
    assert rows[f"{EAGER} / {ORIGINAL}"].value == 2.5
    assert rows[f"{EAGER} / {REFERENCE}"].value == 1.5
    assert rows["compiling, once a process"].value == 60
    assert rows["work of a step"].value == 100
    assert rows[f"{COMPILED}: of the bf16 peak"].value == 25
    assert rows[f"{EAGER}: of the fp32 peak"].value == 50


def test_a_first_run_lies_between_all_known_and_none_known():
    rows = {row.name: row.value for row in cache_rows({OFF: [3.0, 3.0, 9.0], HITS: [1.0], MISSES: [3.0]}, 30)}
    assert (rows[OFF], rows[f"{HITS} / {OFF}"], rows[f"{MISSES} / {OFF}"]) == (10, 3, 1)
    share = 1 - (1 - math.exp(-240 * 50_048 / 8_100_000)) / (240 * 50_048 / 8_100_000)  # of the answers that are known
    assert rows["a first run of 240 epochs / not kept"] == pytest.approx(3 / (share + 3 * (1 - share)))


def test_memory_is_measured_in_a_process_of_its_own(tmp_path):
    bank.make_bank(tmp_path / "bank.lmdb", 3000)
    found = memory.in_child("load", tmp_path / "bank.lmdb", 3000)
    size = 3000 * 3 * 32 * 32
    assert found["images"] == size
    assert size <= found["peak"] - found["before"] < 20 * size


def test_every_row_is_printed_and_written(tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.setattr(memory, "in_child", lambda action, path, count: memory.growth(action, str(path), count))
    monkeypatch.setattr(command, "QUICK", {name: getattr(TINY, name) for name in (*QUICK, "peak_size", "peak_seconds")})
    monkeypatch.setattr(planning, "campaign_methods", lambda: ["dafl"])
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--quick"])
    output = tmp_path / "table.md"
    caplog.set_level(logging.INFO)
    with ThreadPoolExecutor(1) as pool:  # Playwright keeps a loop in the thread of the tests that use it
        pool.submit(
            command.run, quick=True, output=output, only=",".join(command.PARTS), no_compile=False, device="cpu",
            teacher="wrn161", student="wrn161", batch=4, student_batch=4, steps=1, rounds=2, workers=0,
        ).result()  # fmt: skip
    page, content = output.read_text(), json.loads(output.with_suffix(".json").read_text())
    printed = capsys.readouterr().out
    names = [row["name"] for section in content["sections"] for row in section["rows"]]
    expected = [
        "matmul peak, fp32", "matmul peak, bf16", "hardware multiplies bf16", ORIGINAL, REFERENCE, EAGER,
        f"{EAGER} / {ORIGINAL}", f"{EAGER}: of the bf16 peak", f"{EAGER}: of the fp32 peak", "work of a step",
        "append, 600 images", "publish, 300 images", "load, 600 images", "seconds to load 600 images", "load 300 images: peak",
        "load 600 images: peak", "read 300 images of a bank of 300: peak", "read 300 images of a bank of 600: peak",
        "stream 600 images: peak", "batches alone, streamed / resident", "student steps, streamed / resident",
        "pack", "read past the page cache, packed / folder", "decoded, packed / folder",
        "decoded, packed with --size 256 / folder",
        "as in the bank: first paint", "sorted: first page of images", "sorted: to any page: maximum",
        "server: resident memory", "plan 28 jobs from nothing", "plan 28 jobs once complete",
        "plan 28 jobs once complete: peak", *(row.name for row in cache_rows({OFF: [3.0], HITS: [1.0], MISSES: [3.0]}, 4)),
    ]  # fmt: skip
    expected += [*objective_names(), "kdrefine, actdb", "kd-ab: first stage", "kd-fsp: first stage"]
    expected += [INIT_BANK, *(name for name, own in METHODS.items() if name not in ALIASES and not own.transfer)]
    assert set(expected) <= set(names)
    assert names.count(ORIGINAL) == 2  # synthesis and student
    for name in names:
        assert f"| {name} |" in page
        assert name.split(":")[0][:20] in printed
    for section in content["sections"]:
        for row in section["rows"]:
            if "more memory" in row["name"]:  # a difference of two measurements
                continue
            if row["unit"] in ("s", "MB", "GiB", "image-steps/s", "images/s", "GFLOP/s", "×", "GFLOP"):
                assert row["value"] > 0, row
    assert len(content["sections"][1]["samples"][EAGER]) == 2
    assert content["about"]["command"] == "python -m benchmarks --quick"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", content["about"]["date"])
    assert content["about"]["versions"]["torch"] == importlib.metadata.version("torch")
    assert "turn 2 of 2" in caplog.text


def test_a_recipe_is_the_sum_of_its_parts():
    budget = Budget(synthesis=18.0, syntheses=100, steps=500, student=0.5, student_steps=7200, before=7200.0)
    assert budget.hours == pytest.approx(0.5 + 1 + 2)
    assert (
        budget.note()
        == "synthesis 18 s × 100 (from 1 and 2 of its 500 steps), student step 0.5 s × 7,200, after 2 h of init bank"
    )
    assert Budget(0.0, 200, 0, 0.1, 10).note() == "no synthesis, student step 0.1 s × 10"


def test_a_recipe_is_the_published_one():
    assert published("dafl", None) == METHODS["dafl"].settings()
    budget = measure_method("dda", TINY, Runtime.create("fast", "cpu"), before=3600.0)
    assert (budget.syntheses, budget.student_steps, budget.steps) == (200, 200 * DDASettings().kd_steps, DDASettings().g_steps)
    assert budget.student > 0


def test_markdown_escapes_and_rounds():
    page = markdown({"machine": {"cores": 2}}, [Section("One", [Row("a|b", 12345.6, "x"), Row("c", 0.12345)])])
    assert "* machine: cores 2" in page
    assert "| a\\|b | 12,346 | x |" in page
    assert "| c | 0.123 |" in page


def test_an_unknown_part_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--only", "sinthesis"])
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # restored afterwards
    monkeypatch.setattr(command, "setup_logging", lambda: None)
    with pytest.raises(SystemExit) as stopped:
        command.main()
    assert stopped.value.code == 2
    assert "--only sinthesis: no such part of the benchmark; the nearest known: synthesis" in capsys.readouterr().err

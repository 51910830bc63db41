from pathlib import Path

import pytest
import torch
from test_benchmarks import TINY

from benchmarks import bank, cost
from benchmarks.flops import forward_flops, generator_flops, student_flops, synthesis_flops
from benchmarks.settings import network
from benchmarks.work import INIT_BANK, UNET, Work, init_bank_work, known, method_work, work_of
from dfkd.methods import DDASettings
from dfkd.models import build_model
from dfkd.runtime import Runtime

DOCS = Path(__file__).resolve().parents[2] / "docs" / "scaling.md"
PLAN = cost.Plan()


@pytest.fixture(scope="module")
def runtime():
    return Runtime.create("fast", "cpu")


def test_counted_work_is_that_of_the_formula(runtime):
    teacher, student = network("wrn161", 0), network("wrn161", 1)
    counted = init_bank_work(TINY, runtime, batch=4)
    assert counted.step == pytest.approx(synthesis_flops(teacher), rel=0.02)
    assert counted.beside == pytest.approx(forward_flops(teacher), rel=0.02)  # the scores
    plain = method_work("kd-vanilla", TINY, runtime, batch=4)
    assert (plain.step, plain.beside) == (0, 0)
    assert plain.student == pytest.approx(forward_flops(teacher) + 3 * forward_flops(student), rel=0.02)
    dda = method_work("dda", TINY, runtime, batch=4)
    assert dda.student == pytest.approx(student_flops(teacher, student), rel=0.02)
    # the adversarial term: the student's forward pass of 4 rotations, and the gradient of its input
    assert dda.step == pytest.approx(synthesis_flops(teacher) + 8 * forward_flops(student), rel=0.02)


def test_the_counts_that_are_kept_are_of_these_networks():
    with torch.device("meta"):
        teacher, student = build_model("resnet34", 10), build_model("resnet18", 10)
    kept = known("resnet34", "resnet18")
    work = 2 * forward_flops(teacher) + 3 * generator_flops()
    assert kept[INIT_BANK].step == pytest.approx(work, rel=0.02)
    assert kept["kd-vanilla"].student == pytest.approx(forward_flops(teacher) + 3 * forward_flops(student), rel=0.02)
    assert work_of("resnet34", "resnet18", PLAN.methods) == kept


def test_work_grows_with_the_pixels():
    with torch.device("meta"):
        small, large = (forward_flops(build_model("resnet34", 1000, 3, side), (3, side, side)) for side in (32, 224))
    assert large / small == pytest.approx(49, rel=0.001)
    assert PLAN.pixels == 49


def test_bytes_of_a_bank_are_those_of_its_file(tmp_path):
    bank.make_bank(tmp_path / "bank.lmdb", 2560)
    assert (tmp_path / "bank.lmdb").stat().st_size == pytest.approx(cost.bank_bytes(2560, 32), rel=0.01)
    assert cost.bank_bytes(1_281_167, 224) == pytest.approx(1_281_167 * 3 * 224**2, rel=0.001)


def test_a_recipe_is_stretched_as_a_whole():
    plan = cost.Plan(images=DDASettings().kd_steps * 200 * 128 // 10, passes=20)
    syntheses, steps = cost.stretched(DDASettings(), plan)
    assert (syntheses, steps) == (400, 200 * DDASettings().kd_steps * 2)


def test_a_campaign_is_the_sum_of_its_stages():
    plan = cost.Plan(methods=("csd", "kd-vanilla"), teacher="wrn161", student="wrn161", images=2560, size=32, seeds=2, shards=4)
    work = {INIT_BANK: Work(10.0, 5.0), UNET: Work(1.0), "csd": Work(3.0, 1.0, 7.0), "kd-vanilla": Work(0.0, 0.0, 2.0)}
    shards, merged, csd, plain, together = cost.campaign(plan, work, classes=10)
    assert shards.flops == 2560 * (500 * 10 + 5)
    assert shards.stored == merged.stored == cost.bank_bytes(2560, 32)
    assert shards.moved == shards.stored + 4 * cost.weights_bytes("wrn161", 10)
    factor = 100 * 2560 / (100 * 2000 * 128)
    assert csd.flops == pytest.approx(2 * factor * (100 * 200 * (200 * 3 + 1) + 100 * 2000 * 128 * 7))
    assert plain.flops == pytest.approx(2 * 100 * 2560 * 2)
    assert csd.moved > plain.moved + 2 * shards.stored
    assert together.flops == shards.flops + csd.flops + plain.flops
    assert together.stored == shards.stored + merged.stored + csd.stored + plain.stored
    hours = together.flops / plan.rate / 3600
    assert together.cells(plan.rate)[3] == cost.number(hours)


def test_variations_are_made_where_a_method_needs_them():
    names = [item.name for item in cost.campaign(cost.Plan(methods=("dda",)), known("resnet34", "resnet18"))]
    assert names == ["init bank: shards", "init bank: merge, page", "variations, page", "dda", "together"]
    assert [item.name for item in cost.campaign(cost.Plan(methods=("fastmeta",)), known("resnet34", "resnet18"))] == [
        "fastmeta", "together",
    ]  # fmt: skip


@pytest.mark.parametrize("side", [64, 224])
def test_the_tables_of_the_docs_are_computed(side):
    plan = cost.Plan(size=side)
    table = cost.table(cost.campaign(plan, known(plan.teacher, plan.student)), plan.rate)
    assert table in DOCS.read_text()


def test_sizes_read_well():
    assert [cost.size(value) for value in (2.5e6, 3.07e9, 193e9, 1.5e12)] == ["2.5 MB", "3.07 GB", "193 GB", "1.5 TB"]

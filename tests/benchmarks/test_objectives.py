import re

import pytest
import torch
from test_benchmarks import TINY

from benchmarks.allocated import peak_bytes
from benchmarks.methods import noise_store
from benchmarks.objectives import FIRST_STAGE, PLAIN, objective_names, objective_rows, settings_of, steps_of
from dfkd.config import Config
from dfkd.methods import METHODS
from dfkd.runtime import Runtime

CPU = torch.device("cpu")


def test_ratios_are_of_medians_and_the_spread_is_of_the_same_unit():
    samples = {PLAIN: [2.0, 2.0, 40.0], "kd-at": [3.0, 5.0, 4.0, 2.0, 6.0]}
    plain, other = objective_rows(samples, {PLAIN: 200_000_000, "kd-at": 300_000_000})
    assert (plain.value, other.value) == (1, 2)
    assert other.unit == f"× {PLAIN}"
    assert other.note == "half of 5 steps within 1.50 to 2.50; 4 s; 1.50 × the memory, 300 MB"


def test_every_objective_with_data_is_measured():
    names = objective_names()
    assert names[0] == PLAIN
    assert sorted(names) == sorted({*Config().comparisons["kd"], "kd-svd", "kd-fsp"})
    assert len(names) == len(set(names))


def test_a_method_is_measured_with_its_blocks_and_with_its_first_stage():
    runtime = Runtime.create("fast", "cpu")
    store = noise_store(TINY.transfer_images, runtime)
    assert list(steps_of("kdrefine", TINY, store, runtime)) == ["kdrefine", "kdrefine, actdb"]
    found = steps_of("kd-ft", TINY, store, runtime)
    assert list(found) == [f"kd-ft: {FIRST_STAGE}", "kd-ft"]
    for name, step in found.items():
        step()
        assert peak_bytes(step, CPU) > 4 * 3072 * 4, name  # a batch and what comes of it


def test_settings_are_the_published_ones_as_far_as_the_images_allow():
    store = noise_store(40, Runtime.create("fast", "cpu"))
    crd = settings_of("kd-crd", "plain", store, 16)
    assert crd.negatives == 36  # a tenth is of the image's own class
    assert crd.model_copy(update={"negatives": 16384, "batch_size": 64}) == METHODS["kd-crd"].settings()
    assert settings_of("kdrefine", "actdb", store, 16).blocks == "actdb"


def test_what_is_allocated_at_a_time_is_counted():
    kept = []

    def step():
        first = torch.empty(3_000_000, dtype=torch.uint8)
        second = torch.empty(2_000_000, dtype=torch.uint8)
        del first
        kept.append(torch.empty(1_000_000, dtype=torch.uint8))
        del second

    assert peak_bytes(step, CPU) == pytest.approx(5_000_000, abs=1000)
    assert peak_bytes(lambda: kept[0][:10].clone(), CPU) < 10_000


def test_a_pair_that_a_method_cannot_take_is_a_row(monkeypatch):
    from dataclasses import replace

    from benchmarks import objectives

    monkeypatch.setattr(objectives, "objective_names", lambda: [PLAIN, "kd-svd"])
    section = objectives.measure(replace(TINY, student="wrn101", teacher="wrn102", rounds=1))
    rows = {row.name: row for row in section.rows}
    assert rows["kd-svd"].value == "no such pair"
    assert re.search(r"channels", rows["kd-svd"].note)
    assert rows[PLAIN].value == 1

import hashlib
import json
from pathlib import Path

import jsonschema
import pytest
import torch
from rich.console import Console

from dfkd.bank.format import BankMeta
from dfkd.bank.writer import BankWriter
from dfkd.datasets.info import DatasetInfo
from dfkd.errors import UserError
from dfkd.evaluation.formats import MetricsFile, read_metrics, read_result, result_schema
from dfkd.evaluation.result import collect, show, summarise
from dfkd.evaluation.show import energy, sum_known
from dfkd.files import write_json

TEACHER = "t" * 64
SCHEMA = Path(__file__).parents[2] / "workflow" / "schemas" / "result.schema.json"
COST = {"seconds": 10.0, "images": 400, "teacher_queries": 1000, "optimiser_steps": 50, "peak_memory": 2**30}


def measured(acc1, epoch=200):
    values = {"epoch": epoch, "acc1": acc1, "acc5": 99.5, "agree1": acc1 + 1, "lp": 0.8, "one_minus_js_distance": 0.9}
    return values | {"nll": 0.3, "ece": 0.02, "per_class": [acc1, None], "confusion": [[9, 1], [0, 0]]}


def write_metrics(path, seed=0, acc1=90.0, best=91.0, **changes):
    content = {
        "dataset": "cifar10",
        "method": "dda",
        "data_free": True,
        "notes": {},
        "seed": seed,
        "classes": ["cat", "dog"],
        "images": 10,
        "teacher": {"name": "wrn402", "params": 2243546, "sha256": TEACHER, "acc1": 94.87, "confusion": [[10, 0], [0, 0]]},
        "student": {"name": "wrn161", "params": 175066, "sha256": "s" * 64},
        "last": measured(acc1),
        "best": None if best is None else measured(best, 120),
    }
    write_json(path, MetricsFile.model_validate(content | changes).model_dump(mode="json"))
    return path


def write_cost(path, **changes):
    write_json(path, COST | changes)
    return path


@pytest.fixture
def job(tmp_path):
    """Arguments of `collect` for three seeds, given out of order."""
    accuracies = {0: 88.0, 1: 90.0, 2: 89.0}
    runs = tmp_path / "results" / "runs" / "dda" / "cifar10_wrn402_wrn161"
    (tmp_path / "weights").write_bytes(b"weights")
    info = DatasetInfo(
        name="cifar10", classes=["cat", "dog"], image_size=4, channels=1, mean=[0.0], std=[1.0], crop_padding=0, flip=False
    )
    meta = BankMeta(
        kind="variations", dataset=info, teacher_sha256=TEACHER, stage="augment", stage_version=1,
        extra={"backend": "bank-diffusion", "accept_rate": 0.75},
    )  # fmt: skip
    with BankWriter(tmp_path / "writing.lmdb", meta) as bank:
        bank.append_images(torch.zeros(3, 1, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.long))
        bank.publish(tmp_path / "variations.lmdb")
    return {
        "dataset": "cifar10",
        "teacher": "wrn402",
        "student": "wrn161",
        "method": "dda",
        "metrics": [write_metrics(runs / f"seed{seed}" / "metrics.json", seed, accuracies[seed]) for seed in (2, 0, 1)],
        "costs": {
            "teacher": [write_cost(tmp_path / "teacher.json", hardware={"device": "cpu", "name": "machine A"})],
            "init-bank": [write_cost(tmp_path / f"{shard}-of-2.json", seconds=60.0 * shard) for shard in (1, 2)],
            "distill": [write_cost(runs / f"seed{seed}" / "cost.json", peak_memory=2**30 * (seed + 1)) for seed in (0, 1, 2)],
        },
        "artefacts": {"teacher": tmp_path / "weights"},
        "variations": tmp_path / "variations.lmdb",
        "config_hash": "c" * 64,
        "output": tmp_path / "results" / "cifar10_wrn402_wrn161.json",
    }


def test_statistics():
    assert summarise([88.0, 90.0, 89.0]).model_dump() == {"mean": 89.0, "std": 1.0, "per_seed": [88.0, 90.0, 89.0]}
    assert summarise([3.0]).model_dump() == {"mean": 3.0, "std": None, "per_seed": [3.0]}


def test_result_file(job):
    collect(**job)
    content = json.loads(job["output"].read_text())
    assert content["teacher"] == {"name": "wrn402", "params": 2243546, "acc1": 94.87}
    assert content["student"] == {"name": "wrn161", "params": 175066}
    assert content["seeds"] == [0, 1, 2]
    assert content["data_free"] is True
    assert content["acc1"] == {"mean": 89.0, "std": 1.0, "per_seed": [88.0, 90.0, 89.0]}
    assert content["agree1"]["mean"] == 90.0
    assert content["best_acc1"] == {"mean": 91.0, "std": 0.0, "per_seed": [91.0] * 3}
    assert content["augmentation"] == {"backend": "bank-diffusion", "accept_rate": 0.75}
    assert content["provenance"]["artefacts"] == {"teacher": hashlib.sha256(b"weights").hexdigest()}
    assert content["provenance"]["config_hash"] == "c" * 64
    assert content["provenance"]["hardware"]["teacher"] == [{"device": "cpu", "name": "machine A"}]
    found = {(row["method"], row["source"]): row["value"] for row in content["published"] if row["metric"] == "acc1"}
    assert found["CMI", "CMI README table"] == 90.01


def test_costs_of_shards_and_seeds(job):
    cost = collect(**job).cost
    assert (cost["init-bank"].jobs, cost["init-bank"].seconds, cost["init-bank"].images) == (2, 180.0, 800)
    assert cost["init-bank"].per_seed is None
    assert (cost["distill"].jobs, cost["distill"].seconds, cost["distill"].peak_memory) == (3, 30.0, 3 * 2**30)
    assert (cost["distill"].per_seed.seconds, cost["distill"].per_seed.peak_memory) == (10.0, 2 * 2**30)
    assert cost["teacher"].model_dump() == COST | {"jobs": 1, "per_seed": None, "energy": None}


def test_energy_is_the_sum_over_the_jobs_and_null_if_one_was_not_metered(job):
    for name, joules in (("distill", (30.0, 60.0, 90.0)), ("init-bank", (5.0, None))):
        for path, value in zip(job["costs"][name], joules, strict=True):
            write_json(path, json.loads(path.read_text()) | {"energy": value})
    cost = collect(**job).cost
    assert (cost["distill"].energy, cost["distill"].per_seed.energy) == (180.0, 60.0)
    assert cost["init-bank"].energy is None
    text = shown(job["output"])
    assert "0.05 Wh" in text
    assert "0.0167 Wh" in text
    write_json(job["costs"]["distill"][0], COST | {"energy": "much"})
    with pytest.raises(UserError, match="not a cost file"):
        collect(**job)


def test_energy_for_people():
    assert [energy(joules) for joules in (None, 0.0, 3600.0, 1234567.0, 3.6e6, 9e8)] == [
        "–", "0 Wh", "1 Wh", "343 Wh", "1 kWh", "250 kWh"
    ]  # fmt: skip
    assert sum_known([]) is None


def test_a_result_of_before_energy_and_the_size_of_the_test_split_is_read(job):
    collect(**job)
    content = json.loads(job["output"].read_text())
    assert content.pop("test_images") == 10
    for stage in content["cost"].values():
        for amounts in filter(None, (stage, stage["per_seed"])):
            amounts.pop("energy")
    write_json(job["output"], content)
    old = read_result(job["output"])
    assert old.test_images is None
    assert old.cost["distill"].energy is None
    assert "energy" not in shown(job["output"])


def test_only_times_differ_between_two_runs(job, tmp_path):
    collect(**job)
    collect(**job | {"output": tmp_path / "again.json"})
    one, other = (json.loads(path.read_text()) for path in (job["output"], tmp_path / "again.json"))
    for content in (one, other):
        content.pop("cost")
        content["provenance"].pop("date")
        content["provenance"].pop("hardware")
    assert one == other


def test_a_seed_without_best_epoch(job):
    write_metrics(job["metrics"][0], 2, 89.0, best=None)
    assert collect(**job).best_acc1 is None
    assert collect(**job | {"variations": None}).augmentation is None


def test_schema_in_the_repository_is_the_generated_one():
    assert json.loads(SCHEMA.read_text()) == result_schema()
    jsonschema.Draft202012Validator.check_schema(result_schema())


def test_schema_refuses_what_is_no_result(job):
    collect(**job)
    good = json.loads(job["output"].read_text())
    jsonschema.validate(good, result_schema())
    for change, words in (
        ({"seeds": []}, "seeds"),
        ({"acc1": {"mean": "high", "std": None, "per_seed": []}}, "acc1"),
        ({"surprise": 1}, "surprise"),
        ({"data_free": "yes"}, "data_free"),
        ({"format_version": "one"}, "format_version"),
    ):
        write_json(job["output"], good | change)
        with pytest.raises(UserError, match=rf"not a result file of this version .*{words}.*make it again"):
            read_result(job["output"])
    good.pop("provenance")
    write_json(job["output"], good)
    with pytest.raises(UserError, match="provenance"):
        read_result(job["output"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dataset": "cifar100"}, "its data set is cifar100, not cifar10"),
        ({"method": "cmi"}, "its method is cmi, not dda"),
        ({"student": {"name": "wrn162", "params": 1, "sha256": "x"}}, "its student is wrn162, not wrn161"),
        ({"seed": 1}, r"seed 1 is already in .*metrics\.json"),
        (
            {"teacher": {"name": "wrn402", "params": 1, "sha256": "u" * 64, "acc1": 1.0, "confusion": []}},
            "its teacher's SHA-256 is not that of",
        ),
    ],
)
def test_metrics_of_other_targets_are_refused(job, change, words):
    write_metrics(job["metrics"][0], **{"seed": 2} | change)
    with pytest.raises(UserError, match=words):
        collect(**job)
    assert not job["output"].exists()


def test_broken_inputs_are_refused(job, tmp_path):
    with pytest.raises(UserError, match=r"unknown method 'dad'; the nearest known: .*dda"):
        collect(**job | {"method": "dad"})
    with pytest.raises(UserError, match="no metrics file given"):
        collect(**job | {"metrics": []})
    write_json(tmp_path / "cost.json", {"seconds": 1})
    with pytest.raises(UserError, match=r"cost\.json: not a cost file"):
        collect(**job | {"costs": {"teacher": [tmp_path / "cost.json"]}})
    with pytest.raises(UserError, match=r"cost\.json: not a metrics file of this version \(dataset: "):
        collect(**job | {"metrics": [tmp_path / "cost.json"]})
    with pytest.raises(UserError, match=r"missing: no such file"):
        collect(**job | {"artefacts": {"teacher": tmp_path / "missing"}})


def shown(path):
    console = Console(width=100, record=True, force_terminal=False, file=open("/dev/null", "w"))  # noqa: SIM115
    show(path, console)
    return console.export_text()


def test_show(job):
    collect(**job)
    grid = job["output"].parent / "banks" / "cifar10_wrn402" / "init.png"
    grid.parent.mkdir(parents=True)
    grid.write_bytes(b"")
    curves = job["metrics"][0].with_name("history.png")
    curves.write_bytes(b"")
    text = shown(job["output"])
    assert "89.00 ± 1.00 %" in text
    assert "88.00  90.00  89.00" in text
    assert "75.0 % of them kept" in text
    cells = [[cell.strip() for cell in line.split("│")] for line in text.splitlines()]
    assert ["", "CMI", "90.01", "AdaDFKD README, CMI README", ""] in cells
    assert "3 min 00 s" in text
    assert text.index("init.png") < text.index("history.png")
    assert max(len(line) for line in text.splitlines() if "/" not in line) <= 100


def of_method(job, method, tmp_path):
    """The arguments for one seed of another method, one that starts from no bank."""
    folder = tmp_path / "results" / "runs" / method / "cifar10_wrn402_wrn161" / "seed0"
    metrics = [write_metrics(folder / "metrics.json", method=method)]
    (folder / "curves.png").write_bytes(b"")
    costs = {stage: job["costs"][stage][:1] for stage in ("teacher", "distill")}
    output = tmp_path / "results" / method / "cifar10_wrn402_wrn161.json"
    return job | {"method": method, "metrics": metrics, "variations": None, "costs": costs, "output": output}


@pytest.mark.parametrize("data_free", [True, False])
def test_a_result_says_whether_it_is_data_free(job, data_free, tmp_path):
    job = of_method(job, "kd", tmp_path)
    for path in job["metrics"]:
        write_metrics(path, read_metrics(path).seed, method="kd", data_free=data_free, notes={"transfer_set": "train"})
    collect(**job)
    content = json.loads(job["output"].read_text())
    assert (content["data_free"], content["notes"]) == (data_free, {"transfer_set": "train"})
    assert ("not data-free" in shown(job["output"])) is not data_free
    assert "transfer set: train" in shown(job["output"])


def test_a_student_from_scratch_has_no_teacher_and_published_figures_of_its_own(job, tmp_path):
    alone = measured(91.0) | {"agree1": None, "lp": None, "one_minus_js_distance": None}
    for path in job["metrics"]:
        write_metrics(path, read_metrics(path).seed, method="scratch", data_free=False, teacher=None, last=alone, best=None)
    output = tmp_path / "results" / "scratch" / "cifar10_wrn161.json"
    costs = {"scratch": job["costs"]["teacher"][:1]}
    result = collect(**job | {"teacher": None, "method": "scratch", "variations": None, "costs": costs, "output": output})
    assert (result.teacher, result.agree1, result.lp, result.best_acc1) == (None, None, None, None)
    assert result.acc1.mean == 91.0
    assert {figure.method for figure in result.published} == {"student_scratch"}
    assert 91.12 in [figure.value for figure in result.published]
    text = shown(output)
    assert "trained from scratch" in text
    assert "Agree@1" not in text
    assert "not data-free" in text


def test_a_method_without_banks_has_its_pictures_and_costs(job, tmp_path):
    job = of_method(job, "dafl", tmp_path)
    collect(**job)
    content = json.loads(job["output"].read_text())
    assert set(content["cost"]) == {"teacher", "distill"}
    assert content["augmentation"] is None
    text = shown(job["output"])
    assert "curves.png" in text
    grid = tmp_path / "results" / "banks" / "cifar10_wrn402" / "init.png"
    grid.parent.mkdir(parents=True)
    grid.write_bytes(b"")  # of another method's run of this teacher
    assert "init.png" not in shown(job["output"])


def test_show_one_seed_of_an_unpublished_pair(job):
    change = {"dataset": "digits"}
    write_metrics(job["metrics"][0], seed=0, **change)
    collect(**job | change | {"metrics": job["metrics"][:1], "variations": None, "costs": {}})
    text = shown(job["output"])
    assert "90.00 %" in text
    assert "±" not in text
    assert "No published figures" in text

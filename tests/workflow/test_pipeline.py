"""The whole pipeline for real, at the smallest budget: every stage, its files, and what runs again."""

import html
import json
import re
import shutil

import jsonschema
import pytest
import yaml
from workflow_tools import ENTRY, PICTURES, ROOT, Workflow

from dfkd.evaluation.picture_names import EVALUATION_PICTURES

TARGET = "results/digits_wrn162_wrn161.json"
BANK = "results/banks/digits_wrn162/init.lmdb"
RUN = "results/runs/dda/digits_wrn162_wrn161/seed0"
CONFIG = {
    "datasets": {"digits": {"test_fraction": 0.05}},  # 90 images: the pictures of an evaluation are most of its time
    "teacher": {"defaults": {"precision": "reference", "epochs": 1, "schedule": "cosine"}},
    "init_bank": {"defaults": {"precision": "reference", "batches": 4, "batch_size": 20, "steps": 2}},
    "augment": {
        "defaults": {
            "precision": "reference",
            "backend": "bank-diffusion",
            "threshold": 0.0,
            "bank_diffusion": {"channels": [16, 16], "train_steps": 2, "batch_size": 16, "sampling_steps": 4},
        }
    },
}
METHOD = {
    "defaults": {
        "precision": "reference",
        "epochs": 1,
        "kd_steps": 2,
        "batch_size": 16,
        "synthesis_batch_size": 16,
        "g_steps": 2,
    }
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, warm):
    """A working directory with a config of its own in which the target was built."""
    folder = tmp_path_factory.mktemp("pipeline") / "work"
    (folder / "config" / "methods").mkdir(parents=True)
    shutil.copy(ROOT / "config" / "datasets.yaml", folder / "config")
    (folder / "config" / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    (folder / "config" / "methods" / "dda.yaml").write_text(yaml.safe_dump(METHOD))
    workflow = Workflow(folder, folder.parent / "bin", warm.program)
    jobs = workflow.run(TARGET)
    assert sum(jobs.values()) == 16
    return workflow


def copy_of(finished, tmp_path, entry):
    """The finished directory once more, times and Snakemake's records included."""
    shutil.copytree(finished.folder, tmp_path / "work")
    return Workflow(tmp_path / "work", tmp_path / "bin", entry)


def test_the_result_is_valid_and_complete(finished):
    result = json.loads((finished.folder / TARGET).read_text())
    jsonschema.validate(result, json.loads((ROOT / "workflow" / "schemas" / "result.schema.json").read_text()))
    assert (result["dataset"], result["method"], result["seeds"]) == ("digits", "dda", [0])
    assert result["data_free"] is True
    assert (result["teacher"]["name"], result["student"]["name"]) == ("wrn162", "wrn161")
    assert set(result["cost"]) == {"teacher", "init-bank", "augment", "distill", "evaluate"}
    assert result["cost"]["init-bank"]["images"] == 80
    assert result["augmentation"]["backend"] == "bank-diffusion"
    assert set(result["provenance"]["artefacts"]) >= {"teacher", "init", "variations", "student-seed0"}
    for metric in ("acc1", "acc5", "agree1"):
        assert 0 <= result[metric]["mean"] <= 100
        assert len(result[metric]["per_seed"]) == 1
    assert (finished.folder / "results" / "dda" / "digits_wrn162_wrn161.json").read_bytes() == (
        finished.folder / TARGET
    ).read_bytes()


def test_every_stage_left_its_files_and_no_checkpoint(finished):
    names = {
        "data": "digits.h5 digits.test.h5",
        "results/teachers/digits_wrn162": "cost.json history.csv report.html timing.csv weights.json weights.safetensors",
        "results/banks/digits_wrn162": "filter.png init.history.csv init.html init.lmdb init.png init.scores.h5 rejected.lmdb "
        "rejected.scores.h5 variations.history.csv variations.html variations.lmdb variations.scores.h5",
        RUN: "bank.html bank.lmdb bank.png bank.scores.h5 best.safetensors curves.png predictions.h5 report.html student.json "
        "timing.csv " + " ".join(PICTURES),
    }
    for folder, wanted in names.items():
        assert {path.name for path in (finished.folder / folder).iterdir()} >= set(wanted.split())
    assert not [path for path in (finished.folder / "results" / "checkpoints").rglob("*") if path.is_file()]


def embedded(page, name):
    """A variable of the page that Snakemake's report is."""
    return json.loads(re.search(rf'<script id="[a-z-]+">\s*var {name} = (.*);\n', page)[1])


def test_the_report_has_every_file_in_its_category_with_a_caption(finished):
    done = finished("--report", "report.html", TARGET)
    assert done.returncode == 0, done.stdout
    page = (finished.folder / "report.html").read_text()
    categories, results = (embedded(page, name) for name in ("categories", "results"))
    found = {
        (category, subcategory): sorted(" ".join(results[path]["labels"].values()) for path in paths)
        for category, inner in categories.items()
        for subcategory, paths in inner.items()
    }
    assert found == {
        ("Image banks", "digits: wrn162"): [
            "init curves", "init images", "init page",
            "variations curves", "variations fidelity filter", "variations images", "variations page",
        ],
        ("Result tables", "digits"): ["wrn162 wrn161 dda"],
        ("Runs", "digits: wrn162 to wrn161"): [
            *sorted(f"dda 0 {title}" for title in ("curves", "image bank", "images", "report", *EVALUATION_PICTURES.values())),
        ],
        ("Teachers", "digits"): ["wrn162 curves", "wrn162 report"],
    }  # fmt: skip
    for path, result in results.items():
        words = re.sub("<[^>]+>", "", result["caption"])
        assert len(words) > 40, path
        assert not re.search("[{}]|Undefined|None", words), path
        if not path.endswith(("init.html", "variations.html", "bank.html")):  # these are opened from their folder, or a zip
            assert (finished.folder / path).stat().st_size < 1_500_000  # a browser shows no larger page within the report
    assert "Result tables" in embedded(page, "workflow_desc")


def test_a_report_names_the_command_that_snakemake_ran(finished):
    done = finished("--cores", "1", "--detailed-summary", TARGET)
    header, *rows = [line.split("\t") for line in done.stdout.splitlines() if "\t" in line]
    ran = {row[header.index("output_file")]: row[header.index("shellcmd")] for row in rows}
    for folder, weights in ((RUN, "student"), ("results/teachers/digits_wrn162", "weights")):
        page = html.unescape((finished.folder / folder / "report.html").read_text())
        command = ran[f"{folder}/{weights}.safetensors"].partition(" > ")[0]
        # what decides time alone is left out
        command = re.sub("^DFKD_GPUS=[0-9]+ |--cache results/caches --cache-mb [0-9]+ ", "", command)
        assert f"<pre>{' '.join(command.split())}</pre>" in page


def test_a_second_invocation_runs_nothing(finished):
    done = finished("--cores", "2", TARGET)
    assert done.returncode == 0
    assert "Nothing to be done" in done.stdout


def test_without_the_training_images_a_changed_parameter_reruns_what_depends_on_it(finished, tmp_path, warm):
    workflow = copy_of(finished, tmp_path, warm.program)
    (workflow.folder / "data" / "digits.h5").unlink()
    before = json.loads((workflow.folder / TARGET).read_text())
    jobs = workflow.run(TARGET, config=["methods={dda: {defaults: {kd_steps: 3}}}"])
    assert jobs == {"distill": 1, "evaluate": 1, "run_pictures": 1, "run_bank_page": 1, "result": 1, "default_result": 1}
    after = json.loads((workflow.folder / TARGET).read_text())
    assert after["cost"]["distill"]["optimiser_steps"] > before["cost"]["distill"]["optimiser_steps"]
    assert after["provenance"]["config_hash"] != before["provenance"]["config_hash"]
    assert not (workflow.folder / "data" / "digits.h5").exists()


def test_methods_without_banks_and_the_control_on_real_images(finished, tmp_path, warm):
    workflow = copy_of(finished, tmp_path, warm.program)
    small = {"precision": "reference", "epochs": 1, "rounds": 1, "kd_steps": 2, "batch_size": 16}
    dafl = small | {"synthesis_batch_size": 16, "sample_images": 20, "latent_size": 16, "width": 8}
    for name, settings in (("dafl", dafl), ("real", small)):
        path = workflow.folder / "config" / "methods" / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"defaults": settings}))
    jobs = workflow.run("results/dafl/digits_wrn162_wrn161.json", "results/real/digits_wrn162_wrn161.json")
    below = dict.fromkeys(["evaluate", "run_pictures", "run_bank_page", "result"], 2)
    assert jobs == {"distill_generator": 1, "distill_transfer": 1, **below}
    for method, data_free in (("dafl", True), ("real", False)):
        result = json.loads((workflow.folder / "results" / method / "digits_wrn162_wrn161.json").read_text())
        jsonschema.validate(result, json.loads((ROOT / "workflow" / "schemas" / "result.schema.json").read_text()))
        assert (result["method"], result["data_free"], result["augmentation"]) == (method, data_free, None)
        assert set(result["cost"]) == {"teacher", "distill", "evaluate"}
        artefacts = {"test", "teacher", "student-seed0", "bank-seed0"} | ({"generator-seed0"} if method == "dafl" else set())
        assert set(result["provenance"]["artefacts"]) == artefacts
        run = workflow.folder / "results" / "runs" / method / "digits_wrn162_wrn161" / "seed0"
        assert {path.name for path in run.iterdir()} >= {"bank.lmdb", "bank.png", "curves.png", "confusion.png"}
        assert (run / "generator.safetensors").exists() is (method == "dafl")


def test_a_student_from_scratch_and_one_on_the_bank(finished, tmp_path, warm):
    workflow = copy_of(finished, tmp_path, warm.program)
    small = {"precision": "reference", "epochs": 1, "kd_steps": 2, "batch_size": 16, "transfer_set": "bank:init"}
    (workflow.folder / "config" / "methods" / "kd.yaml").write_text(yaml.safe_dump({"defaults": small}))
    changes = ["teacher={overrides: {digits_wrn161: {epochs: 2}}}"]
    jobs = workflow.run("results/scratch/digits_wrn161.json", "results/kd/digits_wrn162_wrn161.json", config=changes)
    below = {"evaluate": 1, "run_pictures": 1, "run_bank_page": 1, "result": 1}
    assert jobs == {
        "scratch": 1,
        "evaluate_scratch": 1,
        "scratch_pictures": 1,
        "result_scratch": 1,
        "distill_transfer": 1,
        **below,
    }
    schema = json.loads((ROOT / "workflow" / "schemas" / "result.schema.json").read_text())
    scratch = json.loads((workflow.folder / "results" / "scratch" / "digits_wrn161.json").read_text())
    jsonschema.validate(scratch, schema)
    assert (scratch["method"], scratch["teacher"], scratch["agree1"], scratch["data_free"]) == ("scratch", None, None, False)
    assert set(scratch["cost"]) == {"scratch", "evaluate"}
    assert scratch["cost"]["scratch"]["optimiser_steps"] == 2 * -(-1707 // 256)
    kd = json.loads((workflow.folder / "results" / "kd" / "digits_wrn162_wrn161.json").read_text())
    jsonschema.validate(kd, schema)
    assert (kd["data_free"], kd["notes"]) == (True, {"transfer_set": "bank:init"})
    assert set(kd["cost"]) == {"teacher", "init-bank", "distill", "evaluate"}


def test_any_number_of_shards_gives_the_same_bank(finished, tmp_path):
    workflow = copy_of(finished, tmp_path, ENTRY)  # here the stages import what they need, one process each
    assert workflow.run(BANK, config=["scatter=4"]) == {"init_shard": 4, "init_bank": 1}
    for path in (BANK, BANK.replace("lmdb", "history.csv")):
        assert (workflow.folder / path).read_bytes() == (finished.folder / path).read_bytes()

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dfkd.datasets.info import DatasetInfo
from dfkd.datasets.prepared import write_prepared
from dfkd.runtime import Runtime
from dfkd.settings import InitBankSettings, TeacherSettings

# two processes on two cores would spin for each other's threads
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


# What takes longest begins first, so that no process is left alone with it in the end (`--no-loadscope-reorder`).
LONGEST = (
    "workflow/test_pipeline.py",
    "chaos/",
    "test_killed.py",
    "workflow/test_reruns.py",
    "workflow/test_dag.py",
    "workflow/",
)


def pytest_collection_modifyitems(items):
    def place(item):
        path = item.path.relative_to(Path(__file__).parent).as_posix()
        return next((number for number, start in enumerate(LONGEST) if path.startswith(start)), len(LONGEST))

    items.sort(key=place)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """A data set that a tiny network learns in a second: bright bars, 8×8, three classes; train and test, test alone."""
    folder = tmp_path_factory.mktemp("tiny")
    info = DatasetInfo(
        name="bars",
        classes=["top", "middle", "bottom"],
        image_size=8,
        channels=1,
        mean=[0.3],
        std=[0.3],
        crop_padding=1,
        flip=True,
    )
    generator = torch.Generator().manual_seed(0)
    splits = {}
    for name, count in (("train", 120), ("test", 60)):
        labels = torch.arange(count) % 3
        images = torch.randint(0, 60, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
        for image, label in zip(images, labels.tolist(), strict=True):
            image[:, 3 * label : 3 * label + 2] += 150
        splits[name] = (images, labels)
    write_prepared(folder / "bars.h5", info, splits, {})
    write_prepared(folder / "bars.test.h5", info, {"test": splits["test"]}, {})
    return SimpleNamespace(info=info, data=folder / "bars.h5", test=folder / "bars.test.h5")


@pytest.fixture(scope="session")
def reference():
    return Runtime.create("reference", "cpu")


@pytest.fixture(scope="session")
def tiny_teacher(tiny_data, reference, tmp_path_factory) -> Path:
    """Weights of a WRN-10-1 that has learnt the bars."""
    from dfkd.distillation.teacher import train_teacher

    folder = tmp_path_factory.mktemp("teacher")
    settings = TeacherSettings(precision="reference", epochs=8, batch_size=30, lr=0.1, milestones=[6])
    train_teacher(tiny_data.data, "wrn101", settings, folder / "weights.safetensors", folder / "checkpoint", reference)
    return folder / "weights.safetensors"


@pytest.fixture(scope="session")
def tiny_bank(tiny_teacher, reference, tmp_path_factory) -> Path:
    """A complete init bank of that teacher."""
    from dfkd.synthesis.init_bank import init_bank

    folder = tmp_path_factory.mktemp("bank")
    settings = InitBankSettings(precision="reference", batches=4, batch_size=24, steps=60, lr=1e-2, latent_size=16, width=8)
    init_bank(tiny_teacher, settings, folder / "init.lmdb", folder / "checkpoint", reference)
    return folder / "init.lmdb"


@pytest.fixture(scope="session")
def warm(tmp_path_factory):
    """The programs `dfkd` and `snakemake` with their imports behind them: `warm.program` is the text of an executable."""
    from warm import Warm

    server = Warm(tmp_path_factory.mktemp("warm"), "snakemake.cli")
    yield server
    server.close()


@pytest.fixture(scope="session")
def program(warm, tmp_path_factory):
    """`dfkd` as an executable file."""
    path = tmp_path_factory.mktemp("bin") / "dfkd"
    path.write_text(warm.program)
    path.chmod(0o755)
    return path

import pytest
import torch

from dfkd.bank.merge import merge_banks
from dfkd.bank.reader import BankReader
from dfkd.errors import UserError
from dfkd.files import read_json
from dfkd.models import build_model
from dfkd.models.weights import WeightsCard, save_weights
from dfkd.settings import InitBankSettings
from dfkd.synthesis.init_bank import init_bank, shard_range

SETTINGS = InitBankSettings(precision="reference", batches=5, batch_size=6, steps=3, latent_size=8, width=4)


def test_shards_part_the_batches():
    for batches, count in ((400, 16), (5, 4), (3, 4)):
        ranges = [shard_range(batches, index, count) for index in range(1, count + 1)]
        assert [batch for part in ranges for batch in part] == list(range(batches))
        assert max(map(len, ranges)) - min(map(len, ranges)) <= 1
    with pytest.raises(UserError, match="shard 5/4"):
        shard_range(10, 5, 4)


def test_any_number_of_shards_gives_the_same_bank(tiny_teacher, reference, tmp_path):
    banks = []
    for count in (1, 4, 16):  # the last have shards without a batch
        parts = []
        for index in range(1, count + 1):
            part = tmp_path / f"{index}-of-{count}.lmdb"
            init_bank(tiny_teacher, SETTINGS, part, tmp_path / "checkpoint", reference, (index, count))
            parts.append(part)
        merge_banks(parts, tmp_path / f"init{count}.lmdb")
        banks.append((tmp_path / f"init{count}.lmdb").read_bytes())
    assert banks[0] == banks[1] == banks[2]


def test_bank_says_what_it_is_and_the_checkpoint_is_gone(tiny_teacher, reference, tmp_path):
    cost = init_bank(tiny_teacher, SETTINGS, tmp_path / "b.lmdb", tmp_path / "checkpoint", reference)
    bank = BankReader(tmp_path / "b.lmdb")
    assert len(bank) == 30
    assert bank.meta.status == "complete"
    assert bank.meta.settings["steps"] == 3
    assert bank.meta.lineage[0]["architecture"] == "wrn101"
    arrays = bank.load()
    assert not torch.equal(arrays.images[:6], arrays.images[6:12])  # every batch has its own seed
    assert (cost.images, cost.optimiser_steps, cost.teacher_queries) == (30, 15, 5 * 6 * 4)
    assert read_json(tmp_path / "b.cost.json")["images"] == 30
    assert not (tmp_path / "checkpoint").exists()


def test_a_teacher_without_batchnorm_is_refused(tiny_data, reference, tmp_path):
    info = tiny_data.info.model_copy(update={"image_size": 32})
    model = build_model("lenet5", 3, 1, 32)
    card = WeightsCard(
        architecture="lenet5", dataset=info, role="teacher", stage="teacher", stage_version=1, settings={}, seed=0
    )
    save_weights(tmp_path / "w.safetensors", model, card)
    with pytest.raises(UserError, match="needs BatchNorm layers; lenet5 has none"):
        init_bank(tmp_path / "w.safetensors", SETTINGS, tmp_path / "b.lmdb", tmp_path / "checkpoint", reference)

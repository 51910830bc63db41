import pytest
import torch

from dfkd.distillation.store import ImageStore, ShuffledPasses
from dfkd.runtime import Runtime


def test_store_keeps_what_was_appended_and_refuses_more_than_its_capacity():
    store = ImageStore(5, (1, 2, 2), Runtime.create("reference", "cpu"))
    store.append(torch.full((3, 1, 2, 2), 7, dtype=torch.uint8), torch.tensor([1, 2, 3]))
    store.append(torch.full((2, 1, 2, 2), 9, dtype=torch.uint8), torch.tensor([4, 5]))
    assert store.count == 5
    assert store.images[:, 0, 0, 0].tolist() == [7, 7, 7, 9, 9]
    assert store.labels.tolist() == [1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="6 images for a capacity of 5"):
        store.append(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.tensor([0]))


@pytest.mark.parametrize(("count", "batch"), [(10, 4), (7, 7), (5, 12), (100, 1)])
def test_every_pass_holds_every_index_once(count, batch):
    passes = ShuffledPasses(count, batch, 0, "order")
    drawn = torch.cat([passes.batch(step) for step in range(3 * count)])
    for number in range(len(drawn) // count):
        assert sorted(drawn[number * count : (number + 1) * count].tolist()) == list(range(count))
    assert not torch.equal(drawn[:count], drawn[count : 2 * count]) or count < 8


def test_a_batch_depends_on_keys_and_step_alone():
    walked, jumped = ShuffledPasses(50, 8, 3, "order"), ShuffledPasses(50, 8, 3, "order")
    for step in range(20):
        last = walked.batch(step)
    assert torch.equal(last, jumped.batch(19))
    assert not torch.equal(last, ShuffledPasses(50, 8, 4, "order").batch(19))

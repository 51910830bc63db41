import pytest
import torch
from PIL import Image
from torch import nn

from dfkd.datasets.info import DatasetInfo
from dfkd.datasets.views import normalise, to_unit
from dfkd.evaluation import boundary
from dfkd.evaluation.boundary import boundary_distance, plot_boundary

INFO = DatasetInfo(
    name="toy", classes=list("abcd"), image_size=4, channels=2, mean=[0.3, 0.6], std=[0.2, 0.5], crop_padding=0, flip=False
)  # fmt: skip


@pytest.fixture
def images():
    return torch.randint(0, 256, (150, 2, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(32, 4)).eval().requires_grad_(False)


def test_of_a_linear_network_both_are_the_distances_to_its_hyperplanes(images, reference):
    model = linear()
    found = boundary_distance(model, images, INFO, reference)
    weight = model[1].weight.view(4, 2, 4, 4) / torch.tensor(INFO.std).view(1, 2, 1, 1)  # of pixels from 0 to 1
    weight = weight.flatten(1)
    logits = model(normalise(to_unit(images), INFO))
    order = logits.argsort(1, descending=True)
    gaps = logits.gather(1, order[:, :1]) - logits.gather(1, order)
    norms = (weight[order[:, :1]] - weight[order]).norm(dim=2)
    distances = (gaps / norms)[:, 1:]
    assert torch.allclose(found.margin, distances[:, 0], rtol=1e-4, atol=1e-6)
    # from below exactly; from above by the overshoot, and by the bisection's last interval
    assert bool((found.distance >= distances.amin(1) - 1e-6).all())
    assert torch.allclose(found.distance, distances.amin(1), rtol=0.04, atol=2e-4)
    assert not torch.equal(distances.amin(1), distances[:, 0])  # the runner-up is not always the nearest


def test_what_is_found_changes_the_first_choice(evaluated, reference):
    """Of a curved network: so far along its direction the choice has changed, so the distance is an upper bound."""
    model, info = evaluated.models["teacher"], evaluated.info
    search = boundary._Search(model, info, reference)
    images = to_unit(evaluated.images)
    kept = {}

    def bisected(images, change, first):
        kept.update(change=change.clone(), first=first)
        return boundary._Search._bisected(search, images, change, first)

    search._bisected = bisected
    distance, margin = search(images)
    assert bool(distance.isfinite().all())
    ends = images + kept["change"] * (distance / kept["change"].flatten(1).norm(dim=1))[:, None, None, None]
    assert bool((search.logits(ends).argmax(1) != kept["first"]).all())
    assert bool((search.logits(images + 0.5 * (ends - images)).argmax(1) == kept["first"]).float().mean() > 0.9)
    assert bool((margin > 0).all())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_network_that_does_not_look_has_no_boundary(images, reference):
    class Deaf(nn.Module):
        def forward(self, x):
            return 0 * x.flatten(1)[:, :4] + torch.tensor([3.0, 1.0, 2.0, 0.0])

    found = boundary_distance(Deaf().eval(), images[:5], INFO, reference)
    assert bool(found.distance.isnan().all())
    assert bool(found.margin.isnan().all())


def test_batches_do_not_matter(images, reference, monkeypatch):
    model = linear()
    whole = boundary_distance(model, images, INFO, reference)
    monkeypatch.setattr(boundary, "BATCH_SIZE", 7)
    parts = boundary_distance(model, images, INFO, reference)
    assert torch.allclose(whole.distance, parts.distance, rtol=0.02)
    assert torch.allclose(whole.margin, parts.margin, rtol=1e-4)


def test_the_picture_says_what_was_found(evaluated, tmp_path, monkeypatch):
    texts = []
    for method in ("set_title", "hist"):
        original = getattr(boundary.Axes, method)

        def noted(axes, *arguments, _original=original, **options):
            texts.append(str(options.get("label") or arguments[0]))
            return _original(axes, *arguments, **options)

        monkeypatch.setattr(boundary.Axes, method, noted)
    plot_boundary(evaluated, tmp_path / "boundary.png")
    found = boundary_distance(evaluated.models["student"], evaluated.images, evaluated.info, evaluated.runtime)
    assert any(f"Student resnet8: median {float(found.distance.median()):.3g}" in text for text in texts)
    assert any("Distance to the decision boundary (DeepFool), 60 test images" in text for text in texts)
    assert sum("Rank correlation" in text for text in texts) == 2
    assert Image.open(tmp_path / "boundary.png").size[0] > 900

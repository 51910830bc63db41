from collections import Counter

import pytest

from dfkd.evaluation.published import load, matching, normalised


def test_number_of_figures():
    rows = load()
    assert len(rows) == 811
    assert Counter(row.metric for row in rows)["acc1"] == 560
    assert Counter(row.dataset for row in rows)["cifar100"] == 425
    assert len({row.source for row in rows}) == 17


@pytest.mark.parametrize(
    ("dataset", "teacher", "student", "method", "metric", "source", "value"),
    [
        ("cifar10", "wrn402", "wrn161", "CMI", "acc1", "CMI README table", 90.01),
        ("cifar10", "wrn402", "wrn161", "DAFL", "acc1", "CMI README table", 65.71),
        ("cifar10", "wrn402", "wrn161", "DAFL", "acc1", "AdaDFKD README table", 72.15),
        ("cifar10", "wrn402", "wrn161", "Fast-5", "acc1", "Fast README table", 88.90),
        ("cifar10", "resnet34", "resnet18", "AdaDFKD", "lp", "AdaDFKD notebooks", 0.8944),
        ("cifar100", "vgg11", "resnet18", "CMI", "acc1", "CMI README table", 70.56),
        ("mnist", "lenet5", "lenet5half", "teacher", "acc1_fraction", "DFAD README table 2", 0.989),
        ("cifar100", "resnet56", "resnet20", "VID", "acc1", "KDrefine README table", 70.38),
        ("cifar100", "resnet32x4", "shufflenetv1", "CRD", "acc1", "RepDistiller README table", 75.11),
        ("cifar100", "resnet56", "resnet20", "DKD", "acc1", "mdistiller README table", 71.97),
        ("cifar100", "wrn402", "wrn162", "KD+logit standardisation", "acc1", "logit standardisation README table", 76.11),
        ("tinyimagenet", "resnet50", "resnet18", "AdaDFKD", "acc1", "AdaDFKD notebooks", 58.18),
    ],
)
def test_known_cells(dataset, teacher, student, method, metric, source, value):
    metric = {"lp": "L_p"}.get(metric, metric)
    rows = matching(dataset, teacher, student)
    found = [row.value for row in rows if (row.method, row.metric, row.source) == (method, metric, source)]
    assert found == [value]


def test_names_of_sources_are_normalised():
    assert normalised("wrn40_2") == normalised("WRN-40-2") == "wrn402"
    assert normalised("resnet34_8x") == "resnet34"
    assert normalised("resnet8x4") == "resnet8x4"
    assert len(matching("cifar10", "wrn402", "wrn161")) == 38
    # DFAD's resnet34_8x -> resnet18_8x is the pair that the others call resnet34 -> resnet18
    assert any(row.source == "DFAD README table 2" for row in matching("cifar10", "resnet34", "resnet18"))


def test_no_match_for_an_unpublished_pair():
    assert matching("digits", "wrn162", "wrn161") == []


def test_every_figure_can_be_cited():
    for row in load():
        assert row.source
        assert row.reference.startswith("https://github.com/")
        assert isinstance(row.value, float) or row.metric == "flops" or row.value == "FAILED"

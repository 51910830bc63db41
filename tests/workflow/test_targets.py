from pathlib import Path

import pytest

from dfkd.config import load_config
from dfkd.errors import UserError
from dfkd.targets import check_target

CONFIG = load_config(Path(__file__).resolve().parents[2] / "config")


def refusal(target):
    with pytest.raises(UserError) as caught:
        check_target(target, CONFIG)
    text = str(caught.value)
    assert text.startswith(f"{target}: ")
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    "target",
    [
        "results/cifar10_wrn402_wrn161.json",
        "./results/cifar10_wrn402_wrn161.json",
        "results/dda/digits_resnet8x4_lenet5half.json",
        "results/cmi-adversarial/cifar10_wrn402_wrn161.json",
        "results/real/digits_wrn162_wrn161.json",
        "data/digits.h5",
        "data/digits.test.h5",
        "results/teachers/svhn_wrn402/weights.safetensors",
        "results/banks/mnist_lenet5/shards/1-of-4.lmdb",
        "results/runs/dda/cifar100_resnet50_wrn161/seed7/bank.png",
        "all",
        "teacher",
        "something/else.txt",
    ],
)
def test_known_names_pass(target):
    check_target(target, CONFIG)


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("results/cifar11_wrn402_wrn161.json", "unknown data set 'cifar11'; the nearest known: cifar1"),
        ("results/cifar10_resnet43_wrn161.json", "unknown model 'resnet43'; the nearest known: resnet44"),
        ("results/cifar10_wrn402_vgg12.json", "unknown model 'vgg12'; the nearest known: vgg"),
        ("results/cifar10_wrn412_wrn161.json", "depth must be 6n+4"),
        ("results/dad/cifar10_wrn402_wrn161.json", "unknown method 'dad'; the nearest known: dfad, dda"),
        ("results/dda/cifar_wrn402_wrn161.json", "unknown data set 'cifar'; the nearest known: cifar10"),
        ("data/digit.h5", "unknown data set 'digit'; the nearest known: digits"),
        ("results/teachers/digits_wrn12/weights.safetensors", "unknown model 'wrn12'; the nearest known: wrn1"),
        ("results/banks/digitz_wrn162/init.lmdb", "unknown data set 'digitz'"),
        ("results/runs/ddb/digits_wrn162_wrn161/seed0/metrics.json", "unknown method 'ddb'"),
    ],
)
def test_unknown_names_are_told_with_the_nearest_known(target, sentence):
    assert sentence in refusal(target)


@pytest.mark.parametrize(
    "name", ["cifar10_wrn40_2_wrn16_1", "cifar10_WRN-40-2_WRN-16-1", "CIFAR-10_wrn-40_2_wrn161", "cifar_10_wrn402_wrn161"]
)
def test_a_name_in_another_spelling_is_offered_in_ours(name):
    if name.count("_") == 2:
        assert "unknown" in refusal(f"results/{name}.json")
    else:
        assert refusal(f"results/{name}.json").endswith("did you mean results/cifar10_wrn402_wrn161.json?")


def test_too_few_names_say_the_form_of_a_target():
    text = refusal("results/cifar10_wrn402.json")
    assert "results/DATASET_TEACHER_STUDENT.json" in text
    assert "did you mean" not in text

"""NAYER: label embeddings, noisy layers, the generator's life."""

import copy
import json
from pathlib import Path

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from dfkd.bank.reader import BankReader
from dfkd.config import load_config
from dfkd.datasets.info import DatasetInfo
from dfkd.distillation.distill import distill
from dfkd.distillation.run import build_method
from dfkd.distillation.schedule import count_syntheses, count_turns, rate_at
from dfkd.errors import UserError
from dfkd.methods import NAYERSettings
from dfkd.models import build_model
from dfkd.models.count import count_parameters
from dfkd.models.generators import Generator
from dfkd.models.weights import load_model, read_card
from dfkd.runtime import seed_everything
from dfkd.synthesis.label_embedding import label_embedding, orthogonal_embedding
from dfkd.synthesis.nayer import NamedGenerator, NoisyLayer

SMALL = {"synthesis_batch_size": 8, "g_steps": 3, "latent_size": 16, "width": 4, "batch_size": 6, "warmup": 1}
SMALL |= {"embedding": "orthogonal", "precision": "reference"}
INFO = DatasetInfo(
    name="bars", classes=["top", "middle", "bottom"], image_size=8, channels=1, mean=[0.3], std=[0.3], crop_padding=1, flip=True
)  # fmt: skip


def method(weights, runtime, **changes):
    teacher, card = load_model(weights, runtime)
    seed_everything(5)
    student = runtime.place(build_model("wrn101", 3, 1, 8))
    return build_method("nayer", teacher, student, card, NAYERSettings(**(SMALL | changes)), runtime)[0]


def made_by(synthesizer, epoch, number=0):
    seed_everything("made", epoch, number)
    return synthesizer.synthesize(epoch)


def test_budget_and_rates_are_the_published_ones():
    settings = NAYERSettings()
    syntheses = count_syntheses(settings)
    assert syntheses == 20 * 10 + 100 * 2
    assert syntheses * settings.synthesis_batch_size == 160_000
    assert syntheses * settings.g_steps == 12_000
    assert count_turns(settings) - syntheses == 40_000
    assert rate_at(settings, 20) == 0.2
    assert rate_at(settings, 70) == pytest.approx((0.2 + 2e-4) / 2)


@pytest.mark.parametrize(("classes", "parameters"), [(10, 28_944_771), (100, 10_476_771)])
def test_the_generator_has_the_published_size(classes, parameters):
    with torch.device("meta"):
        network = NamedGenerator(torch.empty(classes, 512), 400, 1000, Generator(1000, 3, 32))
    assert count_parameters(network) == parameters


def test_each_block_of_a_batch_has_a_noisy_layer_of_its_own():
    torch.manual_seed(0)
    layer = NoisyLayer(5, 7, blocks=3, rows=4)
    layer.renew()
    torch.nn.init.normal_(layer.bias)
    features = torch.randn(10, 5)  # the last block is half full
    expected = torch.cat([features[4 * b : 4 * b + 4] @ layer.weight[b] + layer.bias[b] for b in range(3)])
    torch.testing.assert_close(layer(features), expected)


def test_renewed_noise_is_standard_normal_with_zero_bias():
    torch.manual_seed(0)
    layer = NoisyLayer(60, 50, blocks=4, rows=3)
    torch.nn.init.ones_(layer.bias)
    before = layer.weight.clone()
    layer.renew()
    assert not torch.equal(before, layer.weight)
    assert layer.weight.mean().abs() < 0.03
    assert layer.weight.std().item() == pytest.approx(1, rel=0.03)
    assert layer.bias.abs().max() == 0


def test_labels_are_full_ranges_and_a_random_rest(tiny_teacher, reference):
    nayer = method(tiny_teacher, reference)
    rests = set()
    for number in range(20):
        seed_everything(number)
        labels = nayer.begin(0)
        assert labels[:6].tolist() == [0, 1, 2, 0, 1, 2]
        rests.add(tuple(labels[6:].tolist()))
    assert len(rests) > 3
    assert nayer.network.noise.weight.shape == (3, 512, 16)


def test_noise_is_drawn_for_every_synthesis_and_the_generator_for_every_life(tiny_teacher, reference):
    nayer = method(tiny_teacher, reference, generator_life=2)
    starts, noises = [], []
    for epoch, number in ((0, 0), (0, 1), (1, 0), (2, 0), (2, 1)):
        seed_everything(epoch, number)
        last = nayer.network.body.start[0].weight.clone()
        nayer.begin(epoch)
        starts.append(torch.equal(last, nayer.network.body.start[0].weight))
        noises.append(nayer.network.noise.weight.clone())
        seed_everything(epoch, number)
        nayer.synthesize(epoch)
        assert {int(state["step"]) for state in nayer.optimiser.state.values()} == {3}  # moments start anew
    assert starts == [False, True, True, False, True]
    assert all(not torch.equal(a, b) for i, a in enumerate(noises) for b in noises[:i])


def test_a_new_life_is_pytorchs_own_initialisation(tiny_teacher, reference):
    nayer = method(tiny_teacher, reference)
    made_by(nayer, 0)
    nayer.network.restart()
    assert torch.equal(nayer.network.norm.weight, torch.ones(512))
    assert int(nayer.network.body.body[0].num_batches_tracked) == 0
    assert nayer.network.body.start[0].weight.abs().max() <= 16**-0.5


def test_the_loss_is_the_weighted_sum_and_the_adversarial_term_begins_after_the_warm_up(tiny_teacher, reference):
    nayer = method(tiny_teacher, reference, bn=2.0, oh=3.0, adv=4.0)
    terms = [made_by(nayer, epoch).terms for epoch in range(2)]
    assert [list(found) for found in terms] == [["loss", "bn", "oh"], ["loss", "bn", "oh", "adv"]]
    for found in terms:
        expected = 2 * found["bn"] + 3 * found["oh"] + 4 * found.get("adv", 0.0)
        assert found["loss"] == pytest.approx(expected, rel=1e-5)


def test_generator_and_noise_learn_and_nothing_else(tiny_teacher, reference):
    nayer = method(tiny_teacher, reference)
    watched = {"teacher": nayer.teacher, "student": nayer.student}
    before = {name: [value.clone() for value in part.state_dict().values()] for name, part in watched.items()}
    made = made_by(nayer, 0)
    for name, part in watched.items():
        assert all(torch.equal(old, new) for old, new in zip(before[name], part.state_dict().values(), strict=True))
        assert all(value.grad is None for value in part.parameters())
    assert all(value.grad is not None for value in nayer.network.parameters())
    assert nayer.network.noise.weight.grad.abs().sum() > 0
    assert not nayer.network.embedding.requires_grad
    assert nayer.generator is None  # none that lives for the whole run
    assert (made.count, made.optimiser_steps, made.teacher_queries) == (8, 3, 32)


def test_a_resumed_run_makes_what_the_uninterrupted_one_makes(tiny_teacher, reference):
    one, other = (method(tiny_teacher, reference, generator_life=2) for _ in range(2))
    for epoch in range(3):
        made_by(one, epoch)
    state = copy.deepcopy({key: part.state_dict() for key, part in one.parts().items()})
    for key, part in other.parts().items():
        part.load_state_dict(state[key])
    found = [made_by(run, 2, 1) for run in (one, other)]  # the second synthesis of an epoch that begins a life
    assert found[0].terms == found[1].terms
    assert torch.equal(found[0].images, found[1].images)


def test_random_embeddings_are_orthogonal():
    torch.manual_seed(0)
    found = orthogonal_embedding(10)
    torch.testing.assert_close(found @ found.T, torch.eye(10), rtol=0, atol=1e-5)
    many = orthogonal_embedding(600)  # no room for all
    assert many.shape == (600, 512)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A tiny CLIP text encoder of random weights, with a tokenizer that knows letters."""
    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        projection_dim=12, bos_token_id=52, eos_token_id=53, pad_token_id=53,
    )  # fmt: skip
    CLIPTextModelWithProjection(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("choice", ["auto", "clip"])
def test_names_are_embedded_by_clip_where_it_lies_on_disk(clip_folder, choice):
    settings = NAYERSettings(embedding=choice, clip=str(clip_folder), prompt="a image of {}")
    found, kind = label_embedding(settings, INFO)
    assert kind == "clip"
    model, tokenizer = (
        CLIPTextModelWithProjection.from_pretrained(clip_folder).eval(),
        CLIPTokenizer.from_pretrained(clip_folder),
    )
    for name, row in zip(INFO.classes, found, strict=True):  # one by one: no padding
        with torch.no_grad():
            expected = model(**tokenizer([f"a image of {name}"], return_tensors="pt")).text_embeds[0]
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[0], found[1], atol=1e-3)
    assert not found.requires_grad


def test_without_clip_auto_says_that_it_is_random_and_touches_no_network(monkeypatch):
    import socket

    def refuse(*_arguments):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    found, kind = label_embedding(NAYERSettings(clip="nobody/no-such-weights"), INFO)
    assert kind == "orthogonal"
    assert found.shape == (3, 512)


def test_clip_that_was_asked_for_and_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no such folder.*embedding: orthogonal"):
        label_embedding(NAYERSettings(embedding="clip", clip=str(tmp_path / "none")), INFO)


def test_the_run_says_which_embedding_it_had(tiny_teacher, tiny_data, reference, clip_folder, tmp_path):
    for choice, kind in (("orthogonal", "orthogonal"), ("auto", "clip")):
        folder = tmp_path / choice
        settings = NAYERSettings(
            **(SMALL | {"epochs": 2, "warmup_rounds": 2, "kd_steps": 2, "embedding": choice, "clip": str(clip_folder)})
        )
        distill(
            tiny_teacher,
            [],
            "wrn101",
            tiny_data.test,
            settings,
            0,
            folder / "student.safetensors",
            folder / "state",
            reference,
            "nayer",
        )
        assert read_card(folder / "student.safetensors").notes == {"label_embedding": kind}
        bank = BankReader(folder / "bank.lmdb")
        assert bank.meta.extra["label_embedding"] == kind
        assert len(bank) == 4 * 8  # two syntheses of the warm-up, two rounds
        assert not (folder / "generator.safetensors").exists()


def test_the_script_of_cifar100_takes_more_steps():
    config = load_config(Path(__file__).resolve().parents[2] / "config")
    assert config.stage("distill", "cifar100", "wrn402", "wrn161", "nayer").g_steps == 40
    assert config.stage("distill", "cifar10", "wrn402", "wrn161", "nayer").g_steps == 30

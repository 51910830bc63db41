import http.server
import threading

import pytest
import yaml

from dfkd.config import load_config
from dfkd.doctor import inputs
from dfkd.settings import DatasetSettings


@pytest.fixture(autouse=True)
def no_settings_of_the_hub(monkeypatch):
    for name in ("HF_ENDPOINT", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


def test_the_hub(monkeypatch):
    asked = []

    def answer(address):
        asked.append(address)
        return ""

    found = inputs.check_hub(False, answer)
    assert (found.mark, found.says) == ("ok", "huggingface.co can be reached")
    assert asked == ["https://huggingface.co"]
    lost = inputs.check_hub(False, lambda address: "Name or service not known")
    assert (lost.mark, lost.needed) == ("better", False)
    assert lost.says == "huggingface.co cannot be reached (Name or service not known)"
    assert "hf download" in lost.remedy
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    assert "mirror.example" in inputs.check_hub(False, answer).says


def test_offline_asks_nobody(monkeypatch):
    def refuse(address):
        raise AssertionError(address)

    assert "was not asked (--offline)" in inputs.check_hub(True, refuse).says
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = inputs.check_hub(False, refuse)
    assert (found.mark, "HF_HUB_OFFLINE is set" in found.says) == ("better", True)


@pytest.fixture
def server():
    """A hub on this machine: answers /there with 200, everything else with 404, /silent never."""
    methods, release = [], threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            methods.append(self.command)
            if self.path == "/silent":
                release.wait(60)
            self.send_response(200 if self.path == "/there" else 404)
            self.end_headers()

        def log_message(self, *words):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", methods
        release.set()
        running.shutdown()


def test_asking(server):
    address, methods = server
    assert inputs.ask_hub(f"{address}/there", limit=60) == ""
    assert inputs.ask_hub(f"{address}/absent", limit=60) == ""  # it answers
    assert methods == ["HEAD", "HEAD"]
    assert inputs.ask_hub(f"{address}/silent", limit=0.2) in ("no answer within 0 s", "timed out")
    assert inputs.ask_hub("http://127.0.0.1:1/", limit=60) != ""
    assert inputs.ask_hub("no address", limit=60) != ""


def folder_of(tmp_path, **content):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    return tmp_path


def test_the_configuration(tmp_path):
    config, found = inputs.read_config(tmp_path / "absent")
    assert config is None
    assert (found.mark, found.needed) == ("better", False)
    config, found = inputs.read_config(folder_of(tmp_path, seeds=[0, 1]))
    assert config.seeds == [0, 1]
    assert found.mark == "ok"
    config, found = inputs.read_config(folder_of(tmp_path, sedes=[0]))
    assert config is None
    assert (found.mark, found.needed) == ("missing", True)
    assert "unknown key 'sedes'" in found.says


def test_the_weights_that_a_configuration_names(tmp_path):
    def wanted(**content):
        return inputs.wanted_weights(load_config(folder_of(tmp_path, **content)))

    sets = {"one": {"source": "sklearn:digits"}, "two": {"source": "sklearn:digits"}}
    clip = ("openai/clip-vit-base-patch32", None)
    plain = wanted(datasets=sets)
    assert set(plain) == {("lambdalabs/sd-image-variations-diffusers", "v2.0"), ("madebyollin/taesd", None), clip}
    assert "orthogonal vectors" in plain[clip]
    own = {"defaults": {"backend": "bank-diffusion"}, "overrides": {"two": {"embedding": "clip", "clip": "/models/clip"}}}
    assert set(wanted(datasets=sets, augment=own)) == {("/models/clip", None), clip}
    nayer = {"nayer": {"defaults": {"embedding": "orthogonal"}}}
    assert wanted(datasets=sets, augment={"defaults": {"backend": "none"}}, methods=nayer) == {}


def test_weights(tmp_path):
    def snapshot(name, revision):
        if name != "some/model":
            raise RuntimeError("LocalEntryNotFoundError")
        assert revision == "v2"
        return str(tmp_path)

    absent = inputs.check_weights("other/model", None, "nayer", snapshot)
    assert (absent.mark, absent.needed) == ("better", False)
    assert absent.says == "for nayer: other/model is not in the hub's cache"
    assert absent.remedy.endswith("`hf download other/model`")
    half = inputs.check_weights("some/model", "v2", "nayer", snapshot)
    assert "not whole" in half.says
    assert half.remedy.endswith("`hf download some/model --revision v2`")
    (tmp_path / "unet").mkdir()
    link = tmp_path / "unet" / "model.safetensors"
    link.symlink_to(tmp_path / "blob")
    assert "not whole" in inputs.check_weights("some/model", "v2", "nayer", snapshot).says  # a download that did not end
    (tmp_path / "blob").write_bytes(b"x")
    assert inputs.check_weights("some/model", "v2", "nayer", snapshot).mark == "ok"
    assert inputs.check_weights(str(tmp_path), None, "nayer", snapshot).says == f"for nayer: {tmp_path}, a folder"
    gone = inputs.check_weights("/nowhere/at/all", None, "nayer", snapshot)
    assert (gone.mark, gone.remedy) == ("missing", "copy the whole model there")


def test_the_cache_of_the_hub_is_looked_into_without_network(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert inputs.check_weights("nobody/nothing", None, "nayer").mark == "better"


def test_data_sets(tmp_path, tiny_data):
    def check(source, name="bars"):
        return inputs.check_dataset(name, DatasetSettings(source=source), tmp_path)

    assert check("sklearn:digits").says == "to be prepared from sklearn:digits"
    assert check("torchvision:CIFAR10").says == "to be downloaded, from www.cs.toronto.edu"
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "cifar-10-python.tar.gz").write_bytes(b"")
    assert check("torchvision:CIFAR10").says == f"downloaded to {tmp_path / 'downloads'}"
    assert (check(f"folder:{tmp_path}").mark, check(f"folder:{tmp_path}/absent").mark) == ("ok", "missing")
    assert "datasets.yaml" in check(f"hdf5:{tmp_path}").remedy  # a folder, not a file
    assert "there is no kind 'floder'" in check(f"floder:{tmp_path}").says
    for name in ("bars.h5", "bars.test.h5"):
        (tmp_path / name).write_bytes((tiny_data.data if name == "bars.h5" else tiny_data.test).read_bytes())
    assert check("sklearn:digits").says == "prepared: 3 classes, 8 pixels"
    (tmp_path / "bars.test.h5").write_bytes(b"half a file")
    broken = check("sklearn:digits")
    assert broken.mark == "missing"
    assert "remove" in broken.remedy

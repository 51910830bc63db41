"""Plugins: found, imported once, told what is wrong with them; names that are registered; the hash of their code."""

import importlib.metadata
import os
import sys
from types import SimpleNamespace

import pytest

import dfkd.config
import dfkd.datasets.sources
import dfkd.methods
import dfkd.models
from dfkd import plugins
from dfkd.config import check_config, check_model, load_config, register_model, register_source
from dfkd.errors import UserError
from dfkd.methods import METHODS, FixedSettings, Method, register_method
from dfkd.settings import DatasetSettings

MINE = Method(FixedSettings, "minemethod:Mine", "minemethod:Imitate")


@pytest.fixture(autouse=True)
def undone(monkeypatch, tmp_path):
    """A working directory of the test's own; what is registered and imported is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(plugins.VARIABLE, raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(plugins, "_loaded", set())
    monkeypatch.setattr(plugins, "_modules", {})
    registries = METHODS, dfkd.config.MODELS, dfkd.config.SOURCES
    before, modules = [dict(registry) for registry in registries], set(sys.modules)
    plugins._hash.cache_clear()
    yield
    for registry, content in zip(registries, before, strict=True):
        registry.clear()
        registry.update(content)
    for name in set(sys.modules) - modules:
        if name.startswith("mine"):
            del sys.modules[name]
    plugins._hash.cache_clear()


def refusal(function, *words):
    with pytest.raises(UserError) as error:
        function(*words)
    assert "\n" not in str(error.value)
    return str(error.value)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def test_there_is_one_registry_of_models_and_one_of_sources():
    assert dfkd.models.MODELS is dfkd.config.MODELS
    assert dfkd.datasets.sources.SOURCES is dfkd.config.SOURCES
    targets = [*dfkd.config.MODELS.values(), *dfkd.config.SOURCES.values()]
    targets += [target for method in METHODS.values() for target in (method.synthesizer, method.objective)]
    assert [target for target in targets if not callable(plugins.load(target))] == []


def test_a_registered_name_is_known_everywhere():
    register_model("mynet", "dfkd.models.lenet:lenet5half")
    register_method("mine", MINE)
    register_source("mine", "minesource:read")
    assert check_model("mynet") == "mynet"
    assert dfkd.models.build_model("mynet", 10, 1).feature_dim == 60
    config = check_config(
        {
            "datasets": {"toy": {"source": "mine:x"}},
            "methods": {"mine": {"overrides": {"toy_mynet_mynet": {"epochs": 3}}}},
        },
        "config",
    )
    assert config.stage("distill", "toy", "mynet", "mynet", "mine").epochs == 3


@pytest.mark.parametrize(
    ("register", "words", "message"),
    [
        (register_method, ("dda", MINE), "method 'dda' is there already"),
        (register_method, ("runs", MINE), "method 'runs' is there already"),
        (register_method, ("My_Method", MINE), r"method 'My_Method': a method's name consists of \[a-z0-9-\]\+"),
        (register_method, ("mine", "minemethod:Mine"), "method 'mine': expected Method"),
        (register_method, ("mine", Method(FixedSettings, "minemethod")), "'minemethod' is not of the form module:attribute"),
        (register_method, ("mine", Method(FixedSettings, "m:M", banks=("rejected",))), "there are 'init' and 'variations'"),
        (register_model, ("wrn402", "m:f"), "model 'wrn402' is there already"),
        (register_model, ("lenet5", "m:f"), "model 'lenet5' is there already"),
        (register_model, ("my-net", "m:f"), r"a model's name consists of \[a-z0-9\]\+"),
        (register_model, ("mynet", len), "is not of the form module:attribute"),
        (register_source, ("folder", "m:f"), "source 'folder' is there already"),
        (register_source, ("a:b", "m:f"), r"a source's name consists of \[a-z0-9\]\+"),
    ],
)
def test_ill_formed_and_taken_names_are_refused(register, words, message):
    with pytest.raises(UserError, match=message):
        register(*words)
    assert "mine" not in METHODS
    assert "mynet" not in dfkd.config.MODELS


def test_a_file_and_its_neighbours_are_imported_once(tmp_path):
    name = "own/mine_file.py"
    write(
        tmp_path / name,
        "from mine_next import names\nfrom dfkd.config import register_model\nregister_model(names[0], 'mine_next:net')\n",
    )
    write(tmp_path / "own/mine_next.py", "names = ['minenet']\n")
    plugins.load_plugins([name])
    plugins.load_plugins([str(tmp_path / name), "mine_file"])
    assert dfkd.config.MODELS["minenet"] == "mine_next:net"


def test_the_config_loads_its_plugins_before_it_checks_the_names(tmp_path):
    write(tmp_path / "config/config.yaml", "plugins: [mine_first.py]\nteacher: {overrides: {digits_minenet: {epochs: 3}}}\n")
    write(tmp_path / "mine_first.py", "from dfkd.config import register_model\nregister_model('minenet', 'mine_first:net')\n")
    config = load_config("config")
    assert config.plugins == ["mine_first.py"]
    assert config.stage("teacher", "digits", "minenet").epochs == 3
    assert "unknown model 'mynet'" in refusal(check_config, {"teacher": {"overrides": {"digits_mynet": {}}}}, "config")


@pytest.mark.parametrize("value", ["plugins: mine.py", "plugins: [3]", "plugins: {mine: 1}"])
def test_plugins_of_another_form_are_refused(value, tmp_path):
    write(tmp_path / "config/config.yaml", value)
    assert refusal(load_config, "config").startswith("config: plugins")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("mine_absent.py", None, "plugin mine_absent.py: no such .py file"),
        ("mine_absent", None, "plugin mine_absent: there is no module 'mine_absent'; install it"),
        ("own/", None, "plugin own/: no such .py file"),
        ("mine-own.py", "", "'mine-own' is no module name"),
        ("json.py", "", "plugin json.py: there is another module 'json'"),
        ("mine_zero.py", "1 / 0", "plugin mine_zero.py: its import fails with ZeroDivisionError (division by zero)"),
        ("mine_import.py", "import mine_other", "fails with ModuleNotFoundError (No module named 'mine_other')"),
        ("mine_syntax.py", "def", "plugin mine_syntax.py: its import fails with SyntaxError"),
        ("mine_exit.py", "raise SystemExit(3)", "fails with SystemExit (3)"),
        (
            "mine_taken.py",
            "from dfkd.config import register_model\nregister_model('lenet5', 'a:b')",
            "plugin mine_taken.py: model 'lenet5' is there already",
        ),
    ],
)
def test_a_plugin_that_fails_is_named(name, content, message, tmp_path):
    if content is not None:
        write(tmp_path / name, content)
    assert message in refusal(plugins.load_plugins, [name])


def test_installed_plugins_are_found_by_their_entry_points(tmp_path, monkeypatch):
    write(tmp_path / "mine_installed/__init__.py", "")
    register = "from dfkd.config import register_model\nregister_model('minenet', 'mine_installed.net:net')\n"
    write(tmp_path / "mine_installed/register.py", register)
    information = tmp_path / "mine_installed-1.dist-info"
    write(information / "METADATA", "Metadata-Version: 2.1\nName: mine_installed\nVersion: 1\n")
    write(information / "entry_points.txt", "[dfkd.plugins]\nmine = mine_installed.register\n")
    monkeypatch.syspath_prepend(tmp_path)
    plugins.load_plugins()
    assert dfkd.config.MODELS["minenet"] == "mine_installed.net:net"
    failing = importlib.metadata.EntryPoint("other", "mine_absent.register", plugins.GROUP)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [failing])
    assert "plugin other: there is no module 'mine_absent.register'" in refusal(plugins.load_plugins)


def test_a_stage_loads_what_is_passed_on_else_what_the_config_names(tmp_path, monkeypatch):
    assert plugins.configured() == []
    write(tmp_path / "config/config.yaml", "plugins: [own/mine.py]")
    assert plugins.configured() == ["own/mine.py"]
    passed = plugins.passed_on(["own/mine.py", "mine_module"])
    assert passed == os.pathsep.join([str(tmp_path.resolve() / "own/mine.py"), "mine_module"])
    monkeypatch.setenv(plugins.VARIABLE, passed)
    assert plugins.configured() == passed.split(os.pathsep)
    monkeypatch.setenv(plugins.VARIABLE, "")
    assert plugins.configured() == []


@pytest.mark.parametrize("content", ["plugins: {a: b}", "- 1", "a: [", ""])
def test_a_config_of_another_form_names_no_plugins_to_a_stage(content, tmp_path):
    write(tmp_path / "config/config.yaml", content)
    assert plugins.configured() == []


def test_the_command_line_tells_of_a_failing_plugin_in_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(plugins.VARIABLE, "mine_absent.py")
    monkeypatch.setattr(sys, "argv", ["dfkd", "settings", "teacher"])
    with pytest.raises(SystemExit) as end:
        dfkd_main()
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        "dfkd: plugin mine_absent.py: no such .py file; mend the path in `plugins`, it counts from the working directory.\n"
    )


def dfkd_main():
    from dfkd.cli import main

    main()


def test_a_source_is_called_by_its_registered_name(tmp_path):
    write(
        tmp_path / "mine_reader.py", "def read(value, settings, downloads):\n    return value, settings.image_size, downloads\n"
    )
    write(
        tmp_path / "mine_source.py",
        "from dfkd.config import register_source as r\nr('mine', 'mine_reader:read')\nr('lost', 'mine_reader:no')\n",
    )
    plugins.load_plugins(["mine_source.py"])
    settings = SimpleNamespace(source="mine:a:b", image_size=8)
    assert dfkd.datasets.sources.load_source(settings, tmp_path) == ("a:b", 8, tmp_path)
    lost = DatasetSettings(source="lost:x")
    assert "'mine_reader:no' cannot be imported" in refusal(dfkd.datasets.sources.load_source, lost, tmp_path)


def test_the_hash_is_of_the_code_behind_a_name(tmp_path):
    files = [tmp_path / name for name in ("mine_plugin.py", "mine_net.py", "mine_package/__init__.py", "mine_package/deep.py")]
    targets = {"one": "mine_net:f", "two": "mine_package:f", "three": "dfkd.models.vgg:vgg8"}
    register = f"from dfkd.config import register_model\nfor one in {targets}.items():\n    register_model(*one)\n"
    for file, text in zip(files, (register, "a", "b", "c"), strict=True):
        write(file, text)
    plugins.load_plugins(["mine_plugin.py"])

    def hashes():
        plugins._hash.cache_clear()
        return [plugins.code_hash("model", name) for name in ("one", "two", "three", "lenet5")]

    first = hashes()
    assert first[3] == ""
    assert len(set(first)) == 4
    for file, changed in zip(files, ([0, 1, 2], [0], [1], [1]), strict=True):
        before = hashes()
        file.write_text(file.read_text() + "\n")
        assert [index for index, (old, new) in enumerate(zip(before, hashes(), strict=True)) if old != new] == changed
    files[1].unlink()
    sys.path_importer_cache.clear()
    assert "plugin module 'mine_net' cannot be imported" in refusal(hashes)

from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import pytest

from dfkd import plugins
from dfkd.doctor import software


def test_python():
    assert software.check_python((3, 11, 2)).mark == "ok"
    old = software.check_python((3, 10, 9))
    assert (old.mark, old.needed) == ("missing", True)
    assert "3.11" in old.remedy


def test_package_and_torch():
    assert "revision abc with changes" in software.check_package("abc+changes").says
    assert "revision 0123456789ab, in" in software.check_package("0123456789abcdef").says
    version = SimpleNamespace(cuda="13.2", hip=None)
    assert software.check_torch(SimpleNamespace(__version__="2.15", version=version)).says == "2.15, built for CUDA 13.2"
    version = SimpleNamespace(cuda=None, hip=None)
    assert software.check_torch(SimpleNamespace(__version__="2.15", version=version)).says == "2.15, built for CPU"
    absent = software.check_torch(None)
    assert (absent.mark, absent.needed) == ("missing", True)


def versions_of(**known):
    def version(name):
        if name not in known:
            raise PackageNotFoundError(name)
        return known[name]

    return version


def test_libraries():
    wanted = ["torch>=2.11", "snakemake>=9,<10", "plotly>=6"]
    (fine,) = software.check_libraries(wanted, versions_of(torch="2.15.0+cu132", snakemake="9.3", plotly="7.1"))
    assert (fine.mark, fine.says) == ("ok", "3, all of versions that they may have")
    other, absent, pages = software.check_libraries(wanted, versions_of(torch="2.1"))
    assert (other.name, other.mark, other.says, other.needed) == ("torch", "better", "2.1; wanted: >=2.11", False)
    assert (absent.name, absent.mark, absent.needed) == ("snakemake", "missing", True)
    assert absent.remedy == '`pip install "snakemake<10,>=9"`'
    assert (pages.name, pages.mark, pages.needed) == ("plotly", "missing", False)


def test_what_the_package_asks_for(tmp_path):
    assert "torch>=2.11" in software.requirements()
    assert any(text.startswith("torch") for text in software.requirements(tmp_path / "absent.toml"))  # as it was installed


def distribution(name, version, *requires):
    return SimpleNamespace(metadata={"Name": name}, version=version, requires=list(requires))


def snakemake_of(*others, profiles, absent=()):
    return software.check_snakemake(
        profiles, lambda: [distribution("snakemake", "9.27"), *others], lambda name: None if name in absent else object()
    )


SLURM = "snakemake-executor-plugin-slurm"


def test_snakemake_and_its_plugins(tmp_path):
    interface = distribution("snakemake-interface-executor-plugins", "9.4.0")
    slurm = distribution(SLURM, "2.0", "snakemake-interface-executor-plugins<10,>=9.1", "throttler")
    s3 = distribution("snakemake-storage-plugin-s3", "0.3")
    (fine,) = snakemake_of(interface, slurm, s3, profiles=tmp_path)
    assert fine.says == "9.27; executors: local, slurm; storage plugins: s3"
    (alone,) = snakemake_of(profiles=tmp_path)
    assert alone.says == "9.27; executors: local; storage plugins: none"
    assert software.check_snakemake(tmp_path, lambda: [interface]) == []  # its absence is told among the libraries


def test_broken_plugins_of_snakemake(tmp_path):
    interface = distribution("snakemake-interface-executor-plugins", "8.0.0")
    slurm = distribution(SLURM, "2.0", "snakemake-interface-executor-plugins<10,>=9.1")
    fine, broken = snakemake_of(interface, slurm, profiles=tmp_path)
    assert fine.says == "9.27; executors: local; storage plugins: none"
    assert (broken.name, broken.mark, broken.needed) == (SLURM, "missing", False)
    assert "does not fit snakemake-interface-executor-plugins 8.0.0" in broken.says
    half = snakemake_of(distribution(SLURM, "2.0"), profiles=tmp_path, absent=["snakemake_executor_plugin_slurm"])[1]
    assert "its module snakemake_executor_plugin_slurm is not there" in half.says
    assert half.remedy == f"`pip install --force-reinstall {SLURM}`"


def test_profiles(tmp_path):
    for name, text in {"default": "cores: 2", "slurm": "executor: slurm", "bad": "executor: ["}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(text)
    found = {finding.name: finding for finding in snakemake_of(profiles=tmp_path)}
    assert set(found) == {"snakemake", "profile bad", "profile slurm"}
    assert (found["profile slurm"].mark, found["profile slurm"].says) == ("better", "executor slurm is not installed")
    assert f"pip install {SLURM}" in found["profile slurm"].remedy
    assert found["profile bad"].mark == "missing"
    assert "profile slurm" not in {finding.name for finding in snakemake_of(distribution(SLURM, "2"), profiles=tmp_path)}


@pytest.fixture
def clean(monkeypatch):
    monkeypatch.setattr(plugins, "_loaded", set())
    monkeypatch.delenv(plugins.VARIABLE, raising=False)


def test_a_broken_plugin_of_ones_own(clean, tmp_path):
    assert software.check_plugins(tmp_path) == []
    plugin = tmp_path / "broken_for_the_doctor.py"
    plugin.write_text("import a_module_that_is_nowhere\n")
    (tmp_path / "config.yaml").write_text(f"plugins: [{plugin}]\n")
    (found,) = software.check_plugins(tmp_path)
    assert (found.mark, found.needed) == ("missing", True)
    assert "a_module_that_is_nowhere" in found.says
    plugin.write_text("")
    (found,) = software.check_plugins(tmp_path)
    assert (found.mark, found.says) == ("ok", str(plugin))

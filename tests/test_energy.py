"""Energy from a made-up powercap folder, a made-up NVML and a made-up clock."""

import os
import threading
from types import SimpleNamespace

import pytest
import torch

from dfkd import energy, provenance
from dfkd.energy import Counter, Meter, counters_of, gpu, packages, sources
from dfkd.provenance import Cost
from dfkd.runtime import Runtime

SPAN = 262_143_328_850  # µJ, of a common server


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Register:
    """What a counter reads; counts how often."""

    def __init__(self, value=0):
        self.value, self.reads = value, 0

    def __call__(self):
        self.reads += 1
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


def zone(folder, name, label, value, span=SPAN):
    path = folder / name
    path.mkdir(parents=True)
    for file, content in (("name", label), ("energy_uj", value), ("max_energy_range_uj", span)):
        (path / file).write_text(f"{content}\n")
    return path / "energy_uj"


@pytest.fixture
def fresh():
    """No counter of another test is reused, and no thread outlives the test by reading."""
    counters_of.cache_clear()
    yield
    counters_of.cache_clear()


def test_packages_are_read_and_nothing_twice(tmp_path):
    one = zone(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    two = zone(tmp_path, "intel-rapl:1", "package-1", 0)
    parts = [zone(tmp_path, f"intel-rapl:0:{number}", label, 0) for number, label in enumerate(("core", "dram"))]
    parts += [zone(tmp_path, "intel-rapl:2", "psys", 0), zone(tmp_path, "intel-rapl-mmio:0", "package-0", 0)]
    first, second = packages(tmp_path).counters
    one.write_text("7500000\n")
    two.write_text("1000000\n")
    for part in parts:
        part.write_text("9000000\n")
    assert (first.joules(), second.joules()) == (2.5, 1.0)
    assert sources([first, second]) == "rapl"
    assert first.span == SPAN


def test_a_counter_that_wraps_goes_on(tmp_path):
    file = zone(tmp_path, "intel-rapl:0", "package-0", SPAN - 1_000_000)
    (counter,) = packages(tmp_path).counters
    file.write_text("2000000\n")
    assert counter.joules() == pytest.approx(3.0)
    file.write_text("2500000\n")
    assert counter.joules() == pytest.approx(3.5)


def test_wraps_count_if_the_readings_are_close_enough():
    """200 W on a register of 262 kJ: 720 kJ in an hour."""
    clock, register = Clock(), Register(SPAN // 2)
    counter = Counter("rapl", register, 1e-6, SPAN, clock)
    clock.now += 1200
    register.value = (register.value + 200_000_000 * 1200) % SPAN
    assert counter.joules() is None  # twenty minutes without a reading could hide a wrap at 1,000 W
    counter = Counter("rapl", register, 1e-6, SPAN, clock)
    begin = register.value
    for step in range(1, 361):
        clock.now += 10
        register.value = (begin + 200_000_000 * 10 * step) % SPAN
        found = counter.joules()
    assert found == pytest.approx(720_000.0)


def test_a_counter_that_was_reset_is_not_taken_for_a_wrap():
    clock, register = Clock(), Register(50_000_000_000)
    counter = Counter("rapl", register, 1e-6, SPAN, clock)
    clock.now, register.value = clock.now + 10, 0
    assert counter.joules() is None
    register.value = 1_000_000
    assert counter.joules() is None
    without_span = Counter("nvml", Register(5), 1e-3, None, clock)
    without_span._read.value = 4
    assert without_span.joules() is None


@pytest.mark.parametrize("fault", [OSError(19, "No such device"), ValueError("no number"), RuntimeError("GPU is lost")])
def test_a_source_that_vanishes_is_lost_for_good(fault):
    register = Register(0)
    counter = Counter("nvml", register, 1e-3)
    register.value = 2000
    assert counter.joules() == 2.0
    register.value = fault
    assert counter.joules() is None
    register.value = 3000
    assert counter.joules() is None


def test_a_register_that_is_emptied_is_lost(tmp_path):
    file = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    (counter,) = packages(tmp_path).counters
    file.write_text("")
    assert counter.joules() is None


def test_what_is_not_readable_is_said(tmp_path, monkeypatch):
    assert packages(tmp_path / "absent").lack == f"no package in {tmp_path / 'absent'}"
    zone(tmp_path, "intel-rapl:0", "package-0", "unknown")
    found = packages(tmp_path)
    assert found.counters == ()
    assert "intel-rapl:0 gives no reading" in found.lack

    def refuse(path, flags):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", refuse)  # root may read everything, so that a mode of 0 would prove nothing
    assert packages(tmp_path).lack == f"{tmp_path / 'intel-rapl:0' / 'energy_uj'} is not readable for this user"


def made_up_nvml(register, uuids=("GPU-1234",)):
    def handle(uuid):
        if uuid not in uuids:
            raise RuntimeError("Not Found")
        return uuid

    def total(device):
        assert device in uuids
        return register()

    return SimpleNamespace(nvmlInit=lambda: None, nvmlDeviceGetHandleByUUID=handle, nvmlDeviceGetTotalEnergyConsumption=total)


def test_the_gpu_is_found_by_its_uuid():
    register = Register(5_000_000)
    (counter,) = gpu("1234", made_up_nvml(register)).counters
    register.value += 1500
    assert counter.joules() == 1.5
    assert (counter.source, counter.span) == ("nvml", None)
    assert "gives no energy of GPU 99 (Not Found)" in gpu("99", made_up_nvml(register)).lack
    assert gpu("1234", made_up_nvml(Register(RuntimeError("Not Supported")))).counters == ()


def metered(watts=(100.0,), interval=1.0):
    """A meter, its clock, and a function that lets seconds pass at these powers."""
    clock, registers = Clock(), [Register() for _ in watts]
    meter = Meter([Counter("rapl", register, 1e-6, SPAN, clock) for register in registers], interval, clock)

    def run(seconds, factor=1.0):
        clock.now += seconds
        for register, power in zip(registers, watts, strict=True):
            register.value += round(1e6 * power * factor * seconds)

    return meter, registers, run


def test_a_block_has_the_energy_of_its_time():
    meter, _, run = metered((100.0, 30.0))
    meter.begin()
    run(20)
    meter.end()
    assert meter.joules() == pytest.approx(2600.0)
    run(500)
    assert meter.joules() == pytest.approx(2600.0)  # nothing is under way


def test_what_lies_between_blocks_is_left_out_however_short_they_are():
    """Blocks of 3 ms every 4 ms at 100 W for 40 s: three quarters of 4,000 J, from less than a hundred readings."""
    meter, (register,), run = metered()
    for _ in range(10_000):
        meter.begin()
        run(0.003)
        meter.end()
        run(0.001)
    assert meter.joules() == pytest.approx(3000.0, rel=1e-3)
    assert register.reads < 100


def test_a_pause_at_another_power_costs_a_second_of_mixing_at_most():
    """Twice a minute of work at 100 W and a pause of a minute at 20 W: 12,000 J, to within a second's 100 J a pause."""
    meter, _, run = metered()
    for _ in range(2):
        for _ in range(600):
            meter.begin()
            run(0.1)
            meter.end()
        run(60, factor=0.2)
    assert meter.joules() == pytest.approx(12_000.0, abs=200)


def test_no_counter_is_no_energy_and_a_lost_one_is_none():
    assert Meter([]).joules() is None
    assert Meter([]).sources == ""
    meter, (register, _), run = metered((100.0, 10.0))
    meter.begin()
    run(5)
    meter.end()
    assert meter.joules() == pytest.approx(550.0)
    meter.begin()
    run(5)
    register.value = OSError("gone")
    meter.end()
    assert meter.joules() is None


class FakeRuntime:
    def __init__(self, *counters):
        self.counters = counters

    def energy_counters(self):
        return self.counters

    def peak_memory(self):
        return 7


def test_cost_adds_energy_over_attempts(monkeypatch):
    clock, register = Clock(), Register()
    monkeypatch.setattr(provenance, "Meter", lambda counters: Meter(counters, clock=clock))
    runtime = FakeRuntime(Counter("nvml", register, 1e-3))
    cost = Cost()
    with cost.measure(runtime):
        clock.now, register.value = clock.now + 2, 4000
    with cost.measure(runtime):
        clock.now, register.value = clock.now + 0.5, 5000
    saved = cost.as_dict()
    assert (saved["energy"], saved["energy_meters"]) == (5.0, "nvml")
    assert cost.as_dict() == saved
    again = Cost(**saved)
    assert again.as_dict() == saved
    clock.now, register.value = clock.now + 50, 9000
    with again.measure(runtime):
        clock.now, register.value = clock.now + 3, 10_000
    assert again.as_dict()["energy"] == 6.0


def attempt(earlier, *counters):
    cost = Cost(**earlier)
    with cost.measure(FakeRuntime(*counters)):
        pass
    return cost.as_dict()


def test_energy_that_is_not_known_for_all_attempts_is_not_given():
    def nvml():
        return Counter("nvml", Register(), 1e-3)

    def rapl():
        return Counter("rapl", Register(), 1e-6, SPAN)

    without = attempt({})
    assert (without["energy"], without["energy_meters"]) == (None, "")
    assert attempt(without, nvml())["energy"] is None
    metered_once = attempt({}, nvml())
    assert metered_once["energy"] == 0.0
    assert attempt(metered_once, nvml())["energy"] == 0.0
    assert attempt(metered_once, nvml(), rapl())["energy"] is None  # the sum would be of different things
    assert attempt(metered_once)["energy"] is None
    old = {"seconds": 3.0, "images": 1, "teacher_queries": 2, "optimiser_steps": 3, "peak_memory": 4}  # of before the key
    assert attempt(old, nvml())["energy"] is None
    assert attempt(old)["seconds"] >= 3.0


def test_a_runtime_reads_this_machine(fresh, tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    cpu = Runtime.create("reference", "cpu")
    assert cpu.energy_counters() == ()
    assert "energy" not in cpu.describe()
    counters_of.cache_clear()
    zone(tmp_path, "intel-rapl:0", "package-0", 0)
    assert cpu.describe()["energy"] == "rapl"
    assert cpu.energy_counters() is cpu.energy_counters()
    nvml = made_up_nvml(Register(), ("GPU-aa-bb",))
    monkeypatch.setitem(__import__("sys").modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="aa-bb"))
    on_gpu = Runtime(torch.device("cuda:0"), "fast", torch.bfloat16, False)
    assert sources(on_gpu.energy_counters()) == "rapl, nvml"


def test_a_thread_keeps_wraps_from_being_missed(fresh, tmp_path, monkeypatch):
    seen = threading.Event()
    watched = []

    def watch(counters):
        watched.extend(counters)
        seen.set()

    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    monkeypatch.setattr(energy, "_watch", watch)
    assert counters_of(None) == ()
    counters_of.cache_clear()
    zone(tmp_path, "intel-rapl:0", "package-0", 0)
    (counter,) = counters_of(None)
    assert seen.wait(60)
    assert watched == [counter]


def test_the_watch_reads(monkeypatch):
    class Enough(Exception):
        pass

    pauses = []

    def sleep(seconds):
        pauses.append(seconds)
        if len(pauses) > 3:
            raise Enough

    monkeypatch.setattr(energy.time, "sleep", sleep)
    register = Register()
    counter = Counter("rapl", register, 1e-6, SPAN)
    with pytest.raises(Enough):
        energy._watch([counter])
    assert register.reads == 1 + 3
    assert pauses == [10.0] * 4

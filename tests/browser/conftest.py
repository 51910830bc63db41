"""A real browser, and pages that may not complain."""

import importlib.util
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

ARTEFACTS = Path(__file__).resolve().parents[2] / "test-artefacts"  # screenshots of the last run; git ignores them


def _of_inspection(name):
    path = Path(__file__).resolve().parents[1] / "inspection" / "conftest.py"
    spec = importlib.util.spec_from_file_location("inspection_conftest", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


tree = _of_inspection("tree")


@pytest.fixture(scope="module")
def browser():
    """The system's Chromium, without a window. Per file: while it is open an event loop runs in this thread, which other
    tests of the same process would meet."""
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser):
    """A tab of 1400×1000. Whatever goes wrong in it, or is written to its console as an error, fails the test."""
    tab = browser.new_page(viewport={"width": 1400, "height": 1000})
    faults = []
    tab.on("pageerror", lambda error: faults.append(str(error)))
    tab.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    yield tab
    tab.close()
    assert faults == []


@pytest.fixture
def shoot(page):
    """Keeps a screenshot as test-artefacts/NAME.png."""

    def keep(name):
        ARTEFACTS.mkdir(exist_ok=True)
        page.screenshot(path=ARTEFACTS / f"{name}.png")

    return keep

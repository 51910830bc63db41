"""What the tests of the viewer share: the folder that it shows, and where things are on its pages."""

import importlib.util
from pathlib import Path

from dfkd.bank.reader import BankReader


def _of_inspection(name):
    path = Path(__file__).resolve().parents[2] / "inspection" / "viewer" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


helper = _of_inspection("viewer_tree")
INIT, VARIATIONS, RUN, RUNNING = helper.INIT, helper.VARIATIONS, helper.RUN, helper.RUNNING


def shown(page):
    """Indices of the images in the grid, in their order."""
    return [int(cell.get_attribute("data-index")) for cell in page.locator(".grid .cell:visible").all()]


def focused(page):
    return page.evaluate("Number(document.activeElement.dataset.index)")


def dialog(page):
    return page.locator("#image[open]")


def heading(page):
    return dialog(page).locator("h2")


def bank_of(folder, name):
    return BankReader(folder.results / name).load()

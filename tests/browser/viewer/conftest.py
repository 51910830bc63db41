"""The viewer of a results folder, on a port of its own."""

import pytest
from browser_tools import INIT, VARIATIONS, helper
from playwright.sync_api import expect

from dfkd.inspection.scores import scores_of, write_scores
from dfkd.inspection.sidecar import scores_file

expect.set_options(timeout=30_000)  # a busy machine


@pytest.fixture(scope="session")
def folder(tree, reference, tmp_path_factory):
    folder = helper.build(tree, tmp_path_factory.mktemp("viewer") / "results")
    for name in (INIT, VARIATIONS):
        bank = folder.results / name
        write_scores(scores_file(bank), scores_of(bank, None, reference))
    return folder


@pytest.fixture(scope="session")
def address(folder):
    with helper.served(folder.results) as found:
        yield found


@pytest.fixture
def opened(page, address):
    """Go to a view and wait for its images."""

    def go(query, grids=1):
        page.goto(f"{address}?{query}")
        expect(page.locator(".grid[data-ready=yes]")).to_have_count(grids)
        return page

    return go


@pytest.fixture
def own_folder(tree, tmp_path):
    return helper.build(tree, tmp_path / "results")


@pytest.fixture
def own_address(own_folder):
    with helper.served(own_folder.results) as found:
        yield found

"""The viewer of a results folder, asked without a socket."""

import pytest
import viewer_tree
from viewer_tree import client_of, unpack


@pytest.fixture(scope="session")
def folder(tree, tmp_path_factory):
    """See `viewer_tree.build`. Tests leave it as it is."""
    return viewer_tree.build(tree, tmp_path_factory.mktemp("viewer") / "results")


@pytest.fixture
def own_folder(tree, tmp_path):
    """The same, to be changed."""
    return viewer_tree.build(tree, tmp_path / "results")


@pytest.fixture(scope="session")
def client(folder):
    with client_of(folder.results) as found:
        yield found


@pytest.fixture(scope="session")
def frame(client):
    """Ask for a frame."""
    return lambda name, **parameters: unpack(client.get(f"/api/{name}", params=parameters))


@pytest.fixture(scope="session")
def ask(client):
    """Ask for JSON."""

    def asked(name, **parameters):
        response = client.get(f"/api/{name}", params=parameters)
        assert response.status_code == 200, response.text
        return response.json()

    return asked

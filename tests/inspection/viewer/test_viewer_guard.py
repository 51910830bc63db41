"""What is refused: other folders, other hosts, other sites. And that nothing is written."""

import os
import re
import time

import pytest
import viewer_tree
from starlette.testclient import TestClient
from viewer_tree import CHECKPOINT, HOSTILE, INIT, REJECTED, RUN, VARIATIONS, client_of

from dfkd.errors import UserError
from dfkd.inspection.viewer.app import create_app
from dfkd.inspection.viewer.serve import names_of

OUT = [
    "../secret.lmdb",
    "banks/../../secret.lmdb",
    "banks/bars_wrn101/../../../secret.lmdb",
    "..%2fsecret.lmdb",
    "%2e%2e/secret.lmdb",
    "%2e%2e%2fsecret.lmdb",
    "%252e%252e%252fsecret.lmdb",
    "..%5csecret.lmdb",
    "/etc/passwd.lmdb",
    "//etc/passwd.lmdb",
    "{root}/../secret.lmdb",
    "{root}/banks/bars_wrn101/init.lmdb",
    "banks/link.lmdb",
    "linked/secret.lmdb",
    "banks/loop.lmdb",
    "banks/dangling.lmdb",
    "banks/bars_wrn101/init.lmdb%00",
    "",
    ".",
    "..",
    "banks",
    "banks/folder.lmdb",
    "teachers/bars_wrn101/weights.safetensors",
    "teachers/bars_wrn101/weights.json",
    "banks/bars_wrn101/init.lmdb/",
    "~/x.lmdb",
]


@pytest.fixture(scope="module")
def surrounded(tree, tmp_path_factory):
    """A bank beside the folder, and links that lead to it."""
    folder = viewer_tree.build(tree, tmp_path_factory.mktemp("surrounded") / "results")
    results = folder.results
    secret = results.parent / "secret.lmdb"
    secret.write_bytes((results / INIT).read_bytes())
    (results / "banks" / "link.lmdb").symlink_to(secret)
    (results / "linked").symlink_to(results.parent)
    (results / "banks" / "loop.lmdb").symlink_to(results / "banks" / "loop.lmdb")
    (results / "banks" / "dangling.lmdb").symlink_to(results / "nothing.lmdb")
    (results / "banks" / "folder.lmdb").mkdir()
    return folder


@pytest.fixture(scope="module")
def inside(surrounded):
    with client_of(surrounded.results) as found:
        yield found


@pytest.mark.parametrize("name", OUT)
def test_nothing_outside_of_the_folder_is_served(inside, surrounded, name):
    name = name.replace("{root}", str(surrounded.results))
    for address in ("page", "bank", "image", "png", "thumbs", "images", "answers", "neighbours"):
        response = inside.get(f"/api/{address}?index=0&bank={name}")
        assert response.status_code in (403, 404, 422), (address, name)
        assert set(response.json()) == {"error"}
        assert str(surrounded.results.parent) not in response.json()["error"] or str(surrounded.results) in name
    assert inside.get(f"/api/compare?a={INIT}&b={name}").status_code in (403, 404, 422)
    assert inside.get(f"/api/scatter?bank={INIT}&bank={name}").status_code in (403, 404, 422)
    assert inside.post(f"/api/measure?bank={name}", headers={"origin": "http://127.0.0.1:8765"}).status_code in (403, 404, 422)
    assert inside.get(f"/api/run?run={name}").status_code == 404
    assert inside.get(f"/api/answers?bank={INIT}&index=0&student={name}").status_code == (404 if name else 200)


def test_links_within_the_folder_are_followed_and_others_listed_as_broken(inside, surrounded):
    (surrounded.results / "banks" / "same.lmdb").symlink_to(surrounded.results / INIT)
    listed = {bank["name"]: bank for bank in inside.get("/api/library").json()["banks"]}
    assert listed["banks/same.lmdb"]["images"] == 60
    assert inside.get("/api/page?bank=banks/same.lmdb").status_code == 200
    assert listed["banks/link.lmdb"]["state"] == "broken"
    assert "leads out of the folder" in listed["banks/link.lmdb"]["fault"]
    assert not any(name.startswith("linked") for name in listed)


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/static//etc/passwd", "/static/..%5capp.py",
        "/banks/bars_wrn101/init.lmdb", "/../secret.lmdb", "/templates/index.html", "/api", "/api/", "/api/secret", "/static/",
    ],
)  # fmt: skip
def test_no_other_file_has_an_address(client, path):
    assert client.get(path).status_code == 404


def test_a_host_that_is_not_this_one_is_refused(client, folder):
    for host in ("evil.example", "127.0.0.1.evil.example:8765", "localhost.evil.example", "", "8765"):
        assert client.get("/api/library", headers={"host": host}).status_code == 400
    for host in ("127.0.0.1:8765", "localhost:1", "LOCALHOST", "[::1]:8765"):
        assert client.get("/", headers={"host": host}).status_code == 200
    named = TestClient(create_app(folder.results, names_of("box.lan")), base_url="http://127.0.0.1")
    assert named.get("/", headers={"host": "box.lan:8765"}).status_code == 200
    assert named.get("/", headers={"host": "other.lan:8765"}).status_code == 400
    assert "*" not in names_of("0.0.0.0")


@pytest.mark.parametrize("origin", [None, "null", "http://evil.example", "http://127.0.0.1:9", "http://127.0.0.1:8765.evil"])
def test_another_site_cannot_begin_a_measurement(client, origin):
    headers = {} if origin is None else {"origin": origin}
    refused = client.post("/api/measure", params={"bank": INIT}, headers=headers)
    assert (refused.status_code, "own pages" in refused.json()["error"]) == (403, True)


def test_only_questions_are_answered(client):
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
        assert client.request(method, "/api/library").status_code == 405
    assert client.get("/api/measure", params={"bank": INIT}).status_code == 405
    assert client.post("/api/library", headers={"origin": "http://127.0.0.1:8765"}).status_code == 405


def test_every_answer_carries_the_policy(client):
    for path in ("/", "/api/library", "/static/main.js", "/api/page?bank=none", "/nowhere"):
        headers = client.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'self'; ")
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in headers
    assert client.get("/", headers={"host": "evil.example"}).headers["x-content-type-options"] == "nosniff"


def test_the_page_loads_nothing_from_elsewhere(client):
    page = client.get("/").text
    loaded = re.findall(r"""(?:src|href)=["']([^"']*)""", page)
    assert [address for address in loaded if not address.startswith(("static/", "?", "#", "data:"))] == []
    for address in loaded:
        if address.startswith("static/"):
            text = client.get(f"/{address}")
            assert text.status_code == 200
            assert not re.findall(r"https?://", text.text)


def test_names_of_classes_and_folders_are_text(own_folder, tmp_path):
    odd = tmp_path / "<script>alert(1)<"
    own_folder.results.rename(odd)
    page = TestClient(create_app(odd), base_url="http://127.0.0.1").get("/").text
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;" in page
    response = TestClient(create_app(odd), base_url="http://127.0.0.1").get("/api/bank?bank=banks/odd/names.lmdb")
    assert response.headers["content-type"] == "application/json"
    assert response.json()["classes"][0] == HOSTILE


def snapshot(folder):
    """Everything below a folder: names, sizes, times of change, modes, and the times of the folders themselves."""
    found = {}
    for path in [folder, *folder.rglob("*")]:
        status = path.lstat()
        found[str(path)] = (status.st_size, status.st_mtime_ns, status.st_mode, status.st_ino)
    return found


def every_question(client):
    """Ask everything that can be asked, and wait for what is computed."""
    own = {"origin": "http://127.0.0.1:8765"}
    assert client.get("/api/library").status_code == 200
    for bank in (INIT, VARIATIONS, REJECTED, f"{RUN}/bank.lmdb", f"{CHECKPOINT}/bank.lmdb"):
        assert client.post("/api/measure", params={"bank": bank}, headers=own).status_code == 202
        for _ in range(200):
            if client.get("/api/bank", params={"bank": bank}).json()["measured"]:
                break
            time.sleep(0.05)
        for address in ("page", "thumbs", "bank", "image", "png", "images", "answers", "neighbours"):
            parameters = {"bank": bank, "index": 1, "sort": "index"}
            if address == "answers":
                parameters["student"] = f"{RUN}/student.safetensors"
            assert client.get(f"/api/{address}", params=parameters).status_code == 200, (bank, address)
    assert client.get("/api/compare", params={"a": INIT, "b": VARIATIONS}).status_code == 200
    for method in ("pca", "tsne"):
        for _ in range(400):
            job = client.get("/api/scatter", params={"bank": [INIT, VARIATIONS], "method": method}).json()
            if job["state"] == "done":
                break
            time.sleep(0.05)
        assert job["state"] == "done", job
    for run in client.get("/api/library").json()["runs"]:
        assert client.get("/api/run", params={"run": run["name"]}).status_code == 200
    client.get("/api/page", params={"bank": "banks/odd/truncated.lmdb"})


def test_nothing_is_written_below_a_folder_that_cannot_be_written(own_folder):
    places = [own_folder.results, *own_folder.results.rglob("*")]
    for place in places:
        os.chmod(place, 0o555 if place.is_dir() else 0o444)
    before = snapshot(own_folder.results)
    try:
        with client_of(own_folder.results) as client:
            every_question(client)
        assert snapshot(own_folder.results) == before  # the administrator could have written all the same
    finally:
        for place in places:
            os.chmod(place, 0o755 if place.is_dir() else 0o644)


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(UserError, match="no such folder; name the results folder"):
        create_app(tmp_path / "absent")

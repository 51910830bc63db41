"""What networks say in the viewer against the networks themselves; features in the plane."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import silhouette_score
from viewer_tree import INIT, RUN, VARIATIONS, build, client_of, unpack

from dfkd.datasets.views import normalise, to_unit
from dfkd.errors import UserError
from dfkd.inspection.scores import scores_of, write_scores
from dfkd.inspection.sidecar import scores_file
from dfkd.inspection.viewer.index import Indexes
from dfkd.inspection.viewer.jobs import Cancelled, Job, Jobs, JobSteps
from dfkd.inspection.viewer.library import Library
from dfkd.inspection.viewer.scatter import scatter, stratified
from dfkd.models.weights import load_model

OWN = {"origin": "http://127.0.0.1:8765"}


def wait_for(condition):
    for _ in range(1200):
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("it did not come about within a minute")


@pytest.fixture(scope="module")
def measured(folder, reference):
    """The scores that `dfkd bank score` would keep."""
    return {name: scores_of(folder.results / name, None, reference) for name in (INIT, VARIATIONS)}


@pytest.fixture(scope="module")
def scored(tree, measured, tmp_path_factory):
    """A folder whose banks have their scores beside them."""
    folder = build(tree, tmp_path_factory.mktemp("scored") / "results")
    for name, scores in measured.items():
        write_scores(scores_file(folder.results / name), scores)
    return folder


def test_teacher_and_student_say_what_they_say(ask, folder, tree):
    teacher, _ = load_model(tree.teacher)
    batch = normalise(to_unit(tree.images[7:8]), tree.info)
    with torch.no_grad():
        expected = [network.eval()(batch).softmax(1)[0].numpy() for network in (teacher, folder.student)]
    found = ask("answers", bank=INIT, index=7, student=f"{RUN}/student.safetensors")
    assert np.allclose(found["teacher"], expected[0], atol=1e-5)
    assert np.allclose(found["student"], expected[1], atol=1e-5)
    assert ask("answers", bank=INIT, index=7)["student"] is None


def test_a_teacher_that_is_not_there_is_missed(client):
    refused = client.get("/api/answers", params={"bank": "banks/odd/names.lmdb", "index": 0})
    assert (refused.status_code, "its teacher is not below the folder" in refused.json()["error"]) == (404, True)
    refused = client.post("/api/measure", params={"bank": "banks/odd/names.lmdb"}, headers=OWN)
    assert refused.status_code == 404
    refused = client.get("/api/neighbours", params={"bank": INIT, "index": 0})
    assert (refused.status_code, "its features are not measured yet" in refused.json()["error"]) == (422, True)


def test_measured_on_request_and_in_memory_alone(own_folder, measured):
    with client_of(own_folder.results) as client:
        before = client.get("/api/bank", params={"bank": INIT}).json()
        assert (before["measured"], "bn_distance" in before["columns"], before["job"]) == (False, False, None)
        begun = client.post("/api/measure", params={"bank": INIT}, headers=OWN)
        assert (begun.status_code, begun.json()["title"]) == (202, f"measure {INIT}")
        after = wait_for(lambda: (now := client.get("/api/bank", params={"bank": INIT}).json())["measured"] and now)
        assert after["version"] != before["version"]
        page = unpack(client.get("/api/page", params={"bank": INIT, "size": 60}))
        scores = measured[INIT]
        assert set(page.columns) == {"index", *scores.columns}
        for name, values in scores.columns.items():
            assert np.allclose(page.columns[name], values, rtol=1e-4, atol=1e-4), name
        assert client.post("/api/measure", params={"bank": INIT}, headers=OWN).json()["state"] == "done"
    assert not scores_file(own_folder.results / INIT).exists()


def test_kept_scores_are_used_without_a_network(scored, measured):
    index = Indexes(Library(scored.results)).get(INIT)
    assert index.measured
    assert np.array_equal(index.columns["bn_distance"], measured[INIT].columns["bn_distance"])
    assert np.array_equal(index.features(), measured[INIT].features)


def test_scores_of_another_bank_or_damaged_ones_are_passed_over(own_folder, measured):
    write_scores(scores_file(own_folder.results / INIT), measured[VARIATIONS])
    scores_file(own_folder.results / VARIATIONS).write_bytes(b"rubbish")
    indexes = Indexes(Library(own_folder.results))
    assert (indexes.get(INIT).measured, indexes.get(INIT).note) == (False, "")
    assert not indexes.get(VARIATIONS).measured
    assert "not a whole scores file" in indexes.get(VARIATIONS).note


def test_neighbours_in_another_bank(scored, measured):
    with client_of(scored.results) as client:
        found = unpack(client.get("/api/neighbours", params={"bank": INIT, "index": 5, "within": VARIATIONS, "count": 4}))
    one, other = (values.features.astype(float) for values in measured.values())
    cosines = other @ one[5] / np.linalg.norm(other, axis=1) / np.linalg.norm(one[5])
    assert np.allclose(found.cosines, np.sort(cosines)[::-1][:4], atol=1e-3)
    assert np.allclose(cosines[found.columns["index"]], found.cosines, atol=1e-3)
    assert found.bank == VARIATIONS


def test_a_sample_has_the_shares_of_the_classes():
    labels = np.repeat([0, 1, 2], [6000, 3000, 3])
    chosen = stratified(labels, 1000)
    counts = np.bincount(labels[chosen])
    assert (len(chosen), len(set(chosen.tolist()))) == (1000, 1000)
    assert abs(counts[0] - 2 * counts[1]) <= 4
    assert counts[2] >= 1
    assert np.array_equal(chosen, stratified(labels, 1000))
    assert np.array_equal(stratified(labels[:5], 1000), np.arange(5))


def test_pca_is_the_projection_on_the_first_two_directions(scored, measured):
    indexes = [Indexes(Library(scored.results)).get(name) for name in (INIT, VARIATIONS)]
    found = scatter(indexes, "pca", Job(""), threading.Event())
    points = np.concatenate([scores.features.astype(float) for scores in measured.values()])
    points -= points.mean(0)
    _, values, directions = np.linalg.svd(points, full_matrices=False)
    plane = points @ directions[:2].T
    for number, axis in enumerate("xy"):
        assert np.allclose(np.abs(found[axis]), np.abs(plane[:, number]), atol=2e-3 * np.abs(plane).max())
    assert found["explained"] == pytest.approx((values[:2] ** 2).sum() / (values**2).sum(), abs=1e-4)
    assert found["bank"] == [0] * 60 + [1] * 89
    assert found["index"] == [*range(60), *range(89)]
    assert found["label"] == np.concatenate([scores.columns["label"] for scores in measured.values()]).tolist()


class Plane(SimpleNamespace):
    """What a scatter needs of a bank."""

    def __len__(self):
        return len(self.columns["label"])


def test_tsne_keeps_clusters_apart_reports_its_rounds_and_can_be_stopped():
    generator = np.random.default_rng(0)
    labels = np.arange(150) % 3
    features = (generator.normal(size=(150, 12)) + 8 * np.eye(12)[labels]).astype(np.float16)
    index = Plane(features=lambda: features, columns={"label": labels, "prediction": labels}, classes=list("abc"), name="x")
    job = Job("")
    found = scatter([index], "tsne", job, threading.Event())
    assert (job.done, job.total) == (4, 4)
    assert silhouette_score(np.stack([found["x"], found["y"]], 1), labels) > 0.7
    stop = threading.Event()
    stop.set()
    with pytest.raises(Cancelled):
        scatter([index], "tsne", Job(""), stop)


def test_jobs_run_one_after_the_other_and_failures_are_told():
    jobs = Jobs()
    order = []

    def work(name):
        def act(job, stop):
            steps = JobSteps(job, 2, stop)
            for _ in range(2):
                order.append(name)
                steps.advance()
            return name

        return act

    def fail(job, stop):
        raise UserError("this did not work.")

    def crash(job, stop):
        raise ZeroDivisionError("by accident")

    first = jobs.begin("a", "first", work("a"))
    assert jobs.begin("a", "again", work("x")) is first
    failed, crashed, last = jobs.begin("f", "f", fail), jobs.begin("c", "crash", crash), jobs.begin("b", "last", work("b"))
    wait_for(lambda: last.state == "done")
    assert order == ["a", "a", "b", "b"]
    assert (first.result, first.done, first.total) == ("a", 2, 2)
    assert (failed.state, failed.error) == ("failed", "this did not work.")
    assert (crashed.state, crashed.error) == ("failed", "crash failed: by accident.")
    assert jobs.begin("f", "f", work("f")) is not failed
    jobs.end()

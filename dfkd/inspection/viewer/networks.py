"""Teachers and students: loaded when they are first asked, kept, asked about one image or a whole bank."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from dfkd.errors import UserError
from dfkd.inspection.viewer.index import BankIndex, Recent
from dfkd.inspection.viewer.jobs import Job, JobSteps
from dfkd.inspection.viewer.library import Found, Library, Network

if TYPE_CHECKING:
    from dfkd.inspection.sidecar import BankScores
    from dfkd.runtime import Runtime

NETWORKS = 6  # kept in memory


def teacher_of(found: Found, sha256: str) -> Network | None:
    """The network with this SHA-256."""
    return next((network for network in found.networks.values() if network.card.get("sha256") == sha256), None)


def students_of(found: Found, sha256: str) -> list[Network]:
    """The students that were distilled from this teacher."""
    return [
        network
        for network in found.networks.values()
        if network.card.get("role") == "student" and _lineage(network).get("teacher") == sha256
    ]


def _lineage(network: Network) -> dict[str, Any]:
    lineage = network.card.get("lineage")
    return lineage if isinstance(lineage, dict) else {}


class Networks:
    """Networks of the folder, on one device."""

    def __init__(self, library: Library, device: str = "auto") -> None:
        self.library, self.device = library, device
        self._kept: Recent[Any] = Recent(NETWORKS)
        self._lock = threading.Lock()
        self._runtime: Runtime | None = None

    def runtime(self) -> Runtime:
        """fp32, on the device that was asked for."""
        from dfkd.runtime import Runtime

        if self._runtime is None:
            self._runtime = Runtime.create("reference", self.device)
        return self._runtime

    def _fitting(self, network: Network, index: BankIndex) -> tuple[Any, Any]:
        """The network and its card, if it takes the images of this bank."""
        from dfkd.models.weights import load_model

        path = self.library.resolve(network.name)
        key = (network.name, path.stat().st_mtime_ns, network.card.get("sha256"))
        model, card = self._kept.get_or(key, lambda: load_model(path, self.runtime()))
        if card.dataset.shape != index.meta.dataset.shape or len(card.dataset.classes) != len(index.classes):
            raise UserError(f"{network.name}: its images or classes are not those of {index.name}.")
        return model, card

    def probabilities(self, network: Network, index: BankIndex, image: int) -> list[float]:
        """What the network gives each class for one image.

        Raises:
            UserError: the weights are damaged, or the image does not fit them.
        """
        with self._lock:
            import torch

            from dfkd.evaluation.predict import predict

            model, card = self._fitting(network, index)
            pixels = torch.from_numpy(index.file.pixels(index.at([image])))
            answers = predict(model, pixels, card.dataset, self.runtime()).softmax(1)[0]
            return [float(f"{value:.6g}") for value in np.asarray(answers).tolist()]

    def measure(self, teacher: Network, index: BankIndex, job: Job, stop: threading.Event) -> BankScores:
        """Score every image of the bank; nothing is written.

        Raises:
            UserError: the teacher does not fit, or a block is damaged.
        """
        from dfkd.bank.reader import BankReader
        from dfkd.inspection.scores import measure

        with self._lock:
            model, card = self._fitting(teacher, index)
        reader = BankReader(index.file.path, allow_incomplete=True)
        steps = JobSteps(job, reader.meta.blocks, stop)
        return measure(reader, model, card.architecture, card.sha256, self.runtime(), steps=steps)

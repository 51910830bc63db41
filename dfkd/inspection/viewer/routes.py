"""What each address of the viewer answers. Every answer is made of the folder's files alone."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dfkd.errors import UserError
from dfkd.inspection.sidecar import MEASURED
from dfkd.inspection.viewer.compare import class_counts, compared, ranges
from dfkd.inspection.viewer.index import BankIndex, Indexes, Recent, framed, plain
from dfkd.inspection.viewer.jobs import Job, Jobs
from dfkd.inspection.viewer.library import Library, Missing
from dfkd.inspection.viewer.networks import Networks, students_of, teacher_of
from dfkd.inspection.viewer.runs import Run, last_of, read_rows, read_state
from dfkd.inspection.viewer.scatter import scatter

MOST_IMAGES = 500  # of one answer
MOST_BANKS = 8  # of a scatter
RELATIVES = 48  # of an image, shown at most


class Viewer:
    """The answers to all requests on one folder."""

    def __init__(self, library: Library, device: str = "auto") -> None:
        self.library = library
        self.indexes = Indexes(library)
        self.networks = Networks(library, device)
        self.jobs = Jobs()
        self._rows: Recent[dict[str, list[float | None]]] = Recent(256)

    def routes(self) -> list[Route]:
        """Addresses below `/api`."""
        gets: dict[str, Callable[[Request], Response]] = {
            "library": self.list_all,
            "thumbs": self.thumbs,
            "bank": self.bank,
            "page": self.page,
            "images": self.images,
            "image": self.image,
            "png": self.png,
            "answers": self.answers,
            "neighbours": self.neighbours,
            "compare": self.compare,
            "scatter": self.scatter,
            "run": self.run,
        }
        routes = [Route(f"/api/{name}", answer, methods=["GET"]) for name, answer in gets.items()]
        return [*routes, Route("/api/measure", self.measure, methods=["POST"])]

    def list_all(self, request: Request) -> Response:
        """All banks and runs below the folder."""
        found = self.library.find()
        runs = [self._outlined(run) for run in found.runs.values()]
        banks = [bank.described() for bank in found.banks.values()]
        return as_json({"root": self.library.given, "banks": banks, "runs": runs})

    def thumbs(self, request: Request) -> Response:
        """A few images of a bank, for the list."""
        bank = self.library.bank(request.query_params.get("bank", ""))
        assert bank.outline.thumbs is not None
        return as_frame(framed(bank.outline.thumbs, columns={"index": list(range(len(bank.outline.thumbs)))}))

    def bank(self, request: Request) -> Response:
        """What the page of a bank says besides its images."""
        index = self._index(request)
        meta, found = index.meta, self.library.find()
        parent, children = self.library.relatives(index.name)
        teacher = teacher_of(found, meta.teacher_sha256)
        job = self.jobs.get(self._measure_key(index))
        own_run = next((run.folder for run in found.runs.values() if run.bank == index.name), None)
        return as_json(
            {
                "name": index.name,
                "version": version(index),
                "kind": meta.kind,
                "growing": meta.status != "complete",
                "images": len(index),
                "dataset": meta.dataset.name,
                "classes": index.classes,
                "shape": list(meta.dataset.shape),
                "counts": class_counts(index),
                "columns": list(index.columns),
                "meanings": {name: text for name, text in MEASURED.items() if index.measured and name in index.columns},
                "ranges": ranges(index),
                "measured": index.measured,
                "note": self.library.below(index.note),
                "job": job.described() if job else None,
                "teacher": teacher.described() if teacher else None,
                "teacher_sha256": meta.teacher_sha256,
                "students": [network.described() for network in students_of(found, meta.teacher_sha256)],
                "run": own_run,
                "parent": parent.name if parent else None,
                "children": [{"name": child.name, "kind": child.meta.kind} for child in children if child.meta],
                "made_by": {
                    "stage": meta.stage, "version": meta.stage_version, "seed": meta.seed, "settings": meta.settings,
                    "extra": meta.extra, "lineage": meta.lineage,
                },
            }
        )  # fmt: skip

    def page(self, request: Request) -> Response:
        """A page of the images that are selected, in their order."""
        index = self._index(request)
        query = request.query_params
        order = index.order(query.get("where", ""), numbers(query.get("class", ""), "class"), query.get("sort", "index"))
        size = number(query.get("size", "200"), "size", 1, MOST_IMAGES)
        start = number(query.get("page", "0"), "page", 0, 10**9) * size
        rows = order[start : start + size].astype(np.int64)
        return as_frame(
            index.frame(rows, total=len(order), start=start, of=len(index), classes=index.classes, version=version(index))
        )

    def images(self, request: Request) -> Response:
        """Named images, in the order in which they are named."""
        index = self._index(request)
        rows = numbers(request.query_params.get("index", ""), "index")[:MOST_IMAGES]
        return as_frame(index.frame(index.at(rows), version=version(index)))

    def image(self, request: Request) -> Response:
        """One image: its columns and its family."""
        index = self._index(request)
        place = self._place(request, index)
        values = {name: column[0] for name, column in index.values(index.at([place])).items()}
        return as_json({"bank": index.name, "values": values, "relatives": self._relatives(index, place)})

    def png(self, request: Request) -> Response:
        """One image as a file, as it is stored."""
        index = self._index(request)
        pixels = index.file.pixels(index.at([self._place(request, index)]))[0]
        picture = Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
        file = io.BytesIO()
        picture.save(file, format="PNG")
        return Response(file.getvalue(), media_type="image/png")

    def answers(self, request: Request) -> Response:
        """Probabilities that the teacher, and the student that is named, give one image."""
        index = self._index(request)
        place = self._place(request, index)
        found = self.library.find()
        teacher = teacher_of(found, index.meta.teacher_sha256)
        if teacher is None:
            raise Missing(f"{index.name}: its teacher is not below the folder; start the viewer on the results folder.")
        answers = {"teacher": self.networks.probabilities(teacher, index, place), "student": None}
        wanted = request.query_params.get("student", "")
        if wanted:
            students = {network.name: network for network in students_of(found, index.meta.teacher_sha256)}
            if wanted not in students:
                raise Missing(f"{wanted}: no student of this bank's teacher has this name.")
            answers["student"] = self.networks.probabilities(students[wanted], index, place)
        return as_json(answers)

    def neighbours(self, request: Request) -> Response:
        """The nearest images in the teacher's feature space, in this bank or in another one."""
        index = self._index(request)
        place = self._place(request, index)
        other = self._index(request, "within") if request.query_params.get("within") else index
        if index.meta.teacher_sha256 != other.meta.teacher_sha256:
            raise UserError(f"{other.name}: measured by another teacher, so its features cannot be compared.")
        count = number(request.query_params.get("count", "16"), "count", 1, MOST_IMAGES)
        rows, cosines = other.neighbours(index.features()[place], count, place if other is index else None)
        return as_frame(other.frame(rows.astype(np.int64), bank=other.name, cosines=plain(cosines)))

    def compare(self, request: Request) -> Response:
        """Figures of two banks."""
        return as_json(compared(self._index(request, "a"), self._index(request, "b")))

    def scatter(self, request: Request) -> Response:
        """The job that puts features into the plane, begun if it was not; with its points when it is done."""
        names = request.query_params.getlist("bank")[:MOST_BANKS]
        method = request.query_params.get("method", "pca")
        if not names or method not in ("pca", "tsne"):
            raise UserError("a scatter needs banks and a method, pca or tsne.")
        indexes = [self.indexes.get(name) for name in names]
        for index in indexes:
            index.features()
            if index.meta.teacher_sha256 != indexes[0].meta.teacher_sha256:
                raise UserError(f"{index.name}: measured by another teacher, so its features cannot lie in the same plane.")
        title = f"{'PCA' if method == 'pca' else 't-SNE'} of {', '.join(names)}"
        key = ("scatter", method, tuple((index.name, version(index)) for index in indexes))
        job = self.jobs.begin(key, title, lambda job, stop: scatter(indexes, method, job, stop))  # type: ignore[arg-type]
        return as_json(job.described() | {"result": job.result})

    def run(self, request: Request) -> Response:
        """A run's figures so far."""
        runs = self.library.find().runs
        name = request.query_params.get("run", "")
        if name not in runs:
            raise Missing(f"{name}: there is no such run (any more).")
        run = runs[name]
        rows, note = self._history(run)
        return as_json(self._outlined(run) | {"rows": rows, "note": note})

    def measure(self, request: Request) -> Response:
        """Begin to measure a bank with its teacher; in memory alone."""
        index = self._index(request)
        if index.measured:
            return as_json(Job("measured", "done").described())
        teacher = teacher_of(self.library.find(), index.meta.teacher_sha256)
        if teacher is None:
            raise Missing(f"{index.name}: its teacher is not below the folder; start the viewer on the results folder.")

        def work(job: Job, stop: Any) -> None:
            self.indexes.keep(index.name, index.signature, self.networks.measure(teacher, index, job, stop))

        job = self.jobs.begin(self._measure_key(index), f"measure {index.name}", work)
        return as_json(job.described(), 202)

    def _index(self, request: Request, key: str = "bank") -> BankIndex:
        return self.indexes.get(request.query_params.get(key, ""))

    def _place(self, request: Request, index: BankIndex) -> int:
        place = number(request.query_params.get("index", ""), "index", 0, 10**9)
        return int(index.at([place])[0])

    def _measure_key(self, index: BankIndex) -> tuple[str, str, str]:
        return "measure", index.name, version(index)

    def _relatives(self, index: BankIndex, place: int) -> list[dict[str, Any]]:
        """Groups of images: the parent, other variations of the parent, variations of this image, those that were dropped."""
        parent, children = self.library.relatives(index.name)
        groups = []
        own_parent = int(index.columns["parent"][place])
        if parent is not None and own_parent >= 0:
            groups.append(_group("parent", parent.name, [own_parent]))
            siblings = np.flatnonzero(index.columns["parent"] == own_parent)
            groups.append(_group("others of the same parent", index.name, siblings[siblings != place].tolist()))
        for child in children:
            rows = np.flatnonzero(self.indexes.get(child.name).columns["parent"] == place)
            title = "variations" if child.meta and child.meta.kind == "variations" else "rejected by the fidelity filter"
            groups.append(_group(title, child.name, rows.tolist()))
        return sorted(groups, key=lambda group: group["title"] == "rejected by the fidelity filter")

    def _outlined(self, run: Run) -> dict[str, Any]:
        rows, _ = self._history(run)
        changed = [self._modified(file) for file in (*run.histories, *([run.bank] if run.bank else []))]
        if run.checkpoint:
            changed.append(self._modified(f"{run.checkpoint}/state.pt"))
        return {
            "name": run.name, "running": run.running, "bank": run.bank, "last": last_of(rows),
            "modified": max(changed, default=0.0),
        }  # fmt: skip

    def _modified(self, name: str) -> float:
        try:
            return self.library.resolve(name).stat().st_mtime
        except (UserError, OSError):
            return 0.0

    def _history(self, run: Run) -> tuple[dict[str, list[float | None]], str]:
        """The rows of a run and what is wrong with them."""
        try:
            for file in run.histories:
                path = self.library.resolve(file)
                rows = self._rows.get_or((file, path.stat().st_mtime_ns), lambda path=path: read_rows(path))  # type: ignore[misc]
                if rows:
                    return rows, ""
            if run.checkpoint:
                file = f"{run.checkpoint}/state.pt"
                path = self.library.resolve(file)
                return self._rows.get_or((file, path.stat().st_mtime_ns), lambda: read_state(path.parent)), ""
        except Missing:
            pass
        except (UserError, OSError) as error:
            return {}, self.library.below(str(error))
        return {}, ""


def _group(title: str, bank: str, rows: list[int]) -> dict[str, Any]:
    return {"title": title, "bank": bank, "index": rows[:RELATIVES], "total": len(rows)}


def version(index: BankIndex) -> str:
    """Changes whenever the bank's file does, or its measured scores come."""
    return f"{index.signature[1]:x}-{index.signature[2]:x}-{index.signature[3]:x}-{int(index.measured)}"


def number(text: str, name: str, low: int, high: int) -> int:
    """A whole number of a query. Anything else is a `UserError`."""
    if not text.isascii() or not text.isdigit() or len(text) > 10 or not low <= int(text) <= high:
        raise UserError(f"{name}={text[:40]}: not a whole number from {low} to {high}.")
    return int(text)


def numbers(text: str, name: str) -> list[int]:
    """Whole numbers, separated by commas; none of an empty text."""
    return [number(part, name, 0, 10**9) for part in text.split(",")] if text else []


def as_json(content: Any, status: int = 200) -> Response:
    """A JSON answer."""
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return Response(text.encode("utf-8", "backslashreplace"), status, media_type="application/json")


def as_frame(content: bytes) -> Response:
    """Columns and pixels, see `BankIndex.frame`."""
    return Response(content, media_type="application/octet-stream")

"""The viewer, as a browser sees it: first paint, page turns, and what its server takes."""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import io
import json
import logging
import shutil
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import numpy as np
from PIL import Image

from benchmarks.bank import bank_path, make_bank
from benchmarks.settings import Options
from benchmarks.table import Row, Section

if TYPE_CHECKING:
    from playwright.sync_api import Page

logger = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parents[1]
PAGE = 200  # images
CASES = {
    "as in the bank": {},
    "sorted": {"sort": "-entropy"},
    "sorted, condition and three classes": {"sort": "confidence", "where": "entropy < 0.5 and label != 3", "class": "1,2,5"},
}
PAINT_TARGET, TURN_TARGET = "≤ 1", "≤ 0.2"  # seconds


@contextlib.contextmanager
def server(folder: Path) -> Iterator[tuple[str, int, float]]:
    """`dfkd bank browse`: its address, its process, seconds until it answered."""
    begin = time.perf_counter()
    words = [sys.executable, "-m", "dfkd.cli", "bank", "browse", str(folder.resolve()), "--no-open", "--port", "0"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        address = next(word for word in line.split() if word.startswith("http"))
        urllib.request.urlopen(address).read()
        yield address, process.pid, time.perf_counter() - begin
    finally:
        process.terminate()
        process.wait()


def has_browser() -> bool:
    """Whether there is a Chromium, and Playwright to drive it."""
    return shutil.which("chromium") is not None and importlib.util.find_spec("playwright") is not None


@contextlib.contextmanager
def browser_page() -> Iterator[Page]:
    """A tab of Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield chromium.new_page(viewport={"width": 1400, "height": 1000})
        chromium.close()


def opened(page: Page, address: str, query: dict[str, Any]) -> tuple[float, float]:
    """Open a bank; seconds until something was painted, and until its images were."""
    page.goto(f"{address}?{urlencode({'view': 'bank', **query})}")
    durations(page, "page", 1)
    paints = page.evaluate("performance.getEntriesByName('first-contentful-paint').map(entry => entry.startTime)")
    return paints[0] / 1000, durations(page, "page", 1)[0]


def durations(page: Page, name: str, count: int) -> list[float]:
    """Seconds of the measures of this name, once there are `count` of them."""
    found: list[float] = []
    for _ in range(3000):
        found = page.evaluate(f"performance.getEntriesByName('{name}').map(entry => entry.duration)")
        if len(found) >= count:
            return [value / 1000 for value in found]
        time.sleep(0.01)
    raise TimeoutError(f"{len(found)} of {count} measures '{name}' after 30 s")


def turned(page: Page, turns: int, pause: float) -> list[float]:
    """Turn to the next page, `turns` times, looking at each for `pause` seconds: from the key to the images on the screen."""
    for turn in range(turns):
        page.keyboard.press("PageDown")
        durations(page, "page turn", turn + 1)
        time.sleep(pause)
    return durations(page, "page turn", turns)


def jumped(page: Page, turns: int, last: int) -> list[float]:
    """Go to pages that nothing was fetched for: from the key to the images on the screen."""
    before = len(page.evaluate("performance.getEntriesByName('page turn')"))
    field = page.get_by_label("Page", exact=True)
    now = int(field.input_value()) - 1
    others = [number for number in range(last + 1) if number not in (now, now + 1)]  # the next one is there already
    targets = np.random.default_rng(0).permutation(others)[:turns].tolist()
    for number, target in enumerate(targets):
        field.fill(str(target + 1))
        page.keyboard.press("Enter")
        durations(page, "page turn", before + number + 1)
    return durations(page, "page turn", before + len(targets))[before:]


def resident(process: int, key: str) -> float:
    """Megabytes of a process: `VmRSS` now, `VmHWM` at most so far."""
    status = Path(f"/proc/{process}/status")
    if not status.exists():  # not Linux
        return float("nan")
    line = next(line for line in status.read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) / 1000


def transports(address: str, bank: str, page: Page, repeats: int) -> tuple[list[Row], dict[str, list[float]]]:
    """A page of images as raw bytes, which the viewer sends, against the same as a PNG."""
    samples: dict[str, list[float]] = {name: [] for name in ("raw: answer", "PNG: packing", "raw: drawing", "PNG: drawing")}
    for number in range(repeats):
        begin = time.perf_counter()
        query = urlencode({"bank": bank, "size": PAGE, "sort": "-entropy", "page": number})
        content = urllib.request.urlopen(f"{address}api/page?{query}").read()
        samples["raw: answer"].append(time.perf_counter() - begin)
        length = int.from_bytes(content[:4], "little")
        channels, height, width = json.loads(content[4 : 4 + length])["shape"]
        pixels = np.frombuffer(content[4 + length :], np.uint8).reshape(-1, 20, channels, height, width)
        picture = pixels.transpose(0, 3, 1, 4, 2).reshape(-1, 20 * width, channels)
        begin = time.perf_counter()
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "PNG", compress_level=1)
        samples["PNG: packing"].append(time.perf_counter() - begin)
        for name, kind, sent in (("raw: drawing", "raw", content[4 + length :]), ("PNG: drawing", "png", file.getvalue())):
            seconds = page.evaluate(DRAW, [kind, base64.b64encode(sent).decode(), 20 * width, picture.shape[0], height, width])
            samples[name].append(seconds / 1000)
    median = {name: statistics.median(values) for name, values in samples.items()}
    raw_size, png_size = (len(sent) / 1e3 for sent in (content[4 + length :], file.getvalue()))
    rows = [
        Row("a page of images, raw: answered and drawn", median["raw: answer"] + median["raw: drawing"], "s",
            note=f"{raw_size:,.0f} kB; drawing {median['raw: drawing'] * 1e3:.1f} ms"),
        Row("the same as a PNG, zlib level 1", median["raw: answer"] + median["PNG: packing"] + median["PNG: drawing"], "s",
            note=f"{png_size:,.0f} kB of noise; packing {median['PNG: packing'] * 1e3:.1f} ms, drawing "
            f"{median['PNG: drawing'] * 1e3:.1f} ms"),
    ]  # fmt: skip
    return rows, samples


DRAW = """async ([kind, text, width, height, tall, wide]) => {
  const sent = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  const begin = performance.now();
  if (kind === "png") pen.drawImage(await createImageBitmap(new Blob([sent], { type: "image/png" })), 0, 0);
  else {
    const columns = width / wide;
    const { paint } = await import("/static/api.js");
    const count = sent.length / (3 * tall * wide);
    paint(canvas, { shape: [3, tall, wide], pixels: sent }, [...Array(count).keys()], columns);
  }
  pen.getImageData(0, 0, 1, 1);
  return performance.now() - begin;
}"""


def figures(name: str, values: list[float], target: str, note: str) -> list[Row]:
    """Median and maximum."""
    more = f"{len(values)} of them; {note}" if note else f"{len(values)} of them"
    return [
        Row(f"{name}: median", statistics.median(values), "s", target, more),
        Row(f"{name}: maximum", max(values), "s", target),
    ]


def measure(options: Options, folder: Path) -> Section:
    """Browse the large bank in `folder`, which is made if it is not there."""
    count = options.large_bank
    title = f"Viewer: a bank of {count:,} images, {PAGE} a page"
    if not has_browser():
        return Section(title, [Row("not measured", "no", note="needs chromium and the package playwright")])
    path = bank_path(folder, count)
    if not path.exists():
        make_bank(path, count)
    rows: list[Row] = []
    samples: dict[str, list[float]] = {}
    paint_target, turn_target = (PAINT_TARGET, TURN_TARGET) if count == 100_000 else ("", "")
    with server(folder) as (address, process, seconds), browser_page() as page:
        rows.append(Row("server: from the command to its first answer", seconds, "s"))
        for name, query in CASES.items():
            painted, drawn = opened(page, address, {"bank": path.name, **query})
            first = "the bank is read and checked meanwhile" if not samples else ""
            rows += [
                Row(f"{name}: first paint", painted, "s", paint_target),
                Row(f"{name}: first page of images", drawn, "s", paint_target, first),
            ]
            samples[f"{name}: first page"] = [drawn]
            last = int(page.get_by_label("Page", exact=True).get_attribute("max") or 1) - 1
            if last < 1:  # a small bank
                continue
            turns = turned(page, min(options.turns, last), 0.4)
            jumps = jumped(page, min(options.turns, last), last)
            samples |= {f"{name}: turns": turns, f"{name}: jumps": jumps}
            rows += figures(f"{name}: to the next page", turns, turn_target, "fetched ahead")
            rows += figures(f"{name}: to any page", jumps, turn_target, "")
            logger.info("viewer, %s: painted in %.2f s, turn %.3f s", name, painted, statistics.median(turns))
        compared, more = transports(address, path.name, page, options.loads)
        rows += compared
        samples |= more
        rows.append(Row("server: resident memory", resident(process, "VmRSS"), "MB", note="without torch, which no page needs"))
        rows.append(Row("server: peak", resident(process, "VmHWM"), "MB"))
    return Section(title, rows, samples)

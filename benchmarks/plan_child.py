"""One Snakemake in a process of its own, which says what it took: `python -m benchmarks.plan_child FILE WORD...`.

FILE gets status, seconds of CPU and peak memory as JSON; the words are Snakemake's. With `--finish` before them nothing is run:
every job of the plan leaves its outputs empty, with the records that Snakemake keeps of jobs that ran. Imports no torch.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any


def finish(scheduler: Any) -> bool:
    """In place of `JobScheduler.schedule`: outputs and records of every job, level by level."""
    workflow = scheduler.workflow

    async def write() -> None:
        for level in workflow.dag.toposorted():
            for job in level:
                for output in job.output:
                    output.prepare()
                    output.touch_or_create()
                await workflow.persistence.finished(job)

    workflow.async_run(write())
    return True


def peak_memory() -> int:
    """Bytes that this process had resident at most; the process it was forked from does not count on Linux."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def main() -> None:
    answer, *words = sys.argv[1:]
    from snakemake.cli import main as snakemake

    if words[0] == "--finish":
        from snakemake.scheduling.job_scheduler import JobScheduler

        del words[0]
        JobScheduler.schedule = finish  # type: ignore[method-assign]
    sys.argv = ["snakemake", *words]
    status: Any = 0
    try:
        snakemake()
    except SystemExit as ended:
        status = ended.code or 0
    Path(answer).write_text(json.dumps({"status": status, "cpu": time.process_time(), "peak": peak_memory()}))


if __name__ == "__main__":
    main()

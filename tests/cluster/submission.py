"""Snakemake on the cluster while a test disturbs it: its jobs, what their stages log, and the list of them."""

import re
import subprocess
import sys
from dataclasses import dataclass, field

import slurm
import yaml
from workflow_tools import ROOT, Workflow

GROUPS = ("merge", "pages", "evaluation")


def laid_over(below, above):
    """The two profiles, key by key."""
    both = {key: laid_over(below[key], above[key]) for key in below.keys() & above.keys() if isinstance(above[key], dict)}
    return {**below, **above, **both}


def profile(folder, overlay):
    """The shipped profile under an overlay, as a profile of its own."""
    shipped = yaml.safe_load((ROOT / "workflow" / "profiles" / "slurm" / "config.yaml").read_text())
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(laid_over(shipped, overlay)))
    return folder


def rule_of(job):
    """The rule in the comment that the plugin gives a job, `rule_NAME_wildcards_…`; the group of `rule_GROUP_RULE_RULE…`."""
    name = re.match(r"rule_(.+?)(?:_wildcards_.*)?$", job["Comment"])[1]
    return next((group for group in GROUPS if name.startswith(f"{group}_")), name)


def steps(log):
    """The first and the last step that a stage's log reports as done; None if it reports none."""
    found = [int(step) for step in re.findall(r" (\d+)/\d+  [\d.]+ steps/s", log)]
    return (found[0], found[-1]) if found else None


class Submission:
    """Snakemake in the background. Nothing waits for long unless something is wrong; the machine may be busy."""

    def __init__(self, workflow, profile, *targets):
        self.workflow, self._out = workflow, workflow.folder / "snakemake.txt"
        self.logs = {}  # rule → what each attempt logged: the next one empties the file
        self._before = {job["JobId"] for job in slurm.jobs()}
        words = [sys.executable, "-m", "snakemake", *workflow.place(), "--workflow-profile", str(profile), "--", *targets]
        with self._out.open("w") as out:
            self.process = subprocess.Popen(words, cwd=workflow.folder, env=workflow.environment, stdout=out, stderr=out)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.kill()  # nothing is left to kill after finish(); its jobs end with the cluster
        self.process.wait()

    def jobs(self, rule=None):
        """The jobs that were submitted, for this rule or group or for all, in order."""
        own = [job for job in slurm.jobs() if job["JobId"] not in self._before]
        return [job for job in own if rule in (None, rule_of(job))]

    def running(self):
        """The rules of the jobs that run now."""
        return [rule_of(job) for job in self.jobs() if job["JobState"] == "RUNNING"]

    def wait(self, condition, what):
        """Wait until the condition holds, and note meanwhile what the stages log."""

        def noted():
            self._note()
            assert self.process.poll() is None, f"Snakemake ended before {what}:\n{self._out.read_text()}"
            return condition()

        return slurm.wait(noted, 900, f"not yet: {what}")

    def reach(self, rule, *states):
        """Wait until the rule's jobs are in these states."""
        self.wait(lambda: [job["JobState"] for job in self.jobs(rule)] == [*states], f"{rule} is {', '.join(states)}")

    def finish(self):
        """Wait for Snakemake's end; what it left behind."""
        slurm.wait(lambda: self._note() or self.process.poll() is not None, 900, "Snakemake does not end")
        rules = {rule: self.jobs(rule) for rule in map(rule_of, self.jobs())}
        return Outcome(self.workflow, self.process.returncode, self._out.read_text(), self.logs, rules)

    def _note(self):
        logs = self.workflow.folder / "logs"
        for file in logs.glob("*/**/*.log"):
            text, seen = file.read_text(), self.logs.setdefault(file.relative_to(logs).parts[0], [""])
            seen[-1:] = [text] if text.startswith(seen[-1]) else [seen[-1], text]


@dataclass
class Outcome:
    """What a run on the cluster left behind."""

    workflow: Workflow
    status: int
    said: str
    logs: dict
    rules: dict
    drained: tuple = field(default=())

    def states(self):
        """The ends of each rule's jobs."""
        return {rule: [job["JobState"] for job in jobs] for rule, jobs in self.rules.items()}

    def write(self, path, notes):
        """The list of the jobs as Markdown; `notes` says what was done to which: (rule, attempt) → text."""
        head = ["job", "rule or group", "attempt", "end", "ran", "time limit", "memory", "GPUs", "steps logged", ""]
        rows = []
        for rule, jobs in self.rules.items():
            for attempt, job in enumerate(jobs, 1):
                logs = self.logs.get(rule, [])
                logged = steps(logs[attempt - 1]) if attempt <= len(logs) else None
                end = f"{job['JobState']} ({job['Reason']})" if job["Reason"] != "None" else job["JobState"]
                gpus = job.get("TresPerJob", ":0").rpartition(":")[2]
                asked = [job[key] for key in ("RunTime", "TimeLimit", "MinMemoryNode")]
                row = [int(job["JobId"]), rule, attempt, end, *asked, gpus, "{}–{}".format(*logged) if logged else ""]
                rows.append([*row, notes.get((rule, attempt), "")])
        table = [head, ["---"] * len(head), *sorted(rows)]
        lines = ["| " + " | ".join(map(str, row)) + " |" for row in table]
        title = f"# Jobs of the digits workflow on {slurm.ask('sinfo', '--version').strip()}"
        path.write_text("\n".join([title, "", *lines, ""]))

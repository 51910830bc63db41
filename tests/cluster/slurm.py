"""A SLURM of one node on this machine, for as long as a test runs: real daemons, a pretend GPU for each harmless device file.

Everything lies in a folder of the caller's but the configuration, which has to be /etc/slurm/slurm.conf: a job step started
by Snakemake's plugin looks nowhere else. Jobs end with the daemons, and those with the process that started them.
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ETC = Path("/etc/slurm")
MARK = "# written by tests/cluster/slurm.py of dfkd; removed when its SLURM stops\n"
DEVICES = ("/dev/null", "/dev/zero")  # any device file can pose as a GPU where no cgroup fences devices
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "setpriv")

CONFIGURATION = """\
ClusterName=dfkdtest
SlurmctldHost=localhost
SlurmctldPort={control}
SlurmdPort={daemon}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/control
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
# no cgroups: they are not to be had in every container. Memory is then watched by polling.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
# the node may be called larger than it is, so that the resources of a real profile fit
SlurmdParameters=config_overrides
# a node that went down comes back when it is told to
ReturnToService=0
# a killed job's time to save its state
KillWait=10
# quick turns; jobs are remembered until the last is asked about
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=5
MinJobAge=7200
NodeName=localhost NodeAddr=127.0.0.1 CPUs=16 RealMemory=128000 Gres=gpu:{gpus} State=UNKNOWN
PartitionName=main Nodes=localhost Default=YES MaxTime=INFINITE DefMemPerCPU=500 State=UP
"""


def missing():
    """Why no SLURM can be started here, as a sentence; empty if it can."""
    if os.geteuid() != 0:
        return "the tests of the cluster start SLURM's daemons and need root: run them as root, in a container for example."
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"the tests of the cluster need {', '.join(absent)}: install Debian's slurm-wlm and munge."
    for name in ("slurm.conf", "gres.conf"):
        file = ETC / name
        if file.exists() and not file.read_text().startswith(MARK):
            return f"{file}: this machine has a SLURM of its own, which the tests leave alone: run them elsewhere."
    return ""


def ask(*words):
    """The output of one of SLURM's commands."""
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout


def jobs():
    """Every job that this SLURM has seen, oldest first: SLURM's own names → values."""
    lines = ask("scontrol", "--oneliner", "show", "job").splitlines()
    found = [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in lines if line.startswith("JobId")]
    return sorted(found, key=lambda job: int(job["JobId"]))


def node():
    """The state of the node, e.g. `IDLE+DRAIN`."""
    return next(word for word in ask("scontrol", "show", "node", "localhost").split() if word.startswith("State="))[6:]


def set_node(state):
    """Tell the node to be in this state."""
    ask("scontrol", "update", "NodeName=localhost", f"State={state}", "Reason=test")


def crash_node(job):
    """Take the node away, and with it all processes of the job that runs there: nothing is told to stop, or saved."""
    pids = [int(line.split()[0]) for line in ask("scontrol", "listpids", job["JobId"]).splitlines()[1:]]
    set_node("DOWN")
    for pid in pids:
        if pid > 0:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def wait(condition, seconds, what):
    """Wait until the condition holds, and return what it gave."""
    end = time.monotonic() + seconds
    while not (answer := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"after {seconds} s: {what}")
        time.sleep(0.2)
    return answer


@contextlib.contextmanager
def running(folder):
    """Within the block a SLURM runs, with its state in `folder`. What was started is stopped, and nothing else."""
    if reason := missing():
        raise RuntimeError(reason)
    started = []
    try:
        _configure(folder)
        started.append(_munge(folder))
        started.append(_daemon(folder, ["slurmctld", "-D"]))
        wait(lambda: _answers("scontrol", "ping"), 30, "slurmctld does not answer")
        started.append(_daemon(folder, ["slurmd", "-D", "-N", "localhost"]))
        wait(lambda: node() == "IDLE", 30, "the node does not come up")
        yield
    finally:
        _end_jobs()
        for process in reversed(started):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for name in ("slurm.conf", "gres.conf"):
            (ETC / name).unlink(missing_ok=True)


def _configure(folder):
    folder.chmod(0o755)  # munge, another user, has a folder of its own within
    for name in ("control", "spool", "munge"):
        (folder / name).mkdir()
    with socket.socket() as one, socket.socket() as other:
        for free in (one, other):
            free.bind(("127.0.0.1", 0))
        control, daemon = one.getsockname()[1], other.getsockname()[1]
    text = CONFIGURATION.format(folder=folder, control=control, daemon=daemon, gpus=len(DEVICES))
    (ETC / "slurm.conf").write_text(MARK + text)
    gpus = "".join(f"NodeName=localhost Name=gpu File={device}\n" for device in DEVICES)
    (ETC / "gres.conf").write_text(MARK + gpus)


def _munge(folder):
    """Authentication by a key and a socket of our own: a munged that runs already is left alone."""
    own = folder / "munge"
    key = own / "key"
    key.touch(0o600)
    key.write_bytes(secrets.token_bytes(128))
    for path in (own, key):
        shutil.chown(path, "munge", "munge")
    files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    words = ["munged", "--foreground", *(f"--{option}={own / name}" for option, name in files.items())]
    process = _daemon(folder, words, "--reuid=munge", "--regid=munge", "--clear-groups")
    wait((own / "socket").exists, 30, "munged does not start")
    return process


def _daemon(folder, words, *options):
    """Start a daemon that ends with this process, however that ends."""
    log = (folder / f"{words[0]}.out").open("w")
    return subprocess.Popen(
        ["setpriv", "--pdeathsig", "TERM", *options, "--", *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log
    )


def _answers(*words):
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return done.returncode == 0 and "UP" in done.stdout


def _end_jobs():
    """Cancel what still runs: a job outlives the daemon that started it."""
    if not _answers("scontrol", "ping"):
        return
    left = ask("squeue", "--noheader", "--format=%A").split()
    if left:
        subprocess.run(["scancel", "--signal=KILL", "--full", *left])
        subprocess.run(["scancel", *left])
        with contextlib.suppress(TimeoutError, subprocess.CalledProcessError):
            wait(lambda: not ask("squeue", "--noheader", "--format=%A").split(), 30, "jobs do not end")


if __name__ == "__main__":
    sys.exit(f"dfkd: {reason}" if (reason := missing()) else 0)

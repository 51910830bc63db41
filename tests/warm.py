"""The program `dfkd` without the seconds that its imports take: each call is a fork of one process that has them behind it.

What runs is the command line of this checkout, in a process of its own with the caller's words, folder, environment and
streams. Signals reach it; a caller that is killed takes it along. Under the name `snakemake` the same program is Snakemake.
"""

import array
import atexit
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# What stages import only when they need it.
LATER = ("matplotlib.backends.backend_agg", "plotly.graph_objects", "plotly.offline", "sklearn.manifold")

# In place of `dfkd`: hands words, folder, environment and streams to the server, and ends as the stage ends.
CLIENT = """#!{python} -ISu
import array, json, os, signal, socket, sys

server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
call = json.dumps([sys.argv, os.getcwd(), dict(os.environ)]).encode()
streams = array.array("i", [0, 1, 2])
server.sendmsg([len(call).to_bytes(8, "little")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
server.sendall(call)
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, _: server.sendall(bytes([number])))
status = int.from_bytes(server.recv(4), "little", signed=True)
if status < 0:
    signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
sys.exit(status)
"""


def serve(address, *more):
    """Import what the stages need, and `more`, then fork for every call. Ends with its parent."""
    from diffusers import DDIMScheduler, UNet2DModel  # noqa: F401
    from PIL import Image

    import dfkd.diffusion.augment
    import dfkd.distillation.distill
    import dfkd.evaluation.evaluate
    import dfkd.evaluation.pictures
    import dfkd.evaluation.result
    import dfkd.evaluation.run_report
    import dfkd.inspection.bank_page
    import dfkd.synthesis.init_bank  # noqa: F401

    Image.init()
    for name in ("dfkd.cli", "dfkd.cli_bank", *LATER, *more):
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # the pages of what is here stay shared with the forks
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(16)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    parent = os.getppid()
    while os.getppid() == parent:
        if select.select([listener], [], [], 1)[0]:
            caller, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _attend(caller)
            caller.close()


def _attend(caller):
    """Run one call in a process of its own and tell its status; pass signals on to it."""
    streams = array.array("i")
    head, ancillary, *_ = caller.recvmsg(8, socket.CMSG_SPACE(3 * streams.itemsize))
    streams.frombytes(ancillary[0][2])
    call = b""
    while len(call) < int.from_bytes(head, "little"):
        call += caller.recv(1 << 16)
    stage = os.fork()
    if stage == 0:
        caller.close()
        _run(*json.loads(call), streams)
    for stream in streams:
        os.close(stream)
    ended = os.pidfd_open(stage)
    while ended not in select.select([caller, ended], [], [])[0]:
        for number in caller.recv(16) or _gone(stage, ended):
            os.kill(stage, number)
    status = os.waitstatus_to_exitcode(os.waitpid(stage, 0)[1])
    caller.sendall(status.to_bytes(4, "little", signed=True))
    os._exit(0)


def _gone(stage, ended):
    """The caller was killed: so is the stage."""
    os.kill(stage, signal.SIGKILL)
    select.select([ended], [], [])
    os._exit(0)


def _run(words, folder, environment, streams):
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    name = Path(words[0]).name
    sys.argv = [name, *words[1:]]
    Path("/proc/self/comm").write_text(" ".join(sys.argv[:2]) if name == "dfkd" else name)  # what a list of processes shows
    main = importlib.import_module("snakemake.cli" if name == "snakemake" else "dfkd.cli").main
    status = 0
    try:
        main()
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
        status = 1
    # What an interpreter does at its end, but for taking apart all that was imported: half a second.
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(int(status or 0))


class Warm:
    """A running server. `program` is the text of an executable that stands for `dfkd`; `more` are modules to import before."""

    def __init__(self, folder, *more):
        address = str(folder / "socket")
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen([sys.executable, __file__, address, *more], env=environment)
        self.program = CLIENT.format(python=sys.executable, address=address)
        while not Path(address).exists():
            assert self.process.poll() is None
            time.sleep(0.05)

    def close(self):
        self.process.kill()
        self.process.wait()


if __name__ == "__main__":
    serve(*sys.argv[1:])

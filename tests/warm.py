"""The program `dfkd` without the seconds that its imports take: each call is a fork of one process that has them behind it.

What runs is the command line of this checkout, in a process of its own with the caller's words, folder, environment and
streams. Signals reach it; a caller that is killed takes it along.
"""

import array
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

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


def serve(address):
    """Import what the stages need, then fork for every call. Ends with its parent."""
    from diffusers import DDIMScheduler, UNet2DModel  # noqa: F401 - which the stage imports when it starts

    import dfkd.diffusion.augment
    import dfkd.distillation.distill
    import dfkd.evaluation.evaluate
    import dfkd.evaluation.pictures
    import dfkd.evaluation.result
    import dfkd.evaluation.run_report
    import dfkd.inspection.bank_page
    import dfkd.synthesis.init_bank  # noqa: F401

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
    sys.argv = ["dfkd", *words[1:]]
    from dfkd.cli import main

    status = 0
    try:
        main()
    except SystemExit as ended:
        status = ended.code or 0
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # to take the imports down takes longer than many a stage


class Warm:
    """A running server. `program` is the text of an executable that stands for `dfkd`."""

    def __init__(self, folder):
        address = str(folder / "socket")
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen([sys.executable, __file__, address], env=environment)
        self.program = CLIENT.format(python=sys.executable, address=address)
        while not Path(address).exists():
            assert self.process.poll() is None
            time.sleep(0.05)

    def close(self):
        self.process.kill()
        self.process.wait()


if __name__ == "__main__":
    serve(sys.argv[1])

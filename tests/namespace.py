"""A file system of the test's own: what happens on a small disk, or one that cannot be written, and goes with the process.

Each call is a fork of this process in a mount namespace (a user namespace too where the user is not root), so that nothing is
left mounted and nothing is imported again.
"""

import contextlib
import ctypes
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

NEW_MOUNTS, NEW_USER = 0x00020000, 0x10000000  # of unshare(2)


def apart(function, *arguments):
    """What `function(*arguments)` returns, as JSON carries it, in a process with mounts of its own."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(BaseException):
            os.close(read)
            try:
                _leave()
                with os.fdopen(write, "w") as pipe:
                    json.dump(function(*arguments), pipe)
                status = 0
            except BaseException:
                traceback.print_exc()
        os._exit(status)
    os.close(write)
    with os.fdopen(read) as pipe:
        answer = pipe.read()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "see stderr"
    return json.loads(answer)


def _leave():
    user, group = os.getuid(), os.getgid()
    flags = NEW_MOUNTS | (NEW_USER if user else 0)
    if ctypes.CDLL(None, use_errno=True).unshare(flags):
        raise OSError(ctypes.get_errno(), "no mounts of its own for the test: allow user namespaces, or run it as root")
    if user:
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            Path("/proc/self", name).write_text(text)
    mount("--make-rprivate", "/")


def mount(*words):
    """The system's `mount`."""
    subprocess.run(["mount", *map(str, words)], check=True)


def dfkd(*words):
    """The command line in a process of its own: status and what it says on stderr."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        status = 70
        with contextlib.suppress(BaseException):
            os.dup2(write, 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            sys.stderr, sys.stdout = os.fdopen(2, "w"), os.fdopen(1, "w")
            sys.argv, os.environ["OMP_NUM_THREADS"] = ["dfkd", *map(str, words)], "1"  # threads do not come along
            status = _status()
            sys.stderr.flush()
        os._exit(status)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


def _status():
    from dfkd.cli import main

    try:
        main()
    except SystemExit as end:
        return end.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0

"""The command: its port, its address, its end."""

import os
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest
from typer.testing import CliRunner

from dfkd.cli_bank import bank_app
from dfkd.errors import UserError
from dfkd.inspection.viewer import serve
from dfkd.inspection.viewer.serve import bound_socket, names_of


def test_the_next_free_port_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as first:
        port = first.getsockname()[1]
        with bound_socket("127.0.0.1", port) as found:
            assert port < found.getsockname()[1] <= port + serve.TRIES


def test_ports_and_hosts_that_cannot_be_had(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as first:
        monkeypatch.setattr(serve, "TRIES", 0)
        with pytest.raises(UserError, match=r"--port \d+: this one and the 0 after it are taken"):
            bound_socket("127.0.0.1", first.getsockname()[1])
    with pytest.raises(UserError, match=r"--host 192\.0\.2\.1: cannot be listened on"):
        bound_socket("192.0.2.1", 0)
    with pytest.raises(UserError, match="not an address of this machine"):
        bound_socket("no.such.host.invalid", 0)


def test_names_that_the_server_answers_to():
    assert names_of("box.lan") == ["box.lan"]
    assert names_of("fe80::1") == ["fe80::1", "[fe80::1]"]
    assert socket.gethostname() in names_of("0.0.0.0")


def test_a_folder_that_is_none_is_told(tmp_path):
    result = CliRunner().invoke(bank_app, ["browse", str(tmp_path / "absent"), "--no-open"])
    assert isinstance(result.exception, UserError)
    assert "no such folder" in str(result.exception)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_it_says_where_it_is_and_ends_quietly(folder, number, status):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = ["browse", str(folder.results), "--no-open", "--port", str(port)]
        process = subprocess.Popen(
            [sys.executable, "-m", "dfkd.cli", "bank", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "DISPLAY": ""},
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a shell's background jobs ignore it
        )
        assert process.stdout.readline().startswith(f"port {port} is taken, using ")
        line = process.stdout.readline()
        address = next(word for word in line.split() if word.startswith("http://127.0.0.1:"))
        assert line.startswith(f"{folder.results}: ")
        with urllib.request.urlopen(address) as answer:
            assert b"dfkd" in answer.read()
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (status, "")

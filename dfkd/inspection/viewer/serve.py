"""`dfkd bank browse`: a free port, the server, the browser."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import sys
import threading
import time
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn

from dfkd.errors import UserError
from dfkd.inspection.viewer.app import create_app

TRIES = 20  # ports after the one that was asked for


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket on this port, or on the next one that is free.

    Raises:
        UserError: the address is not this machine's, or no port is free or allowed.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host}: not an address of this machine ({error}); leave it away for 127.0.0.1.") from None
    for number in range(port, min(port + TRIES, 65535) + 1):
        found = socket.socket(family, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind((address[0], number, *address[2:]))
            found.listen()  # the browser may knock before the server is up
        except PermissionError:
            found.close()
            raise UserError(f"--port {number}: only the administrator may use it; choose one above 1023.") from None
        except OSError as error:
            found.close()
            if not _is_taken(error):
                raise UserError(f"--host {host}: cannot be listened on ({error.strerror}).") from None
            continue
        return found
    raise UserError(f"--port {port}: this one and the {TRIES} after it are taken; choose another.")


def _is_taken(error: OSError) -> bool:
    return error.errno == errno.EADDRINUSE


def names_of(host: str) -> list[str]:
    """What a request may call this server besides localhost. One that listens everywhere answers to the machine's own names."""
    try:
        everywhere = ipaddress.ip_address(host).is_unspecified
    except ValueError:
        everywhere = False
    if not everywhere:
        return [host, f"[{host}]"] if ":" in host else [host]
    own = {socket.gethostname(), socket.getfqdn()}
    for _, _, _, _, address in _addresses(socket.gethostname()):
        own.add(str(address[0]))
    for family, target in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):  # documentation: nothing is sent
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((target, 9))
                own.add(str(probe.getsockname()[0]))
            except OSError:  # no network of this family
                continue
    return sorted(own | {f"[{name}]" for name in own if ":" in name})


def _addresses(name: str) -> list[Any]:
    try:
        return list(socket.getaddrinfo(name, None))
    except OSError:
        return []


def browse(folder: Path, host: str, port: int, open_browser: bool, device: str, say: Callable[[str], None]) -> None:
    """Serve the viewer until Ctrl-C.

    Raises:
        UserError: no such folder, or no port.
    """
    app = create_app(folder, names_of(host), device)
    listener = bound_socket(host, port)
    used = listener.getsockname()[1]
    shown = "127.0.0.1" if host in ("0.0.0.0", "::", "") else host
    url = f"http://[{shown}]:{used}/" if ":" in shown else f"http://{shown}:{used}/"
    if port and used != port:
        say(f"port {port} is taken, using {used}")
    say(f"{folder}: {url}  (Ctrl-C ends)")
    if shown != host:
        say(f"anyone who reaches this machine can look, under {', '.join(names_of(host))}")
    config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="on", timeout_graceful_shutdown=2)
    if open_browser and _has_screen():
        threading.Thread(target=_open, args=(url,), daemon=True).start()
    uvicorn.Server(config).run(sockets=[listener])


def _has_screen() -> bool:
    """Whether a browser would show itself: not over SSH, where it could only be one in the terminal."""
    return sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _open(url: str) -> None:
    time.sleep(0.5)
    webbrowser.open(url)

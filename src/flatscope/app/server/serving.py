"""Start the workbench: find or begin the run, listen, open the browser, and leave the folder up to date."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import webbrowser
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import uvicorn

from flatscope.app.cli import find_command
from flatscope.app.flags import ask, gather
from flatscope.app.server.application import make_application
from flatscope.app.server.desk import Desk
from flatscope.runs.reopen import bring_up_to_date
from flatscope.runs.settings import RECORD, SettingsError

_VERBS = ("flakes", "twist", "atoms", "moire", "defects")
_END_S = 20.0
"""A batch that is asked to end writes what is finished within this time."""


@contextlib.contextmanager
def find_run(inputs: Sequence[str], verb: str, out: Path | None) -> Iterator[Path]:
    """The results folder to open: the one that is named, or that of a batch begun here, which ends with the block.

    Parameters
    ----------
    inputs
        A results folder; or what the command `verb` takes, its flags included.
    verb
        A command.
    out
        Where a new batch puts its results.

    Raises
    ------
    SettingsError
        If neither makes sense.
    click.UsageError
        If the command does not take these flags.
    """
    first = Path(inputs[0])
    if len(inputs) == 1 and ((first / RECORD).exists() or not first.exists()):
        if not (first / RECORD).exists():
            raise SettingsError(
                f"{first} holds no run: name the folder that flatscope wrote (its --out), or pictures"
            )
        yield first
        return
    if verb not in _VERBS:
        raise SettingsError(f"--verb {verb}: use one of {', '.join(_VERBS)}")
    folder = out or Path(f"{first.with_suffix('').name}-{verb}")
    args = [*inputs, "--out", str(folder)]
    command: Any = find_command(verb)
    options = command.make_context(verb, list(args)).params  # what is wrong is said before the browser opens
    gather(options, *command.settings_kinds)
    ask(options, *command.settings_kinds)
    child = subprocess.Popen(
        [sys.executable, "-c", "from flatscope.app.cli import main; main()", verb, *args],
        stdout=subprocess.DEVNULL,
    )
    try:
        yield folder
    finally:
        if child.poll() is None:
            child.terminate() if os.name == "nt" else child.send_signal(2)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_END_S)


def serve(run: Path, *, port: int, opens_browser: bool) -> int:
    """Serve a run until Ctrl-C.

    Parameters
    ----------
    run
        The results folder; it may come into being later.
    port
        Where to listen; 0 for any free one.
    opens_browser
        Whether to open the page, too.

    Raises
    ------
    SettingsError
        If the port is taken, or the folder holds something else.
    """
    desk = Desk.of(run)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
            listener.listen()  # before the address is printed: whoever reads it may knock at once
        except OSError as error:
            raise SettingsError(f"--port {port}: {error.strerror}: choose another one") from None
        port, token = listener.getsockname()[1], secrets.token_urlsafe(24)
        address = f"http://127.0.0.1:{port}/?token={token}"
        click.echo(f"flatscope: {run} is open at {address} (Ctrl-C ends it)")
        if opens_browser:
            webbrowser.open(address)
        config = uvicorn.Config(
            make_application(desk, token=token, port=port),
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=2,
        )
        uvicorn.Server(config).run(sockets=[listener])
    if desk.bench.is_behind() and not desk.bench.is_running():
        click.echo(
            "flatscope: tables and pictures follow your corrections ... (Ctrl-C: at the next start)", err=True
        )
        bring_up_to_date(run)
    return 0

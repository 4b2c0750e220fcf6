"""`flatscope open`: see, correct, teach and export a run in the browser."""

from __future__ import annotations

import importlib.util
import secrets
import socket
import webbrowser
from pathlib import Path

import click

from flatscope.runs.settings import SettingsError


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="Where to listen.  [default: any free one]"
)
@click.option("--no-browser", is_flag=True, help="Print the address, and open no browser.")
def open(run: Path, port: int, no_browser: bool) -> int:
    """Open a RUN (the --out of flakes, twist, atoms, moire or defects) in the browser, finished or running.

    Only this computer can see it, by an address with a token. Corrections are kept in edits.jsonl of the RUN. From
    another computer: ssh -L 8765:127.0.0.1:8765 HOST, there flatscope open RUN --no-browser --port 8765, and open the
    printed address here.
    """
    for package in ("fastapi", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise click.ClickException(f"flatscope open needs {package}: pip install 'flatscope[serve]'")
    import uvicorn

    from flatscope.app.server.application import make_application
    from flatscope.app.server.desk import Desk
    from flatscope.runs.reopen import bring_up_to_date

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
        if not no_browser:
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

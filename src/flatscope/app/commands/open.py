"""`flatscope open`: see, correct, teach and export a run in the browser."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import click


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("inputs", nargs=-1, required=True, type=click.UNPROCESSED, metavar="RUN|INPUT...")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="Where to listen.  [default: any free one]"
)
@click.option("--no-browser", is_flag=True, help="Print the address, and open no browser.")
@click.option("--verb", default="flakes", show_default=True, help="What to do with the inputs.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the results.  [default: INPUT-VERB]")
def open(inputs: tuple[str, ...], port: int, no_browser: bool, verb: str, out: Path | None) -> int:
    """Open a RUN (the --out of flakes, twist, atoms, moire or defects) in the browser, finished or running; or start
    one of INPUTs, with all flags of that command, and show it growing: flatscope open photos/ --material MoS2.

    Only this computer can see it, by an address with a token. Corrections are kept in edits.jsonl of the run. From
    another computer: ssh -L 8765:127.0.0.1:8765 HOST, there flatscope open RUN --no-browser --port 8765, and open the
    printed address here.
    """
    for package in ("fastapi", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise click.ClickException(f"flatscope open needs {package}: pip install 'flatscope[serve]'")
    from flatscope.app.server.serving import find_run, serve

    with find_run(inputs, verb, out) as run:
        return serve(run, port=port, opens_browser=not no_browser)

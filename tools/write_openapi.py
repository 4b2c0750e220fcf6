"""Write what the workbench's endpoints take and give to src/flatscope/app/server/openapi.json."""

from __future__ import annotations

from pathlib import Path

from flatscope.app.server.application import describe_api
from flatscope.files.write import write_atomic

if __name__ == "__main__":
    root = Path(__file__).resolve().parent.parent
    print(write_atomic(root / "src/flatscope/app/server/openapi.json", describe_api()))

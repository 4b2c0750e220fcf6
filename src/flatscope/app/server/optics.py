"""What only light micrographs have: contrasts beside their theory, a flood from a click, twist angles."""

from __future__ import annotations

from typing import Any

import numpy as np
from fastapi import APIRouter, HTTPException, Request, Response

from flatscope.app.server.desk import AtDesk, write_json
from flatscope.app.server.models import Contrasts, Corners, Spot
from flatscope.optical.flood import flood
from flatscope.runs.contrasts import compute_ladders
from flatscope.runs.settings import SettingsError

router = APIRouter(prefix="/api", tags=["light"])
_DIGITS = 5
_REACH_PX = 900
"""A flood looks this far from the click."""


@router.get("/contrast", response_model=Contrasts)
def get_contrast(request: Request, desk: AtDesk) -> Response:
    """The computed ladder of each batch's fitted set-up; the contrasts of regions stand in the rows."""
    if desk.bench.verb != "flakes":
        raise HTTPException(404, f"a run of flatscope {desk.bench.verb} has no contrasts")
    try:
        ladders = compute_ladders(desk.bench.answers, desk.bench.entries)
    except SettingsError as error:
        raise HTTPException(409, str(error)) from None
    groups = [
        {
            "items": list(ladder.items),
            "ladder": [
                {"layers": int(number), "contrast": mean.tolist(), "sigma": sigma.tolist()}
                for number, mean, sigma in zip(
                    ladder.layers, ladder.contrast.round(_DIGITS), ladder.sigma.round(_DIGITS), strict=True
                )
            ],
        }
        for ladder in ladders
    ]
    return write_json(request, {"groups": groups})


@router.post("/flood", response_model=Corners)
def post_flood(spot: Spot, desk: AtDesk) -> dict[str, Any]:
    """The region of one colour around a click, as a new outline could be."""
    desk.entry(spot.item)
    picture = desk.pictures.whole(spot.item)
    row, col = spot.row_px, spot.col_px
    left, top = max(0, round(col) - _REACH_PX), max(0, round(row) - _REACH_PX)
    box = (left, top, min(picture.width, left + 2 * _REACH_PX), min(picture.height, top + 2 * _REACH_PX))
    corners = flood(np.asarray(picture.crop(box).convert("RGB")), row - top, col - left)
    if not len(corners):
        raise HTTPException(404, "no region of one colour lies there: draw its outline")
    return {"corners": (corners + np.array([top, left])).round(1).tolist()}

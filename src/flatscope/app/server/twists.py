"""Twist: the shapes that were fitted to both crystals, and the angle while somebody drags their corners."""

from __future__ import annotations

from typing import Any

import numpy as np
from fastapi import APIRouter, HTTPException

from flatscope.app.server.desk import AtDesk
from flatscope.app.server.models import BothCorners, Twist, TwistAngle
from flatscope.optical.corners import Crystal, find_corners, orient_by_corners
from flatscope.optical.twist import Stack, find_stacks, turn_between

router = APIRouter(prefix="/api/twist", tags=["twist"])


@router.get("/{index}/{row_id}", response_model=Twist)
def get_twist(index: int, row_id: int, desk: AtDesk) -> dict[str, Any]:
    """Outlines, fitted corners and angle of one stack."""
    row, stack = _find(desk, index, row_id)
    (first, left), (rows, cols) = stack.corner_px, stack.bottom.shape
    bottom = find_corners(stack.bottom, stack.border | stack.seam, (first, left))
    top = find_corners(stack.top, stack.border | stack.end, (first, left))
    return {
        "bottom": _describe(bottom, row.get("bottom_deg")),
        "top": _describe(top, row.get("top_deg")),
        "twist_deg": row.get("twist_deg"),
        "sigma_deg": row.get("sigma_deg"),
        "box": [first, left, first + rows, left + cols],
    }


def _describe(crystal: Crystal, angle_deg: float | None) -> dict[str, Any]:
    return {
        "corners": crystal.corners.round(2).tolist(),
        "outline": crystal.outline.round(1).tolist(),
        "angle_deg": angle_deg,
    }


def _find(desk: AtDesk, index: int, row_id: int) -> tuple[dict[str, Any], Stack]:
    """The row, and the stack that it was measured on."""
    entry = desk.entry(index)
    row = desk.bench.read_row(index, row_id) if desk.bench.verb == "twist" else {}
    if not row:
        raise HTTPException(404, f"{entry.name} has no twist angle of number {row_id}")
    layers = desk.bench.answers.part(entry).layers
    here = np.array([row["row_px"], row["col_px"]])

    def distance(stack: Stack) -> float:
        middle = np.argwhere(stack.top).mean(axis=0) + stack.corner_px
        return float(np.hypot(*(middle - here)))

    return row, min(find_stacks(layers), key=distance)


@router.post("/{index}/{row_id}/angle", response_model=TwistAngle)
def post_angle(index: int, row_id: int, said: BothCorners, desk: AtDesk) -> dict[str, Any]:
    """The angle that these corners make; nothing is written."""
    desk.entry(index)
    try:
        lower, upper = (orient_by_corners(corners) for corners in (said.bottom, said.top))
    except ValueError as error:
        raise HTTPException(422, str(error)) from None
    twist, sigma = turn_between(lower, upper)
    return {
        "twist_deg": round(twist, 3),
        "sigma_deg": round(sigma, 3),
        "bottom": {"angle_deg": round(lower.corner_deg, 3)},
        "top": {"angle_deg": round(upper.corner_deg, 3)},
    }

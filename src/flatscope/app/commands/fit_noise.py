"""`flatscope fit-noise`: measure the noise of a scanned image."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click
import numpy as np

from flatscope.app import show
from flatscope.electron.drawing.noise import fit_noise as measure_noise
from flatscope.electron.drawing.noise import measure_ratios, simulate_again
from flatscope.files.read import read
from flatscope.files.write import write_atomic
from flatscope.micrograph import MicrographError


@click.command(name="fit-noise")
@click.argument("image", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="JSON file for flatscope simulate stem --noise.")
def fit_noise(image: Path, out: Path | None) -> int:
    """Measure the noise of one scanned IMAGE of a crystal: electrons a pixel, lag along rows, jumps of rows.

    Prints how much more noise there is from row to row than along the diagonal, in the image and in one drawn with what
    was measured.
    """
    micrograph = read(image, modality="electron")
    if not micrograph.is_gray:
        raise MicrographError(f"{image}: is coloured: a scanned image has one channel")
    pixels = micrograph.pixels if micrograph.pixels.ndim == 2 else micrograph.pixels[..., 0]
    try:
        noise = measure_noise(pixels)
    except ValueError as error:
        raise MicrographError(f"{image}: {error}") from None
    again = simulate_again(np.random.default_rng(0), np.asarray(pixels, float), noise)
    ratios = {"image": measure_ratios(pixels), "drawn again": measure_ratios(again)}
    electrons = float((pixels - min(float(pixels.min()), 0.0)).mean()) / noise.gain
    show.print_rows(
        ("", "row to row / diagonal", "along rows / diagonal"),
        [(name, f"{slow:.2f}", f"{fast:.2f}") for name, (slow, fast) in ratios.items()],
    )
    click.echo(
        f"about {electrons:.3g} electrons a pixel, {noise.gain:.4g} image units each; other noise "
        f"{noise.read_sigma:.3g} units; lag {noise.lag:.3f}; rows jump by {noise.jitter_px:.3f} px and "
        f"{noise.row_sigma:.3g} units"
    )
    if out is not None:
        stored = {"image": micrograph.name, "noise": asdict(noise), "ratios": ratios}
        write_atomic(out, json.dumps(stored, indent=1))
        click.echo(f"noise: {out}")
    return 0

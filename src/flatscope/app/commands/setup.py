"""`flatscope setup`: keep what all pictures of a microscope share, and say when it has changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from flatscope.app.cli import EXIT_FINE, EXIT_SOME_FAILED
from flatscope.files.read import find_pictures, read
from flatscope.optical.flakes import FlakeParams
from flatscope.optical.micrometer import measure_pixel_size
from flatscope.runs import profiles
from flatscope.runs.light import LightParams, measure_known
from flatscope.runs.settings import checked

_picture = click.Path(path_type=Path)


@click.group()
def setup() -> None:
    """Keep a microscope's profile: pixel size, flat field, known crystals.

    flatscope flakes and twist take it with --setup NAME; flags beat it.
    """


@setup.command()
@click.argument("name")
@click.option("--micrometer", type=_picture, help="Picture of a stage micrometer or grating: its pixel size.")
@click.option("--pitch-um", type=click.FloatRange(0, min_open=True), help="Distance of its lines in µm.")
@click.option("--um-per-px", type=float, help="Pixel size in µm, in place of a stage micrometer.")
@click.option("--flatfield", type=_picture, help="A picture of the light alone.")
@click.option("--material", default="", help="Of the crystals, where it is always the same.")
@click.option("--oxide-nm", type=float, help="Nominal SiO2 thickness, where it is always the same.")
@click.option(
    "--known",
    multiple=True,
    metavar="FILE@ROW,COL=1L",
    help="A crystal of known layer number. Several times.",
)
@click.option("--trust", is_flag=True, help="Believe known crystals also where the optics disagree.")
@click.option("--reference", multiple=True, type=_picture, help="A usual picture, for flatscope setup check.")
@click.option("--replace", is_flag=True, help="Overwrite a profile of that name.")
def new(name: str, known: tuple[str, ...], reference: tuple[Path, ...], **given: Any) -> None:
    """Make the profile NAME."""
    if name in profiles.list_profiles() and not given["replace"]:
        raise click.ClickException(
            f"a set-up {name!r} is there already: pass --replace, or choose another name"
        )
    if (given["micrometer"] is None) != (given["pitch_um"] is None):
        raise click.UsageError("a stage micrometer needs both --micrometer FILE and --pitch-um")
    um_per_px = given["um_per_px"]
    if given["micrometer"] is not None:
        um_per_px = round(measure_pixel_size(read(given["micrometer"]), given["pitch_um"]), 7)
        click.echo(f"lines every {given['pitch_um'] / um_per_px:.2f} px: {um_per_px:.5g} µm/px")
    checked(LightParams, um_per_px=um_per_px)
    crystals: tuple[Any, ...] = ()
    if given["material"]:
        params = checked(FlakeParams, material=given["material"], oxide_nm=given["oxide_nm"])
        crystals = measure_known(known, params, trust=given["trust"])
    elif known:
        raise click.UsageError("--known tells the colours of a material: give --material NAME")
    pictures = [read(path) for path in reference or [given["flatfield"]] if path is not None]
    profile = profiles.Profile(
        name,
        um_per_px,
        given["material"],
        given["oxide_nm"],
        known=crystals,
        look=profiles.measure_look(pictures) if pictures else None,
    )
    click.echo(f"kept in {profiles.write_profile(profile, flatfield=given['flatfield'])}")


@setup.command()
@click.argument("name")
@click.argument("pictures", nargs=-1, required=True, metavar="PICTURE...")
def check(name: str, pictures: tuple[str, ...]) -> int:
    """Say whether lamp and camera are as they were when the profile NAME was made."""
    profile = profiles.read_profile(name)
    if profile.look is None:
        raise click.ClickException(
            f"set-up {name!r} has no picture to compare with: make it anew with --reference"
        )
    changed = False
    for path in find_pictures(pictures, modality="light"):
        lines = profiles.find_drift(profile.look, read(path))
        changed |= bool(lines)
        click.echo(f"{path.name}: {'; '.join(lines) or 'as it was'}")
    return EXIT_SOME_FAILED if changed else EXIT_FINE


@setup.command("list")
def list_all() -> None:
    """List the profiles."""
    for name in profiles.list_profiles():
        click.echo(f"{name}: {_describe(profiles.read_profile(name))}")
    if not profiles.list_profiles():
        click.echo(f"no profile in {profiles.find_home()}: flatscope setup new NAME")


@setup.command()
@click.argument("name")
def show(name: str) -> None:
    """Print the file of the profile NAME."""
    profile = profiles.read_profile(name)
    click.echo((profile.folder / "profile.json").read_text(encoding="utf-8").rstrip())


def _describe(profile: profiles.Profile) -> str:
    said = [
        f"{profile.um_per_px:.4g} µm/px" if profile.um_per_px else "pixel size unknown",
        profile.material or "any material",
        f"oxide {profile.oxide_nm:g} nm" if profile.oxide_nm else "",
        "flat field" if profile.flatfield else "",
        f"{len(profile.known)} known crystals" if profile.known else "",
    ]
    return ", ".join(part for part in said if part)

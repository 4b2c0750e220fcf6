"""Pictures come in as they were recorded, and what is no picture is refused in one clear line."""

from __future__ import annotations

import errno
import hashlib
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from flatscope.files.read import find_pictures, read
from flatscope.files.write import WriteError, write_atomic
from flatscope.micrograph import MicrographError

ROWS, COLS = 40, 56


def _colours(*, channels: int = 3, deep: bool = False) -> NDArray[np.generic]:
    """Random numbers that use the whole range, so that every byte and every pixel is at its own place."""
    dtype = np.uint16 if deep else np.uint8
    top = np.iinfo(dtype).max
    pixels = np.random.default_rng(7).integers(0, top, (ROWS, COLS, channels), dtype=dtype, endpoint=True)
    pixels[0, 0] = top
    return pixels[..., 0] if channels == 1 else pixels


def _png_16bit(pixels: NDArray[np.generic]) -> bytes:
    """A 16-bit colour png, which Pillow cannot write."""
    rows, cols, channels = pixels.shape
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)
    header = struct.pack(">IIBBBBB", cols, rows, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    blocks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in blocks
    )


def _lzw(data: bytes) -> bytes:
    """LZW as TIFF has it, without compressing: a clear code often enough that all codes stay nine bits long."""
    bits = "".join(
        ("100000000" if start % 200 == 0 else "") + format(byte, "09b") for start, byte in enumerate(data)
    )
    bits += format(257, "09b")
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def _tiff_16bit_lzw(pixels: NDArray[np.generic]) -> bytes:
    """A 16-bit RGB tif with LZW compression, as camera programs write it; neither library here can write it."""
    rows, cols, _ = pixels.shape
    strip = _lzw(pixels.astype("<u2").tobytes())
    entries = [
        (256, 3, 1, cols),
        (257, 3, 1, rows),
        (258, 3, 3, 8 + len(strip)),
        (259, 3, 1, 5),
        (262, 3, 1, 2),
        (273, 4, 1, 8),
        (277, 3, 1, 3),
        (278, 3, 1, rows),
        (279, 4, 1, len(strip)),
        (284, 3, 1, 1),
    ]
    directory = struct.pack("<H", len(entries))
    directory += b"".join(struct.pack("<HHII", *entry) for entry in entries) + struct.pack("<I", 0)
    bits = struct.pack("<HHH", 16, 16, 16)
    return struct.pack("<2sHI", b"II", 42, 8 + len(strip) + len(bits)) + strip + bits + directory


# ---------------------------------------------------------------- pixels


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".npy"])
@pytest.mark.parametrize("channels", [1, 3])
def test_lossless_8bit_pictures_keep_every_pixel(tmp_path: Path, suffix: str, channels: int) -> None:
    pixels = _colours(channels=channels)
    path = tmp_path / f"a{suffix}"
    if suffix == ".npy":
        np.save(path, pixels)
    else:
        Image.fromarray(pixels).save(path)
    micrograph = read(path)
    assert micrograph.pixels.dtype == np.uint8
    np.testing.assert_array_equal(micrograph.pixels, pixels)
    assert (micrograph.full_scale, micrograph.calibration, micrograph.notes) == (255.0, None, ())
    assert micrograph.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("channels", [3, 4])
def test_16bit_colour_png_keeps_both_bytes(tmp_path: Path, channels: int) -> None:
    pixels = _colours(channels=channels, deep=True)
    path = tmp_path / "deep.png"
    path.write_bytes(_png_16bit(pixels))
    micrograph = read(path)
    assert micrograph.pixels.dtype == np.uint16
    np.testing.assert_array_equal(micrograph.pixels, pixels[..., :3])
    assert micrograph.full_scale == 65535.0


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16bit_gray_keeps_both_bytes(tmp_path: Path, suffix: str) -> None:
    pixels = _colours(channels=1, deep=True)
    Image.fromarray(pixels).save(tmp_path / f"deep{suffix}")
    micrograph = read(tmp_path / f"deep{suffix}")
    np.testing.assert_array_equal(micrograph.pixels, pixels)
    assert (micrograph.pixels.dtype, micrograph.full_scale) == (np.uint16, 65535.0)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_16bit_colour_tiff_in_each_layout(tmp_path: Path, byteorder: str, planar: str) -> None:
    pixels = _colours(deep=True)
    stored = pixels if planar == "contig" else np.moveaxis(pixels, -1, 0)
    tifffile.imwrite(
        tmp_path / "a.tif",
        stored,
        photometric="rgb",
        planarconfig=planar,
        byteorder=byteorder,
        compression="zlib",
    )
    micrograph = read(tmp_path / "a.tif")
    assert micrograph.pixels.dtype == np.uint16
    np.testing.assert_array_equal(micrograph.pixels, pixels)


def test_16bit_colour_tiff_with_lzw_keeps_both_bytes(tmp_path: Path) -> None:
    pixels = _colours(deep=True)
    (tmp_path / "camera.tif").write_bytes(_tiff_16bit_lzw(pixels))
    micrograph = read(tmp_path / "camera.tif")
    assert micrograph.pixels.dtype == np.uint16
    np.testing.assert_array_equal(micrograph.pixels, pixels)


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "tiff_adobe_deflate"])
def test_compressed_tiff_keeps_every_pixel(tmp_path: Path, compression: str) -> None:
    Image.fromarray(_colours()).save(tmp_path / "a.tif", compression=compression)
    np.testing.assert_array_equal(read(tmp_path / "a.tif").pixels, _colours())


def test_palette_tiff_and_png_become_their_colours(tmp_path: Path) -> None:
    indexed = Image.fromarray(_colours()).quantize(16)
    expected = np.asarray(indexed.convert("RGB"))
    for name in ("a.png", "a.tif"):
        indexed.save(tmp_path / name)
        np.testing.assert_array_equal(read(tmp_path / name).pixels, expected)


def test_a_palette_with_a_transparent_colour_keeps_all_its_colours(tmp_path: Path) -> None:
    indexed = Image.fromarray(_colours()).quantize(16)
    indexed.save(tmp_path / "a.png", transparency=bytes([0, 128]))
    micrograph = read(tmp_path / "a.png")
    np.testing.assert_array_equal(micrograph.pixels, np.asarray(indexed.convert("RGB")))
    share = np.mean(np.asarray(indexed) < 2)
    assert micrograph.notes == (f"the alpha channel was dropped; {share:.1%} of the pixels were not opaque",)


def test_white_is_zero_tiff_is_inverted(tmp_path: Path) -> None:
    stored = _colours(channels=1)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="miniswhite")
    np.testing.assert_array_equal(read(tmp_path / "a.tif").pixels, 255 - stored)


def test_one_bit_picture_becomes_black_and_white(tmp_path: Path) -> None:
    bits = _colours(channels=1) > 127
    for name in ("a.png", "a.tif", "a.bmp"):
        Image.fromarray(bits).save(tmp_path / name)
        pixels = read(tmp_path / name).rgb()[..., 0]
        np.testing.assert_array_equal(pixels, bits.astype(np.float32))


def test_cmyk_and_lab_become_rgb_with_a_note(tmp_path: Path) -> None:
    teal = np.full((ROWS, COLS, 3), (20, 140, 150), np.uint8)
    Image.fromarray(teal).convert("CMYK").save(tmp_path / "cmyk.tif")
    cmyk = read(tmp_path / "cmyk.tif")
    np.testing.assert_array_equal(cmyk.pixels, teal)
    # L* = 53.59 (137 of 255), a* = 0, b* = 0 is the middle gray 128 of sRGB; IEC 61966-2-1.
    gray = np.zeros((ROWS, COLS, 3), np.uint8) + np.uint8([137, 0, 0])
    tifffile.imwrite(tmp_path / "lab.tif", gray, photometric="cielab")
    assert np.abs(read(tmp_path / "lab.tif").pixels.astype(int) - 128).max() <= 1


def test_alpha_is_dropped_and_said_only_if_it_hid_something(tmp_path: Path) -> None:
    pixels = _colours(channels=4)
    pixels[..., 3] = 255
    Image.fromarray(pixels).save(tmp_path / "opaque.png")
    assert read(tmp_path / "opaque.png").notes == ()
    pixels[:10, :, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "holes.png")
    tifffile.imwrite(tmp_path / "holes.tif", pixels, photometric="rgb", extrasamples=["unassalpha"])
    for name in ("holes.png", "holes.tif"):
        micrograph = read(tmp_path / name)
        np.testing.assert_array_equal(micrograph.pixels, pixels[..., :3])
        assert micrograph.notes == ("the alpha channel was dropped; 25.0% of the pixels were not opaque",)


# ---------------------------------------------------------------- pages and channels


def test_of_several_pages_the_first_is_read(tmp_path: Path) -> None:
    pages = np.stack([_colours(channels=1), 255 - _colours(channels=1)])
    tifffile.imwrite(tmp_path / "stack.tif", pages, photometric="minisblack")
    micrograph = read(tmp_path / "stack.tif")
    np.testing.assert_array_equal(micrograph.pixels, pages[0])
    assert micrograph.notes == ("the first of 2 pages was read",)


def test_three_channel_pages_are_one_colour_picture(tmp_path: Path) -> None:
    pixels = _colours()
    # Two focus positions, so that the channels of one picture are not next to each other in Z, C order reversed.
    stack = np.stack([np.moveaxis(pixels, -1, 0), np.moveaxis(255 - pixels, -1, 0)])
    tifffile.imwrite(
        tmp_path / "ij.tif", stack, imagej=True, metadata={"axes": "ZCYX"}, photometric="minisblack"
    )
    tifffile.imwrite(
        tmp_path / "a.ome.tif",
        np.swapaxes(stack, 0, 1),
        ome=True,
        metadata={"axes": "CZYX"},
        photometric="minisblack",
    )
    for name in ("ij.tif", "a.ome.tif"):
        micrograph = read(tmp_path / name)
        np.testing.assert_array_equal(micrograph.pixels, pixels)
        assert micrograph.notes == (
            "the first three of 3 channels were read as red, green, blue, the first of 2 such pictures",
        )


# ---------------------------------------------------------------- full scale


@pytest.mark.parametrize(("largest", "full_scale"), [(200, 255), (900, 1023), (4095, 4095), (4096, 16383)])
def test_full_scale_of_16bit_files_follows_the_camera(tmp_path: Path, largest: int, full_scale: int) -> None:
    pixels = np.zeros((ROWS, COLS), np.uint16)
    pixels[3, 4] = largest
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    micrograph = read(tmp_path / "a.tif")
    assert micrograph.full_scale == full_scale
    assert f"full scale was taken as {full_scale}" in micrograph.notes[0]
    assert micrograph.rgb().max() == pytest.approx(largest / full_scale)


def test_stated_bits_decide_the_full_scale(tmp_path: Path) -> None:
    dark = np.full((ROWS, COLS), 300, np.uint16)
    tifffile.imwrite(tmp_path / "a.ome.tif", dark, ome=True, metadata={"axes": "YX", "SignificantBits": 12})
    tifffile.imwrite(tmp_path / "b.tif", dark, extratags=[(281, 3, 1, 4095, True)])
    for name in ("a.ome.tif", "b.tif"):
        micrograph = read(tmp_path / name)
        assert (micrograph.full_scale, micrograph.notes) == (4095.0, ())


@pytest.mark.parametrize(
    ("factor", "full_scale"), [(1.0, 1.0), (200.0, 255.0), (60000.0, 65535.0), (1e6, 1e6)]
)
def test_floating_point_pictures_are_scaled_by_their_range(
    tmp_path: Path, factor: float, full_scale: float
) -> None:
    pixels = np.linspace(0, factor, ROWS * COLS).reshape(ROWS, COLS)
    np.save(tmp_path / "a.npy", pixels)
    micrograph = read(tmp_path / "a.npy")
    assert (micrograph.pixels.dtype, micrograph.full_scale) == (np.float32, full_scale)
    np.testing.assert_allclose(micrograph.rgb()[..., 1], pixels / full_scale, rtol=1e-6)


def test_few_negative_values_are_noise_and_many_are_an_error(tmp_path: Path) -> None:
    pixels = np.full((ROWS, COLS), 0.5)
    pixels[0, :4] = -0.01
    np.save(tmp_path / "few.npy", pixels)
    micrograph = read(tmp_path / "few.npy")
    assert micrograph.pixels.min() == 0
    assert micrograph.notes == ("0.18% of the values were negative and set to 0",)
    np.save(tmp_path / "many.npy", pixels - 0.6)
    with pytest.raises(MicrographError, match=r"many\.npy: 100% of the values are negative"):
        read(tmp_path / "many.npy")


def test_a_constant_picture_is_a_picture(tmp_path: Path) -> None:
    for name, value in (("black.png", 0), ("white.png", 255)):
        Image.fromarray(np.full((ROWS, COLS, 3), value, np.uint8)).save(tmp_path / name)
        assert np.ptp(read(tmp_path / name).pixels) == 0


# ---------------------------------------------------------------- orientation


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_agrees_with_pillow(tmp_path: Path, orientation: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(_colours()).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(read(tmp_path / "a.png").pixels, upright)


def test_a_photo_taken_upright_is_turned(tmp_path: Path) -> None:
    """Orientation 6: the first stored row is the right edge of the scene, the first stored column its top."""
    pixels = np.zeros((ROWS, COLS, 3), np.uint8)
    pixels[:8, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=95)
    turned = read(tmp_path / "a.jpg").pixels
    assert turned.shape == (COLS, ROWS, 3)
    assert turned[:8, -8:].min() > 200
    assert turned[:8, :-10].max() < 50


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_a_turned_tiff_swaps_its_pixel_sides(tmp_path: Path, compression: str) -> None:
    pixels = _colours()
    # tags: Orientation 6; description and resolution as ImageJ writes them, 10 px/µm across and 5 px/µm down
    tags = {274: 6, 270: "ImageJ=1.54f\nunit=micron\n", 282: 10.0, 283: 5.0, 296: 1}
    Image.fromarray(pixels).save(tmp_path / "a.tif", compression=compression, tiffinfo=tags)
    micrograph = read(tmp_path / "a.tif")
    np.testing.assert_array_equal(micrograph.pixels, np.rot90(pixels, -1))
    assert micrograph.calibration is not None
    assert micrograph.calibration.pixel_size_nm == pytest.approx((100.0, 200.0))


# ---------------------------------------------------------------- pixel size


@pytest.mark.parametrize(
    ("size", "unit", "expected_nm"),
    [(0.384, "µm", 384.0), (384.0, "nm", 384.0), (3.84e-4, "mm", 384.0), (3840.0, "Å", 384.0)],
)
def test_ome_pixel_size_in_its_units(tmp_path: Path, size: float, unit: str, expected_nm: float) -> None:
    metadata = {
        "axes": "YX",
        "PhysicalSizeX": size,
        "PhysicalSizeXUnit": unit,
        "PhysicalSizeY": 2 * size,
        "PhysicalSizeYUnit": unit,
    }
    tifffile.imwrite(tmp_path / "a.ome.tif", _colours(channels=1), ome=True, metadata=metadata)
    calibration = read(tmp_path / "a.ome.tif").calibration
    assert calibration is not None
    assert calibration.source == "file"
    assert calibration.pixel_size_nm == pytest.approx((2 * expected_nm, expected_nm))


def test_ome_without_a_size_or_in_pixels_is_uncalibrated(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.ome.tif", _colours(channels=1), ome=True, metadata={"axes": "YX"})
    assert read(tmp_path / "a.ome.tif").calibration is None
    metadata = {"axes": "YX", "PhysicalSizeX": 1.0, "PhysicalSizeXUnit": "pixel"}
    tifffile.imwrite(tmp_path / "b.ome.tif", _colours(channels=1), ome=True, metadata=metadata)
    assert read(tmp_path / "b.ome.tif").calibration is None


@pytest.mark.parametrize("unit", ["um", "micron", "\\u00B5m"])
def test_imagej_pixel_size(tmp_path: Path, unit: str) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif", _colours(channels=1), imagej=True, resolution=(4.0, 5.0), metadata={"unit": unit}
    )
    calibration = read(tmp_path / "a.tif").calibration
    assert calibration is not None
    assert calibration.pixel_size_nm == pytest.approx((200.0, 250.0))


@pytest.mark.parametrize("unit", ["inch", "cm", "pixel", ""])
def test_imagej_units_that_are_no_calibration(tmp_path: Path, unit: str) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif",
        _colours(channels=1),
        imagej=True,
        resolution=(4000.0, 4000.0),
        metadata={"unit": unit},
    )
    assert read(tmp_path / "a.tif").calibration is None


def test_print_resolution_is_no_calibration(tmp_path: Path) -> None:
    picture = Image.fromarray(_colours())
    picture.save(tmp_path / "a.jpg", dpi=(300, 300))
    picture.save(tmp_path / "a.png", dpi=(300, 300))
    picture.save(tmp_path / "a.tif", dpi=(300, 300))
    tifffile.imwrite(tmp_path / "cm.tif", _colours(), resolution=(1e4, 1e4), resolutionunit="CENTIMETER")
    assert [read(path).calibration for path in sorted(tmp_path.iterdir())] == [None] * 4


def test_the_users_pixel_size_is_above_the_files(tmp_path: Path) -> None:
    metadata = {"unit": "um"}
    tifffile.imwrite(
        tmp_path / "a.tif", _colours(channels=1), imagej=True, resolution=(5.0, 5.0), metadata=metadata
    )
    micrograph = read(tmp_path / "a.tif", um_per_px=0.15)
    assert micrograph.calibration is not None
    assert (micrograph.calibration.source, micrograph.calibration.pixel_size_nm) == ("user", (150.0, 150.0))
    assert micrograph.notes == ("the given pixel size of 0.15 µm was used, the file says 0.2 µm",)
    assert read(tmp_path / "a.tif", um_per_px=0.203).notes == ()


@pytest.mark.parametrize("value", [0.0, -0.1, float("nan"), float("inf"), 150.0])
def test_impossible_pixel_sizes_are_refused(tmp_path: Path, value: float) -> None:
    Image.fromarray(_colours()).save(tmp_path / "a.png")
    with pytest.raises(MicrographError, match=r"pixel size of .* µm is no microscope's: pass µm per pixel"):
        read(tmp_path / "a.png", um_per_px=value)


def test_an_impossible_pixel_size_in_the_file_is_ignored_and_said(tmp_path: Path) -> None:
    metadata = {"axes": "YX", "PhysicalSizeX": 353.0, "PhysicalSizeXUnit": "µm"}  # a screen's 72 dpi
    tifffile.imwrite(tmp_path / "a.ome.tif", _colours(channels=1), ome=True, metadata=metadata)
    micrograph = read(tmp_path / "a.ome.tif")
    assert micrograph.calibration is None
    assert micrograph.notes == ("the file's pixel size of 353 µm is no microscope's and was ignored",)


# ---------------------------------------------------------------- bad input


def _encode(pixels: NDArray[np.generic], kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    if kind == "npy":
        np.save(stream, pixels)
    else:
        Image.fromarray(pixels).save(stream, format=kind, **options)
    return stream.getvalue()


def _cut_strips(compression: str | None) -> Callable[[], bytes]:
    def make() -> bytes:
        stream = io.BytesIO()
        tifffile.imwrite(stream, _colours(), photometric="rgb", rowsperstrip=4, compression=compression)
        return stream.getvalue()[: len(stream.getvalue()) * 6 // 10]

    return make


def _cut_channels() -> bytes:
    stream = io.BytesIO()
    channels = np.moveaxis(_colours(), -1, 0)
    tifffile.imwrite(stream, channels, imagej=True, metadata={"axes": "CYX"}, photometric="minisblack")
    return stream.getvalue()[:6000]


def _cut(kind: str, **options: object) -> Callable[[], bytes]:
    def make() -> bytes:
        whole = _encode(_colours(), kind, **options)
        return whole[: len(whole) * 6 // 10]

    return make


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("empty.jpg", lambda: b"", "the file is empty"),
        (
            "text.jpg",
            lambda: b"just some words",
            r"is no picture in spite of its name, it begins with b'just som'",
        ),
        ("cut.jpg", _cut("JPEG"), "is damaged or truncated"),
        ("cut.png", _cut("PNG"), "is damaged or truncated"),
        ("cut.bmp", _cut("BMP"), "is damaged or truncated"),
        ("cut.tif", _cut("TIFF"), "is damaged or truncated"),
        ("cut_lzw.tif", _cut("TIFF", compression="tiff_lzw"), "is damaged or truncated"),
        ("cut_strips.tif", _cut_strips(None), r"is damaged or truncated \(\d+ of at least \d+ bytes\)"),
        ("cut_zipped.tif", _cut_strips("zlib"), r"is damaged or truncated \(\d+ of at least \d+ bytes\)"),
        ("cut_channels.tif", _cut_channels, r"is damaged or truncated \(6000 of at least \d+ bytes\)"),
        ("cut.npy", _cut("npy"), r"is damaged or truncated \(\d+ of 6720 bytes\)"),
        ("header.png", lambda: _encode(_colours(), "PNG")[:12], "is damaged or truncated"),
        ("dot.png", lambda: _encode(np.zeros((1, 1, 3), np.uint8), "PNG"), "1x1 px is too small"),
        ("thin.png", lambda: _encode(np.zeros((15, 99, 3), np.uint8), "PNG"), "99x15 px is too small"),
        ("nan.npy", lambda: _encode(np.full((ROWS, COLS), np.nan), "npy"), "all values are NaN"),
        ("line.npy", lambda: _encode(np.arange(500.0), "npy"), r"an array of shape \(500,\) is no picture"),
        ("movie.npy", lambda: _encode(np.zeros((9, ROWS, COLS)), "npy"), "is no picture"),
        ("words.npy", lambda: _encode(np.array(["a", "b"]), "npy"), "is no picture: save numbers"),
        ("waves.npy", lambda: _encode(np.ones((ROWS, COLS), complex), "npy"), "is no picture: save numbers"),
    ],
)
def test_bad_files_give_one_clear_line(
    tmp_path: Path, name: str, make: Callable[[], bytes], message: str
) -> None:
    (tmp_path / name).write_bytes(make())
    with pytest.raises(MicrographError, match=message) as caught:
        read(tmp_path / name)
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / name}: ")
    assert "\n" not in text
    assert ": " in text.removeprefix(str(tmp_path / name) + ": ")  # what is wrong, then the way out


def test_some_nan_are_counted(tmp_path: Path) -> None:
    pixels = np.full((ROWS, COLS), 0.5, np.float32)
    pixels[2, 3:6] = np.nan
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    with pytest.raises(MicrographError, match="3 of 2240 values are NaN or infinite: replace them"):
        read(tmp_path / "a.tif")


def test_missing_folder_and_unknown_suffix(tmp_path: Path) -> None:
    with pytest.raises(MicrographError, match="no such file: check the path"):
        read(tmp_path / "a.jpg")
    with pytest.raises(MicrographError, match="is a folder, not a picture: name a file in it"):
        read(tmp_path)
    (tmp_path / "a.webp").write_bytes(b"RIFF")
    with pytest.raises(MicrographError, match=r"\.webp is not read: convert it to one of \.bmp, \.jpeg"):
        read(tmp_path / "a.webp")


def test_a_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions do not stop the administrator, as whom tests often run, so the system's answer is put in place."""
    (tmp_path / "a.jpg").write_bytes(b"x")

    def refuse(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(MicrographError, match="no permission to read it: change the file's permissions"):
        read(tmp_path / "a.jpg")


def test_a_decompression_bomb_is_refused_before_it_unfolds(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    blocks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in blocks
    )
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    with pytest.raises(MicrographError, match="bytes hold no picture of the 60000x60000 px claimed"):
        read(tmp_path / "bomb.png")
    # The header claims 80 GB, the file has a few bytes.
    claim = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        claim, {"descr": "<f8", "fortran_order": False, "shape": (100_000, 100_000)}
    )
    (tmp_path / "bomb.npy").write_bytes(claim.getvalue() + b"\0" * 64)
    with pytest.raises(MicrographError, match="64 of 80000000000 bytes"):
        read(tmp_path / "bomb.npy")


def test_a_png_named_jpg_is_read_and_said(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(_encode(_colours(), "PNG"))
    micrograph = read(tmp_path / "a.jpg")
    np.testing.assert_array_equal(micrograph.pixels, _colours())
    assert micrograph.notes == ("named .jpg but holds a png",)


def test_damage_anywhere_gives_a_picture_or_a_clear_error(tmp_path: Path) -> None:
    """Whatever a broken disk does to a file, nothing but MicrographError comes out."""
    rng = np.random.default_rng(3)
    stream = io.BytesIO()
    tifffile.imwrite(stream, _colours(), photometric="rgb", compression="zlib")
    originals = {
        "a.tif": stream.getvalue(),
        "b.png": _encode(_colours(), "PNG"),
        "c.npy": _encode(_colours(), "npy"),
    }
    refused = 0
    for name, whole in originals.items():
        for _ in range(60):
            broken = bytearray(whole)
            for place in rng.integers(0, 400, 3):
                broken[place] = rng.integers(0, 256)
            (tmp_path / name).write_bytes(broken)
            try:
                read(tmp_path / name)
            except MicrographError:
                refused += 1
    assert refused > 60


# ---------------------------------------------------------------- lists of pictures


def test_folders_globs_and_files(tmp_path: Path) -> None:
    names = [
        "b.JPG",
        "a.png",
        "c.tiff",
        "a.layers.png",
        "a.overlay.png",
        "b.mask.png",
        "._b.jpg",
        "notes.txt",
        "t.csv",
    ]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "d.png").touch()
    pictures = [tmp_path / name for name in ("a.png", "b.JPG", "c.tiff")]
    assert find_pictures([tmp_path]) == pictures
    assert find_pictures([tmp_path / "c.tiff", tmp_path]) == [pictures[2], *pictures[:2]]
    assert find_pictures([f"{tmp_path}/*.png"]) == pictures[:1]
    assert find_pictures([tmp_path / "b.mask.png"]) == [tmp_path / "b.mask.png"]  # named outright


def test_a_name_with_brackets_is_a_file_before_it_is_a_glob(tmp_path: Path) -> None:
    (tmp_path / "flake[1].png").touch()
    assert find_pictures([tmp_path / "flake[1].png"]) == [tmp_path / "flake[1].png"]


def test_inputs_without_pictures_are_errors(tmp_path: Path) -> None:
    with pytest.raises(MicrographError, match="no such file or folder: check the path"):
        find_pictures([tmp_path / "nowhere"])
    with pytest.raises(MicrographError, match=r"no picture matches: flatscope reads \.bmp"):
        find_pictures([f"{tmp_path}/*.jpg"])
    (tmp_path / "notes.txt").touch()
    with pytest.raises(MicrographError, match="the folder holds no pictures"):
        find_pictures([tmp_path])


# ---------------------------------------------------------------- writing


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_atomic(tmp_path / "out" / "flakes.csv", "old")

    def fill(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("flatscope.files.write.os.replace", fill)
    with pytest.raises(
        WriteError, match=r"flakes\.csv: the disk is full, 2\.0 MB did not fit: free some space"
    ):
        write_atomic(path, bytes(2_000_000))
    assert path.read_text() == "old"
    assert [entry.name for entry in path.parent.iterdir()] == ["flakes.csv"]


def test_writing_below_a_file_or_over_a_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(WriteError, match="out: is a file, not a folder: choose another folder"):
        write_atomic(tmp_path / "out" / "flakes.csv", "x")
    (tmp_path / "taken.csv").mkdir()
    with pytest.raises(WriteError, match="a folder has this name"):
        write_atomic(tmp_path / "taken.csv", "x")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out", "taken.csv"]


# ---------------------------------------------------------------- real pictures


@pytest.mark.real
def test_real_photographs_come_in_unchanged(real_data: Path) -> None:
    path = real_data / "optical" / "graphene" / "17294f8a.jpg"
    micrograph = read(path, um_per_px=0.384)
    assert (micrograph.shape, micrograph.pixels.dtype) == ((1200, 1920), np.uint8)
    with Image.open(path) as image:
        np.testing.assert_array_equal(micrograph.pixels, np.asarray(image))
    assert micrograph.calibration is not None
    assert micrograph.calibration.pixel_area_um2 == pytest.approx(0.384**2)


@pytest.mark.real
def test_a_real_folder_lists_pictures_without_masks(real_data: Path) -> None:
    pictures = find_pictures([real_data / "optical" / "graphene"])
    assert len(pictures) > 3
    assert not any(path.name.endswith(".mask.png") for path in pictures)

"""Pictures of every mode, hostile ones, and the preprocessing against formulas of its own."""

from __future__ import annotations

import io
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from utils.errors import UserError
from utils.images import MAX_PIXELS, load_image, preprocess

RESOLUTIONS = (32, 48, 384)
# One rounding of a pixel's value, a subtraction and a division in float32.
FLOAT32_ERROR = 1e-6
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073], dtype=torch.float64)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711], dtype=torch.float64)


def picture(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Noise over a gradient: every pixel differs, and interpolation matters."""
    x = np.linspace(0, 200, width)[None, :, None]
    y = np.linspace(0, 40, height)[:, None, None]
    noise = rng.integers(0, 16, (height, width, 3))
    return Image.fromarray((x + y + noise).clip(0, 255).astype(np.uint8))


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def refusal(source: Path | str) -> str:
    with pytest.raises(UserError) as error:
        load_image(source)
    message = str(error.value)
    assert message.startswith(f"{source}: ")
    assert "\n" not in message
    return message


# ---- preprocessing ------------------------------------------------------------------------------


def oracle(image: Image.Image, resolution: int) -> torch.Tensor:
    """The preprocessing in float64, sizes and crop in integers; only resizing is Pillow's."""
    width, height = image.size
    short = min(width, height)
    new_width, new_height = (resolution * side // short for side in (width, height))
    resized = image.resize((new_width, new_height), Image.Resampling.BICUBIC)
    offsets = []
    for side in (new_width, new_height):
        half, odd = divmod(side - resolution, 2)
        offsets.append(half + (half % 2 if odd else 0))  # a half goes to the even neighbour
    rgb = torch.from_numpy(np.array(resized.convert("RGB"))).double()
    x, y = offsets
    cut = rgb[y : y + resolution, x : x + resolution] / 255
    return ((cut - MEAN) / STD).permute(2, 0, 1)[None]


SIZES = [
    *((384, 384), (500, 375), (375, 500), (640, 427), (427, 640), (97, 96), (96, 97)),
    *((31, 300), (300, 31), (1, 1), (1, 5), (7, 2), (1000, 999), (333, 1021)),
]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_formulas(rng: np.random.Generator, size: tuple[int, int], resolution: int) -> None:
    image = picture(rng, *size)
    found = preprocess(image, resolution)
    assert found.shape == (1, 3, resolution, resolution)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    expected = oracle(image, resolution).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=FLOAT32_ERROR)


def test_float32_arithmetic_is_torchs_bit_for_bit(rng: np.random.Generator) -> None:
    """The operations of ToTensor and Normalize, in torch, at a size that needs no resizing."""
    image = picture(rng, 48, 48)
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
    mean, std = MEAN.float()[:, None, None], STD.float()[:, None, None]
    expected = tensor.sub(mean).div(std).numpy()[None]
    np.testing.assert_array_equal(preprocess(image, 48), expected)


def test_black_and_white_have_the_published_values() -> None:
    for colour, values in (
        ("black", (-1.7923, -1.7521, -1.4802)),
        ("white", (1.9303, 2.0749, 2.1459)),
    ):
        found = preprocess(Image.new("RGB", (50, 40), colour), 32)
        for channel, value in enumerate(values):
            np.testing.assert_allclose(found[0, channel], value, rtol=0, atol=5e-5)


def test_crop_takes_the_middle_and_rounds_halves_to_even() -> None:
    # Columns numbered by their red value; no resizing, so that offsets show as numbers.
    for width, left in ((33, 0), (34, 1), (35, 2), (36, 2), (37, 2), (39, 4), (40, 4)):
        columns = np.zeros((32, width, 3), np.uint8)
        columns[:, :, 0] = np.arange(width)
        found = preprocess(Image.fromarray(columns), 32)
        red = found[0, 0, 5] * STD[0].item() + MEAN[0].item()
        np.testing.assert_array_equal(np.rint(red * 255), np.arange(left, left + 32))
        rows = preprocess(Image.fromarray(columns.transpose(1, 0, 2)), 32)
        np.testing.assert_array_equal(rows[0, 0].T, found[0, 0])


def test_longer_side_is_floored() -> None:
    # 32·100/33 = 96.97 becomes 96, whose crop starts at 32; 97 would start at 32 as well but
    # stretch the picture: Pillow's own resize to 96 is the measure.
    image = picture(np.random.default_rng(5), 100, 33)
    found = preprocess(image, 32)
    exact = image.resize((96, 32), Image.Resampling.BICUBIC).crop((32, 0, 64, 32))
    np.testing.assert_array_equal(found, preprocess(exact, 32))
    rounded = image.resize((97, 32), Image.Resampling.BICUBIC).crop((32, 0, 64, 32))
    assert not np.array_equal(found, preprocess(rounded, 32))


def test_picture_is_not_changed(rng: np.random.Generator) -> None:
    image = picture(rng, 60, 50)
    before = image.tobytes()
    preprocess(image, 32)
    assert image.tobytes() == before
    assert image.size == (60, 50)


def to_mode(image: Image.Image, mode: str, rng: np.random.Generator) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 2**16, image.size[::-1], dtype=np.uint16))
    if mode == "PA":
        return image.convert("P").convert("PA")
    if mode in ("LA", "RGBA"):
        image = image.convert(mode)
        alpha = rng.integers(0, 256, image.size[::-1], dtype=np.uint8)
        image.putalpha(Image.fromarray(alpha))
        return image
    return image.convert(mode)


MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "I;16")


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_resized_before_it_becomes_rgb(rng: np.random.Generator, mode: str) -> None:
    image = to_mode(picture(rng, 70, 45), mode, rng)
    assert image.mode == mode
    np.testing.assert_allclose(
        preprocess(image, 32), oracle(image, 32).numpy(), rtol=0, atol=FLOAT32_ERROR
    )
    if mode in ("P", "1", "RGBA", "LA"):  # where the order shows
        assert not np.allclose(preprocess(image, 32), preprocess(image.convert("RGB"), 32))


def test_transparency_is_dropped_not_composited() -> None:
    red = preprocess(Image.new("RGB", (40, 40), (255, 0, 0)), 32)
    half = Image.new("RGBA", (40, 40), (255, 0, 0, 128))
    np.testing.assert_array_equal(preprocess(half, 32), red)
    clear = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    np.testing.assert_array_equal(preprocess(clear, 32), red)


def test_sixteen_bits_saturate() -> None:
    grey = Image.fromarray(np.full((40, 40), 300, np.uint16))
    white = preprocess(Image.new("RGB", (40, 40), "white"), 32)
    np.testing.assert_array_equal(preprocess(grey, 32), white)


def test_palette_with_transparent_entries_gives_no_warning(rng: np.random.Generator) -> None:
    image = picture(rng, 40, 40).convert("P")
    image.info["transparency"] = bytes(range(256))
    assert preprocess(image, 32).shape == (1, 3, 32, 32)


@pytest.mark.parametrize("size", [(1, 40_000), (40_000, 1), (2, 2000)])
def test_picture_that_resizing_would_blow_up(size: tuple[int, int]) -> None:
    with pytest.raises(UserError, match="too long and narrow: ") as error:
        preprocess(Image.new("L", size), 384)
    assert f"{size[0]} × {size[1]} pixels" in str(error.value)


def test_longest_picture_works() -> None:
    assert preprocess(Image.new("L", (2, 1200)), 384).shape == (1, 3, 384, 384)


# ---- loading ------------------------------------------------------------------------------------

FILES = [
    *(("RGB", "jpg"), ("L", "jpg"), ("CMYK", "jpg"), ("RGB", "png"), ("RGBA", "png")),
    *(("P", "png"), ("LA", "png"), ("1", "png"), ("I;16", "png"), ("P", "gif"), ("RGB", "webp")),
    *(("RGBA", "webp"), ("RGB", "bmp"), ("RGB", "tiff"), ("CMYK", "tiff"), ("F", "tiff")),
    *(("I;16", "tiff"), ("RGB", "ppm"), ("RGB", "tga"), ("RGB", "pcx"), ("RGB", "jp2")),
]


@pytest.mark.parametrize(("mode", "suffix"), FILES)
def test_files_are_decoded_as_stored(
    tmp_path: Path, rng: np.random.Generator, mode: str, suffix: str
) -> None:
    path = saved(to_mode(picture(rng, 40, 35), mode, rng), tmp_path / f"a.{suffix}")
    found = load_image(path)
    with Image.open(path) as expected:
        assert found.mode == expected.mode
        assert found.size == (40, 35)
        assert np.array_equal(np.asarray(found), np.asarray(expected))
    assert preprocess(found, 32).shape == (1, 3, 32, 32)
    assert load_image(str(path), friendly=True).mode == "RGB"


def test_wrong_suffix_does_not_matter(tmp_path: Path, rng: np.random.Generator) -> None:
    image = picture(rng, 40, 35)
    path = saved(image, tmp_path / "a.txt", format="PNG")
    assert np.array_equal(np.asarray(load_image(path)), np.asarray(image))


def test_animations_give_their_first_frame(tmp_path: Path, rng: np.random.Generator) -> None:
    frames = [picture(rng, 40, 35) for _ in range(3)]
    for suffix, options in (("png", {}), ("webp", {"lossless": True})):
        path = tmp_path / f"a.{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:], **options)
        with Image.open(path) as image:
            assert image.n_frames == 3
        found = load_image(path).convert("RGB")
        assert np.array_equal(np.asarray(found), np.asarray(frames[0]))


def rotated(path: Path, rng: np.random.Generator, orientation: int) -> Image.Image:
    image = picture(rng, 40, 20)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)
    return image


def test_rotation_is_applied_only_when_asked(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "a.png"
    image = rotated(path, rng, orientation=6)
    assert np.array_equal(np.asarray(load_image(path)), np.asarray(image))
    upright = load_image(path, friendly=True)
    assert np.array_equal(np.asarray(upright), np.rot90(np.asarray(image), -1))


def test_friendly_lays_transparency_on_white(tmp_path: Path) -> None:
    path = saved(Image.new("RGBA", (9, 9), (255, 0, 0, 0)), tmp_path / "a.png")
    assert load_image(path, friendly=True).getpixel((4, 4)) == (255, 255, 255)
    palette = Image.new("P", (9, 9), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    path = saved(palette, tmp_path / "b.png", transparency=1)
    assert load_image(path, friendly=True).getpixel((4, 4)) == (255, 255, 255)


def test_friendly_scales_sixteen_bits(tmp_path: Path) -> None:
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    path = saved(Image.fromarray(values), tmp_path / "a.png")
    found = np.asarray(load_image(path, friendly=True))
    assert found[0, :, 0].tolist() == [0, 1, 128, 255]


def test_result_is_free_of_its_file(tmp_path: Path, rng: np.random.Generator) -> None:
    image = picture(rng, 40, 35)
    path = saved(image, tmp_path / "a.tiff")
    found = load_image(path)
    path.unlink()
    assert np.array_equal(np.asarray(found), np.asarray(image))


# ---- hostile and mistaken sources ---------------------------------------------------------------


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "absent.png")
    assert "is a folder" in refusal(tmp_path)
    os.mkfifo(tmp_path / "fifo.png")
    assert "not a regular file" in refusal(tmp_path / "fifo.png")
    assert "cannot read" in refusal(tmp_path / ("x" * 300))
    assert "cannot read" in refusal(str(tmp_path / "a\0b"))


def test_file_without_permission(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(picture(rng, 9, 9), tmp_path / "a.png")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert "Permission denied" in refusal(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        b"<html></html>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        bytes(99),
    ],
    ids=["empty", "text", "web page", "program for Ghostscript", "zeros"],
)
def test_files_that_are_no_pictures(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    assert "is no picture that can be read" in refusal(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "bmp", "tiff", "jp2"])
@pytest.mark.parametrize("fraction", [0.3, 0.7, 0.95])
def test_truncated_files(
    tmp_path: Path, rng: np.random.Generator, suffix: str, fraction: float
) -> None:
    path = saved(picture(rng, 90, 80), tmp_path / f"a.{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    message = refusal(path)
    assert "damaged or cut short" in message or "no picture" in message


@pytest.mark.parametrize(
    "suffix", ["png", "jpg", "gif", "webp", "bmp", "tiff", "jp2", "tga", "pcx"]
)
def test_damaged_bytes_never_escape_as_other_errors(
    tmp_path: Path, rng: np.random.Generator, suffix: str
) -> None:
    path = saved(picture(rng, 40, 30), tmp_path / f"a.{suffix}")
    sound = np.fromfile(path, np.uint8)
    for _ in range(60):
        content = sound.copy()
        where = rng.integers(0, min(content.size, 400), 4)
        content[where] = rng.integers(0, 256, 4)
        content.tofile(path)
        try:
            image = load_image(path)
        except UserError:
            continue
        assert image.size[0] * image.size[1] <= MAX_PIXELS


def png_of_claimed_size(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(100_000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(10_000, 9_000), (15_000, 10_000), (60_000, 60_000)])
def test_decompression_bombs_are_refused_before_decoding(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png_of_claimed_size(*size))
    message = refusal(path)
    assert "too large" in message
    assert "at most 89,478,485" in message


def test_limit_holds_though_pillows_own_is_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    path = tmp_path / "a.png"
    path.write_bytes(png_of_claimed_size(60_000, 60_000))
    assert "60000 × 60000 pixels" in refusal(path)


# ---- addresses ----------------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[tuple[str, dict[str, bytes]]]:
    """A server of the files in a dict."""
    files: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            content = files.get(self.path)
            self.send_response(404 if content is None else 200)
            self.end_headers()
            self.wfile.write(content or b"")

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", files
        running.shutdown()


def test_picture_from_an_address(
    server: tuple[str, dict[str, bytes]], rng: np.random.Generator
) -> None:
    address, files = server
    image = picture(rng, 40, 35)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    files["/a%20b.png?x=1"] = buffer.getvalue()
    found = load_image(f"{address}/a%20b.png?x=1")
    assert np.array_equal(np.asarray(found), np.asarray(image))
    files["/page"] = b"<html></html>"
    assert "is no picture" in refusal(f"{address}/page")
    assert "answers 404" in refusal(f"{address}/absent.png")


@pytest.mark.parametrize(
    "url", ["ftp://127.0.0.1/a.png", "file:///etc/passwd", "data:image/png;base64,xx", "s3://a/b"]
)
def test_other_schemes_are_refused(url: str) -> None:
    assert "not supported; expected http:// or https://" in refusal(url)


def test_path_with_a_colon_is_a_path(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    saved(picture(rng, 12, 9), tmp_path / "http:a.png")
    assert load_image("http:a.png").size == (12, 9)


def test_an_empty_name_is_told() -> None:
    with pytest.raises(UserError, match="the name of the picture is empty"):
        load_image("")

import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from cggm.errors import DataError
from cggm_cls.data.food101.images import MAX_PIXELS, image_views, read_image


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def write_bomb(file, side: int) -> None:
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b""))
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


@pytest.fixture
def picture():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    return Image.fromarray(pixels).resize((90, 60))


@pytest.mark.parametrize("side", [30_000, 6_000])
def test_bomb_is_refused_before_decoding(tmp_path, side):
    write_bomb(tmp_path / "bomb.png", side)
    script = (
        "import resource, sys, pathlib\n"
        "from cggm.errors import DataError\n"
        "from cggm_cls.data.food101.images import read_image\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n"
        "    read_image(pathlib.Path(sys.argv[1]), 'bomb')\n"
        "except DataError as error:\n"
        "    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before\n"
        "    print(grown, error)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "bomb.png")]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "bomb.png" in found
    assert f"at most {MAX_PIXELS} pixels" in found
    assert int(found.split()[0]) < 50_000  # KB


def test_truncated_image_is_refused(tmp_path, picture):
    picture.save(tmp_path / "whole.jpg")
    content = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"sample_7.*cut.jpg.*truncated"):
        read_image(tmp_path / "cut.jpg", "sample_7")


@pytest.mark.parametrize("content", [b"", b"no image", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_no_image_is_refused(tmp_path, content):
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(DataError, match="cannot be decoded"):
        read_image(tmp_path / "x.jpg", "x")


def test_missing_image_is_named(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_image(tmp_path / "x.jpg", "x")


@pytest.mark.parametrize(("mode", "kind"), [("L", "png"), ("P", "gif"), ("RGBA", "webp")])
def test_every_mode_becomes_rgb_whatever_the_name(tmp_path, picture, mode, kind):
    picture.convert(mode).save(tmp_path / "x.jpg", kind)
    image = read_image(tmp_path / "x.jpg", "x")
    assert (image.mode, image.size) == ("RGB", (90, 60))


def views(picture, case="a", seed=0, count=4, size=32):
    return image_views(picture, case, size=size, resample=2, views=count, seed=seed)


def test_first_view_is_the_image_itself(picture):
    found = views(picture)
    assert found.shape == (4, 32, 32, 3)
    expected = picture.resize((32, 32), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(found[0], np.asarray(expected))


def test_views_depend_on_seed_sample_and_number_alone(picture):
    found = views(picture)
    np.testing.assert_array_equal(found, views(picture))
    np.testing.assert_array_equal(found[:2], views(picture, count=2))
    distinct = [*found, *views(picture, seed=1)[1:], *views(picture, case="b")[1:]]
    assert len({view.tobytes() for view in distinct}) == len(distinct)


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 3)])
def test_views_of_thin_images(shape):
    assert views(Image.new("RGB", shape), count=50, size=4).shape == (50, 4, 4, 3)

"""An image is found by its path however the path is written, and its base64 decoded however it is."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from megatron_apriel.data.raw.pictures.image_references import ImageLoader
from megatron_apriel.data.raw.problems import BadRecord

DATA = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
BASE64 = base64.b64encode(DATA).decode()
SAFE = base64.urlsafe_b64encode(DATA).decode()


@pytest.fixture
def loader(tmp_path: Path) -> ImageLoader:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a cat.png").write_bytes(DATA)
    (tmp_path / "50%25.png").write_bytes(DATA)
    return ImageLoader(tmp_path)


@pytest.mark.parametrize(
    "path", ["in/a cat.png", "in/a%20cat.png", "in\\a cat.png", "file:in/a%20cat.png", "50%25.png", "./in/a cat.png"]
)
def test_spellings_of_a_path(path: str, loader: ImageLoader) -> None:
    assert loader.load(path) == DATA


def test_addresses_of_files(loader: ImageLoader) -> None:
    place = loader.root / "in" / "a%20cat.png"
    for address in (f"file://{place}", f"file://localhost{place}", f"FILE:{place}"):
        assert loader.load(address) == DATA


@pytest.mark.parametrize(
    "path", ["file:///etc/passwd", "file://host/a.png", "..%2Fa.png", "..\\a.png", "file:../a.png"]
)
def test_none_leads_out_of_the_root(path: str, loader: ImageLoader) -> None:
    with pytest.raises(BadRecord, match=r"leads out of the image root .*; --image-root names another directory"):
        loader.load(path)


@pytest.mark.parametrize("text", [BASE64, BASE64.rstrip("="), SAFE, "\r\n".join((BASE64[:76], BASE64[76:]))])
def test_spellings_of_base64(text: str, loader: ImageLoader) -> None:
    assert "+" in BASE64 or "/" in BASE64, "there is something to spell otherwise"
    escaped = text.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D")
    for address in (text, f"data:image/png;base64,{text}", f"DATA:image/png;BASE64,{escaped}"):
        assert loader.load(address) == DATA

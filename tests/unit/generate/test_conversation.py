"""What people put into a question: images of every kind become what models were trained on."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from megatron_apriel.errors import DataError
from megatron_apriel.generate.conversation import Picture, ToolCall


def pixels(picture: Picture) -> np.ndarray:
    kind, _, data = picture.url.partition(";base64,")
    assert kind in ("data:image/png", "data:image/jpeg")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_images_are_upright_and_opaque(tmp_path: Path) -> None:
    image = Image.new("RGBA", (4, 2), (255, 0, 0, 0))
    image.save(tmp_path / "clear.png")
    assert (pixels(Picture.from_file(tmp_path / "clear.png")) == 255).all()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20), "red").save(tmp_path / "turned.jpg", exif=exif)
    turned = Picture.from_file(tmp_path / "turned.jpg")
    assert (turned.height, turned.width) == (40, 20) and pixels(turned).shape == (40, 20, 3)


def test_what_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"x.png cannot be used: an image of 7 bytes.*is none of JPEG"):
        Picture.from_file(tmp_path / "x.png")
    with pytest.raises(DataError, match=r"none.png cannot be read: No such file"):
        Picture.from_file(tmp_path / "none.png")
    with pytest.raises(DataError, match="cannot be read"):
        Picture.from_file(tmp_path)
    with pytest.raises(DataError, match="it is a device"):
        Picture.from_file("/dev/zero")


def test_arguments_that_are_no_json_stay_text() -> None:
    assert ToolCall("f", '{"x": 1}').values() == {"x": 1}
    assert ToolCall("f", "{x").values() == "{x"

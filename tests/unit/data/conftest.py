"""A small model directory as it is exported, real photographs, and the tool that makes corpora of them."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import skimage.data
import sklearn.datasets
from PIL import Image

from megatron_apriel.data.corpus.chat import exported_chat_template
from megatron_apriel.data.corpus.tokens import TokenTable
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.testing.scripts import load_script
from megatron_apriel.testing.tokenizers import write_processor

IMAGE_SIZE, PATCH_SIZE = 128, 16


@pytest.fixture(scope="session")
def architecture() -> Architecture:
    full = Architecture.from_preset("pixtral-12b")
    return replace(
        full, decoder=replace(full.decoder, vocab_size=4096), tower=replace(full.tower, image_size=IMAGE_SIZE)
    )


@pytest.fixture(scope="session")
def model(architecture, tmp_path_factory) -> Path:
    """A directory with config, tokenizer, processor and the exported chat template."""
    directory = tmp_path_factory.mktemp("model")
    write_processor(directory, architecture)
    (directory / "config.json").write_text(json.dumps(architecture.to_hf_config()))
    (directory / "chat_template.jinja").write_text(exported_chat_template())
    return directory


@pytest.fixture(scope="session")
def prepare_data() -> Callable[..., int]:
    """``main`` of tools/prepare_data.py, with arguments of any type."""
    main = load_script("tools/prepare_data.py").main
    return lambda *arguments: main([str(one) for one in arguments])


@pytest.fixture(scope="session")
def table(model) -> TokenTable:
    return TokenTable.from_directory(model)


@pytest.fixture(scope="session")
def processor(model):
    """What a user of the exported directory gets: the independent reference."""
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(model)


@pytest.fixture(scope="session")
def photographs() -> dict[str, bytes]:
    """Files of scikit-image and scikit-learn."""
    places = (Path(skimage.data.__file__).parent, Path(sklearn.datasets.__file__).parent / "images")
    names = ("chelsea.png", "coffee.png", "rocket.jpg", "china.jpg", "flower.jpg")
    return {name: (place / name).read_bytes() for name in names for place in places if (place / name).is_file()}


@pytest.fixture(scope="session")
def small_photograph(photographs) -> Image.Image:
    return Image.open(io.BytesIO(photographs["china.jpg"])).resize((60, 40))

"""Checkpoints written and read by the description of the format alone, without the code under test."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

Tensors = Mapping[str, tuple[str, np.ndarray]]
"""By name: safetensors dtype, and numbers (bfloat16 as its bits)."""


def write_file(file: Path, tensors: Tensors) -> None:
    """A safetensors file, by the format's description."""
    header, data = {}, b""
    for name, (dtype, numbers) in tensors.items():
        content = np.ascontiguousarray(numbers).tobytes()
        offsets = [len(data), len(data) + len(content)]
        header[name] = {"dtype": dtype, "shape": list(numbers.shape), "data_offsets": offsets}
        data += content
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


def write_model(directory: Path, tensors: Tensors, config: Any, files: int = 1, base: str = "model") -> Path:
    """A checkpoint directory, its tensors dealt out to ``files`` files."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / ("params.json" if base == "consolidated" else "config.json")).write_text(json.dumps(config))
    if files == 1:
        write_file(directory / f"{base}.safetensors", tensors)
        return directory
    parts: list[dict[str, Any]] = [{} for _ in range(files)]
    for position, (name, tensor) in enumerate(tensors.items()):
        parts[position % files][name] = tensor
    weight_map = {}
    for number, part in enumerate(parts, start=1):
        file_name = f"{base}-{number:05}-of-{files:05}.safetensors"
        write_file(directory / file_name, part)
        weight_map.update(dict.fromkeys(part, file_name))
    (directory / f"{base}.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return directory


def read_model(directory: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """All tensors of a directory, read without the code under test."""
    tensors = {}
    for file in directory.glob("*.safetensors"):
        raw = file.read_bytes()
        length = struct.unpack("<Q", raw[:8])[0]
        header = json.loads(raw[8 : 8 + length])
        assert header.pop("__metadata__", {"format": "pt"}) == {"format": "pt"}
        for name, field in header.items():
            begin, end = (8 + length + offset for offset in field["data_offsets"])
            assert name not in tensors
            tensors[name] = (field["dtype"], tuple(field["shape"]), raw[begin:end])
    return tensors

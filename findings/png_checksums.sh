#!/usr/bin/env bash
# Library:   Pillow 13.0.0, beside pypng 0.20220715.0
# Behaviour: Pillow decodes a PNG whose pixels have a wrong checksum, without an error or a warning. Its own
#            Image.verify() and pypng refuse the same file.
# Output:    Pillow, load: read
#            Pillow, verify: SyntaxError: broken PNG file (bad header checksum in b'IDAT')
#            pypng: ChunkError: ChunkError: Checksum error in IDAT chunk: 0x3F63A899 != 0x3E63A899.
# Matters:   A picture that Pillow read while a corpus was prepared can be refused by the decoder that training uses.
#            megatron_apriel/data/corpus/plain_images.py therefore checks all checksums before it keeps a file's bytes.
set -euo pipefail
unset PYTHONPATH

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/environment"
"$folder/environment/bin/pip" install --quiet pillow==13.0.0 pypng==0.20220715.0

cd "$folder"
environment/bin/python - <<'PYTHON' || { echo "the behaviour has changed" >&2; exit 1; }
import io
import sys

import png
from PIL import Image

stream = io.BytesIO()
Image.new("RGB", (8, 8), (200, 30, 30)).save(stream, "PNG")
data = bytearray(stream.getvalue())
start = data.index(b"IDAT")
length = int.from_bytes(data[start - 4 : start])
data[start + 4 + length] ^= 1  # the first byte of the checksum of the pixels


def outcome(read) -> str:
    """What reading the file gives: ``read``, or the error."""
    try:
        read(io.BytesIO(data))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "read"


found = {
    "Pillow, load": outcome(lambda file: Image.open(file).load()),
    "Pillow, verify": outcome(lambda file: Image.open(file).verify()),
    "pypng": outcome(lambda file: list(png.Reader(file=file).read()[2])),
}
for name, said in found.items():
    print(f"{name}: {said}")
sys.exit([said.partition(":")[0] for said in found.values()] != ["read", "SyntaxError", "ChunkError"])
PYTHON

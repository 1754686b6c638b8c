"""How much one record, one picture and one file may grow while raw data is read.

Compression, repetition and declared sizes let a file of a few kilobytes ask for any amount of memory and time. Each way
to grow is held to one of these limits before the memory or the time is spent; ``tools/prepare_data.py`` has an option
for each, for data that is honestly larger. Readers, workers and tools share this one place.
"""

from __future__ import annotations

from dataclasses import dataclass

FREE_BYTES = 16 * 2**20
"""What may come out of any file, however small it is."""

_BYTES_PER_VALUE = 512
"""Of a record's limit, per value in it: Python takes 50 to 250 bytes of memory for a value of a few characters."""

_FEWEST_VALUES = 1000


@dataclass(frozen=True)
class ReadLimits:
    """Limits on what is read.

    Attributes:
        record_bytes: of one record (a line, an element of an array, a row, a sample of a tar), of one image file, and
            of all images of a record as they are stored.
        expansion: bytes that may come out of a packed file for each byte of it, beyond ``FREE_BYTES``.
        window_bytes: how far back a .zst file may refer, which is memory to unpack it; also zstd's own default.
        text_characters: of one document; turning text into tokens takes some 500 bytes of memory for each.
        pixels: of one picture, for which 4 bytes of memory each may be taken. A picture that takes more (with
            transparency or 16 bits per colour, progressive JPEG, WebP) may have as many times fewer pixels.
    """

    record_bytes: int = 256 * 2**20
    expansion: int = 100
    window_bytes: int = 128 * 2**20
    text_characters: int = 4_000_000
    pixels: int = 100_000_000

    @property
    def record_values(self) -> int:
        """Numbers, texts, lists and objects in one record."""
        return max(_FEWEST_VALUES, self.record_bytes // _BYTES_PER_VALUE)

    @property
    def picture_bytes(self) -> int:
        """Memory that decoding one picture may take."""
        return 4 * self.pixels

    def check_growth(self, packed: int, unpacked: int, what: str = "it") -> None:
        """Raise LimitExceeded if so many bytes came, or would come, out of so many."""
        if unpacked > FREE_BYTES + self.expansion * packed:
            raise LimitExceeded(
                f"{what} grows from {packed:,} bytes to {unpacked:,} and more, "
                f"over {self.expansion} times as much and over {FREE_BYTES:,}",
                "--max-expansion",
            )


DEFAULT_LIMITS = ReadLimits()


class LimitExceeded(Exception):
    """A file that asks for more than it may; the message says what, without the file's name.

    Attributes:
        setting: option of the command line that allows more.
    """

    def __init__(self, what: str, setting: str) -> None:
        super().__init__(what)
        self.setting = setting

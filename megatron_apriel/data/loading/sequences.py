"""The batch of any pack of any source, for one rank: its tokens, its share of the images, errors with their place.

Knows nothing of a run's order; which pack comes when is the loaders' business (``loader.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from megatron_apriel.batch import Batch
from megatron_apriel.config.data_sections import ImagesSection
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.data.loading.assemble import ImageShare, make_batch, padding_sequence, read_sequence
from megatron_apriel.data.loading.images import ImageDecoder
from megatron_apriel.data.loading.sources import Source, log_remarks
from megatron_apriel.errors import AprielError, DataError
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.parallel.data_place import DataPlace


class SequenceReader:
    """Makes the batch of (number, source, pack) for one rank; what both loaders are built on."""

    def __init__(self, sources: Sequence[Source], images: ImageShare, place: DataPlace) -> None:
        self.sources, self._images, self._place = sources, images, place
        # Background threads start on device 0; this rank's is remembered for them.
        self._cuda = torch.cuda.current_device() if torch.cuda.is_available() else None

    def batch(self, number: int, source: int, pack: int) -> Batch:
        """The batch of a pack. Whatever goes wrong is raised with the sequence's number and source."""
        try:
            content = read_sequence(self.sources[source], pack)
            images = self._images.pack(content.images)
        except AprielError as error:
            raise type(error)(f"sequence {number}: {error.what}", error.why, error.fix) from error
        except Exception as error:
            label = self.sources[source].label
            raise DataError(f"sequence {number} (source {label!r}, pack {pack}) cannot be read: {error!r}.") from error
        return self._pinned(make_batch(content, images, number, source, self._place))

    def padding(self, number: int, source: int) -> Batch:
        """A batch without loss."""
        content = padding_sequence(self.sources[source])
        return self._pinned(make_batch(content, self._images.pack(()), number, source, self._place))

    def _pinned(self, batch: Batch) -> Batch:
        if self._cuda is None:
            return batch
        patches = batch.images.patches_PC
        with torch.cuda.device(self._cuda):
            if not patches.is_cuda:
                return batch.pin_memory()
            # Patches decoded on the GPU are where they belong; only the rest is pinned.
            none = torch.zeros(0, patches.shape[1])
            rest = replace(batch, images=replace(batch.images, patches_PC=none)).pin_memory()
        return replace(rest, images=replace(rest.images, patches_PC=patches))

    def close(self) -> None:
        """Release the image decoder."""
        if self._images.decoder is not None:
            self._images.decoder.close()


def open_reader(
    sources: Sequence[Source], architecture: Architecture, config: StageConfig, place: DataPlace
) -> SequenceReader:
    """A rank's reader of ``sources``; says on the first rank what is left out of them."""
    if place.is_first:
        log_remarks(sources)
    tower = architecture.tower
    decoder = None
    if tower is not None and place.with_images and any(source.corpus.manifest.counts.images for source in sources):
        decoder = _decoder(config.images, tower.patch_size)
    images = ImageShare(place.share, place.shares, tower.patch_values if tower else 0, decoder)
    return SequenceReader(sources, images, place)


def _decoder(section: ImagesSection, patch_size: int) -> ImageDecoder:
    return ImageDecoder(
        patch_size,
        device=section.device,
        threads=section.threads,
        damaged=section.damaged,
        max_pixels=section.max_pixels,
    )

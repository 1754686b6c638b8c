"""Prepared corpora and the packing plans kept beside them: refused, or every token and every piece as the files say."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from megatron_apriel.config.data_sections import SourceSection
from megatron_apriel.data.corpus.on_disk import Corpus
from megatron_apriel.data.loading.assemble import read_sequence
from megatron_apriel.data.loading.images import ImageDecoder
from megatron_apriel.data.loading.packing import make_plan
from megatron_apriel.data.loading.sources import Source, open_source
from megatron_apriel.errors import DataError
from megatron_apriel.testing.corpora import random_pixels, write_corpus

from ..byte_changes import change_bytes, edge
from ..canary import Caller, check_untouched
from ..case import Target, Wrong
from ..file_changes import Changes, change_json, copy_honest

LENGTH, SEED = 64, 3
_TABLES = {"documents.npy": "documents", "images.npy": "images"}


def _section(path: Path) -> SourceSection:
    settings = {"corpus": str(path), "long_documents": "split", "without_targets": "drop"}
    return SourceSection.model_validate(settings)


def write_honest(directory: Path) -> None:
    """A corpus of texts, and one of texts and images, a document of each longer than a sequence."""
    rng = np.random.default_rng(11)
    write_corpus(directory / "text", [int(length) for length in rng.integers(1, 60, 12)] + [200])
    pictures: list[list[Any]] = [[5, random_pixels(rng, *rng.integers(4, 40, 2)), 3] for _ in range(5)]
    pictures.append([100, random_pixels(rng, 20, 20), random_pixels(rng, 9, 30), 50])
    write_corpus(directory / "pictures", [*pictures, 7], responses=False)


class Corpora(Target):
    """A corpus as training reads it: opened, planned, its sequences put together and its images decoded."""

    name = "corpora"
    about = "a prepared corpus: manifest, tables, index, tokens, images"

    def make(self, directory: Path) -> None:
        write_honest(directory)

    def open(self, directory: Path) -> None:
        super().open(directory)
        self.decoder = ImageDecoder(4, device="cpu", threads=1)

    def mutate(self, random: Random, directory: Path, changes: int) -> str:
        name = random.choice(("text", "pictures", "pictures"))
        corpus = directory / name
        copy_honest(self.honest / name, corpus)
        done = Changes(random, corpus)
        for _ in range(changes):
            kind = random.random()
            if kind < 0.05:
                done.files()
            elif kind < 0.25:
                done.file("corpus.json", lambda data: change_json(random, data))
            elif kind < 0.65:
                done.file(random.choice(sorted(_TABLES)), lambda data: changed_table(random, data))
            elif kind < 0.8:
                done.file("tokens.idx", lambda data: _changed_index(random, data))
            else:
                chosen = random.choice(("tokens.bin", "responses.bin", "images.bin"))
                done.file(chosen, lambda data: change_bytes(random, data))
        repaired = changes and random.random() < 0.6
        if repaired:
            _repair(corpus, random)
        return f"{name}: {done.finish()}{', the sums made good' if repaired else ''}"

    def check(self, directory: Path) -> None:
        (path,) = (entry for entry in directory.iterdir() if entry.name in ("text", "pictures"))
        os.environ["XDG_CACHE_HOME"] = str(directory / "cache")
        try:
            corpus = Corpus.open(path)
            _compare_tokens(corpus, path)
            source = open_source(_section(path), corpus, LENGTH, SEED)
            check_plan(source)
            self._sequences(source)
        finally:
            check_untouched()

    def _sequences(self, source: Source) -> None:
        """Put all packs together; contents that disagree with the tables are refused pack by pack."""
        vocabulary = source.corpus.manifest.tokenizer.vocab_size
        refusals, packs = [], source.plan.num_packs
        for pack in range(packs):
            try:
                content = read_sequence(source, pack)
                if (
                    content.tokens_S.size != LENGTH
                    or not 0 <= content.tokens_S.min() <= content.tokens_S.max() < vocabulary
                ):
                    raise Wrong("a sequence has tokens outside of the vocabulary")
                if np.any(np.diff(content.cu_seqlens) < 1) or content.cu_seqlens[-1] != LENGTH:
                    raise Wrong(f"a sequence has documents at {content.cu_seqlens.tolist()}")
                if content.images:
                    patches = self.decoder.patches([image.encoded for image in content.images])
                    if len(patches) != sum(image.slots.size for image in content.images):
                        raise Wrong(f"{len(patches)} patches for other slots")
            except DataError as refusal:
                refusals.append(refusal)
        if len(refusals) == packs and packs:
            raise refusals[0]


def _compare_tokens(corpus: Corpus, path: Path) -> None:
    """The documents, one after the other, are the file."""
    whole = np.fromfile(path / "tokens.bin", dtype="<i4")
    read = [corpus.tokens(number) for number in range(len(corpus))]
    if not np.array_equal(np.concatenate(read), whole):
        raise Wrong("the documents' tokens are not those of the file")
    flags = np.concatenate([corpus.responses(number) for number in range(len(corpus))])
    if not np.array_equal(flags.view(np.uint8), np.fromfile(path / "responses.bin", dtype=np.uint8)):
        raise Wrong("the documents' flags are not those of the file")
    stored = (path / "images.bin").read_bytes()
    for number in range(len(corpus)):
        for row in corpus.images(number):
            first = int(row["offset"])
            if corpus.image_bytes(row).tobytes() != stored[first : first + int(row["size"])] or not len(
                corpus.image_bytes(row)
            ):
                raise Wrong("an image's bytes are not those of the file")


def check_plan(source: Source) -> None:
    """Raise Wrong if a plan is not made of exactly the pieces that its documents must be cut into."""
    plan, corpus = source.plan, source.corpus
    expected = make_plan(corpus, LENGTH, SEED, "split", source.lesson.targets.without)
    pieces = [plan.pieces(pack, corpus) for pack in range(plan.num_packs)]
    for pack, inside in enumerate(pieces):
        total = sum(piece.length for piece in inside)
        if not 0 < total <= LENGTH or total != plan.tokens[pack]:
            raise Wrong(f"pack {pack} has {total} tokens, and its plan says {plan.tokens[pack]}")
    right = [expected.pieces(pack, corpus) for pack in range(expected.num_packs)]
    found, wanted = (sorted(piece for inside in packs for piece in inside) for packs in (pieces, right))
    if found != wanted:
        strange = [piece for piece in found if piece not in wanted]
        raise Wrong(f"the plan has pieces that no document gives, or lacks some: {strange[:3]}")
    if plan.long_documents != expected.long_documents:
        raise Wrong(f"the plan says {plan.long_documents} of long documents, which are {expected.long_documents}")


def _changed_index(random: Random, data: bytes) -> tuple[bytes, str]:
    """A number of Megatron's index."""
    if random.random() < 0.3 or len(data) < 42:
        return change_bytes(random, data)
    place = random.choice((9, 17, 18, 26, 34 + 4 * random.randrange((len(data) - 34) // 4)))
    value = edge(random, 32)
    return data[:place] + struct.pack("<I", value) + data[place + 4 :], f"number at {place} = {value}"


def changed_table(random: Random, data: bytes) -> tuple[bytes, str]:
    """A ``.npy`` file with some of its numbers, its rows or its header changed."""
    kind = random.random()
    if kind < 0.2:
        return change_bytes(random, data)
    if (table := _array(data)) is None:
        return change_bytes(random, data)
    if not table.size or kind < 0.3:
        return _strange_array(random, table)
    if table.dtype.names is None or table.ndim != 1:
        return change_bytes(random, data)
    table = table.copy()
    row, column = random.randrange(len(table)), random.choice(table.dtype.names)
    if kind < 0.75:
        bits = 8 * table.dtype[column].itemsize
        old = int(table[column][row])
        value = random.choice((old + 1, old - 1, -old, 0, -1, edge(random, bits))) % 2**bits
        value -= 2**bits if value >= 2 ** (bits - 1) else 0
        table[column][row] = value
        what = f"{column} of row {row} = {value}"
        if random.random() < 0.5 and len(table) > 1:  # another row takes the difference, so that the sum is as it was
            other = (row + 1) % len(table)
            with np.errstate(over="ignore"):
                table[column][other] += np.array(old, dtype=np.int64).astype(table.dtype[column]) - table[column][row]
            what += f", and row {other} takes the difference"
    elif kind < 0.85:
        other = random.randrange(len(table))
        table[[row, other]] = table[[other, row]]
        what = f"rows {row} and {other} exchanged"
    else:
        table = np.delete(table, row) if random.random() < 0.5 else np.insert(table, row, table[row])
        what = f"row {row} removed or repeated"
    return _saved(table), what


def _strange_array(random: Random, table: Any) -> tuple[bytes, str]:
    """An array of another type or shape than is expected."""
    match random.randrange(6):
        case 0:
            return _saved(table.reshape(1, -1)), "two dimensions"
        case 1:
            return _saved(table.view(np.uint8)), "bytes"
        case 2:
            return _saved(np.array([Caller()], dtype=object), allow_pickle=True), "a pickle"
        case 3:
            return _saved(table.astype(table.dtype.newbyteorder(">"))), "the other byte order"
        case 4:
            header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (%d,), }" % random.choice(
                (2**40, 2**62, -1, 10**30)
            )
            return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header, "an endless array"
    header = random.choice(
        (
            b"{'descr': [('a', 'O')], 'fortran_order': False, 'shape': (1,), }",
            b"[" * 3000,
            b"{'descr': '|V0', 'shape': (5,), 'fortran_order': False}",
            b"{}",
            b"1",
        )
    )
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(64), "a strange header"


def _array(data: bytes) -> Any:
    """The array of a ``.npy`` file; None where earlier mutations have left none, of which NumPy tells in any way."""
    try:
        return np.load(io.BytesIO(data), allow_pickle=False)
    except Exception:
        return None


def _saved(table: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, table, **options)
    return buffer.getvalue()


def _repair(corpus: Path, random: Random) -> None:
    """Make manifest and index agree with the tables and files, as far as these can be read."""
    if not all(
        path.is_file() and path.stat().st_size < 2**26 for path in corpus.iterdir() if path.suffix in (".json", ".npy")
    ):
        return
    try:
        manifest = json.loads((corpus / "corpus.json").read_bytes())
        documents = np.load(corpus / "documents.npy", allow_pickle=False)
        images = np.load(corpus / "images.npy", allow_pickle=False)
        with np.errstate(over="ignore"):
            if random.random() < 0.5:
                documents["first_image"] = np.cumsum(documents["images"]) - documents["images"]
                (corpus / "documents.npy").write_bytes(_saved(documents))
            counts = {
                "documents": len(documents),
                "tokens": int(documents["tokens"].sum()),
                "response_tokens": int(documents["responses"].sum()),
                "images": len(images),
            }
            lengths = documents["tokens"]
            index = struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, 4, len(lengths), len(lengths) + 1)
            index += lengths.astype("<i4").tobytes() + ((np.cumsum(lengths) - lengths) * 4).astype("<i8").tobytes()
            (corpus / "tokens.idx").write_bytes(index + np.arange(len(lengths) + 1, dtype="<i8").tobytes())
        manifest["counts"] = counts
        files = [name for name in manifest["files"] if (corpus / name).is_file()]
        manifest["files"] = {name: (corpus / name).stat().st_size for name in files}
        (corpus / "corpus.json").write_text(json.dumps(manifest), encoding="utf-8")
    except Exception:  # earlier mutations have left nothing that could be made good
        return


class PackingPlans(Target):
    """A plan that lies beside a corpus: used if it is one of that corpus, else made again; never an error."""

    name = "plans"
    about = "packing plans kept beside a corpus"

    def make(self, directory: Path) -> None:
        write_honest(directory)
        for name in ("text", "pictures"):
            open_source(_section(directory / name), Corpus.open(directory / name), LENGTH, SEED)

    def mutate(self, random: Random, directory: Path, changes: int) -> str:
        name = random.choice(("text", "pictures"))
        copy_honest(self.honest / name, directory / name)
        (file,) = (directory / name / ".packing").glob("*.npz")
        done = Changes(random, file.parent)
        for _ in range(changes):
            if random.random() < 0.05:
                done.files()
            done.file(file.name, lambda data: _changed_plan(random, data))
        return f"{name}: {done.finish()}"

    def check(self, directory: Path) -> None:
        (path,) = (entry for entry in directory.iterdir() if entry.name in ("text", "pictures"))
        os.environ["XDG_CACHE_HOME"] = str(directory / "cache")
        corpus = Corpus.open(path)
        try:
            source = open_source(_section(path), corpus, LENGTH, SEED)
        except DataError as error:
            raise Wrong(f"a kept plan is no reason to refuse a corpus: {error}") from error
        finally:
            check_untouched()
        check_plan(source)
        for pack in range(source.plan.num_packs):
            read_sequence(source, pack)


def _changed_plan(random: Random, data: bytes) -> tuple[bytes, str]:
    """A ``.npz`` with an array changed and packed anew, or with bytes of the archive changed."""
    if random.random() < 0.25:
        return change_bytes(random, data)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {info.filename: archive.read(info) for info in archive.infolist()}
    except Exception:  # earlier mutations have left no archive
        return change_bytes(random, data)
    if not members:
        return change_bytes(random, data)
    name = random.choice(sorted(members))
    kind = random.random()
    if kind < 0.1:
        del members[name]
        what = f"without {name}"
    elif kind < 0.2:
        other = random.choice(sorted(members))
        members[name] = members[other]
        what = f"{name} is {other}"
    elif kind < 0.35 and "report.npy" in members:
        name = "report.npy"
        text, what = change_json(random, str(_array(members[name])).encode("utf-8", "replace"))
        members[name] = _saved(np.array(text.decode("utf-8", "replace")))
    else:
        members[name], what = _changed_array(random, members[name])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return buffer.getvalue(), f"{name}: {what}"


def _changed_array(random: Random, data: bytes) -> tuple[bytes, str]:
    if (array := _array(data)) is None:
        return change_bytes(random, data)
    array, kind = array.copy(), random.random()
    if kind < 0.15 or array.dtype.kind not in "iu" or array.ndim != 1 or not array.size:
        return _strange_array(random, array) if array.ndim == 1 else change_bytes(random, data)
    place = random.randrange(array.size)
    if kind < 0.55:
        bits = 8 * array.itemsize
        old = int(array[place])
        value = random.choice((old + 1, old - 1, 0, -1, edge(random, bits))) % 2**bits
        array[place] = np.array(value, dtype=np.uint64).astype(array.dtype)
        return _saved(array), f"number {place} = {int(array[place])}, was {old}"
    if kind < 0.7:
        other = random.randrange(array.size)
        array[[place, other]] = array[[other, place]]
        return _saved(array), f"numbers {place} and {other} exchanged"
    if kind < 0.8:
        return _saved(np.delete(array, place)), f"without number {place}"
    if kind < 0.9:
        return _saved(np.insert(array, place, array[place])), f"number {place} twice"
    return _saved(array.astype(random.choice((np.int64, np.int8, np.uint32, np.float64, ">i4")))), "another type"

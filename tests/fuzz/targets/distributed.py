"""Distributed checkpoints of a run: resumed, converted and averaged from, with digests and checksums made good or not.

Every byte of a checkpoint lies under a digest or a checksum. So what is accepted although its bytes were changed has
the honest numbers; where the mutation makes digests and checksums good again, it has those that torch itself reads from
the pieces. No file may have anything called.
"""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Container
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from megatron_apriel.checkpoint.convert import convert, plan_conversion
from megatron_apriel.checkpoint.distributed_weights import DistributedCheckpointReader
from megatron_apriel.checkpoint.metadata import read_metadata
from megatron_apriel.checkpoint.weights import open_weights
from megatron_apriel.formats.kinds import Kind, architecture_of
from megatron_apriel.formats.megatron_parameters import parameters

from ..byte_changes import change_bytes, edge
from ..canary import Caller, calling_pickle, forget, try_all
from ..case import Target, Wrong
from ..file_changes import Changes, change_json, copy_honest, digest_of
from ..json_changes import TEXTS
from ..single_rank import resumed, save_checkpoint, single_run

STEP = "step_00000001"
_SEALED = ("pieces", "metadata")
"""Kinds of mutation after which digests and checksums are right."""


class DistributedCheckpoints(Target):
    """A checkpoint that a run saved, and one that was converted."""

    name = "distributed"
    about = "a run's checkpoint: run.json, .metadata, shards, hf/; resumed and converted"

    def make(self, directory: Path) -> None:
        trained = save_checkpoint(directory / "trained", directory / "model")
        (directory / "converted").mkdir()
        convert(plan_conversion(trained, Kind.MEGATRON), directory / "converted" / STEP)

    def open(self, directory: Path) -> None:
        super().open(directory)
        single_run()
        self.state = resumed(directory / "trained")
        architecture = architecture_of(directory / "trained" / STEP)
        self.keys = list(parameters(architecture))
        weights = open_weights(directory / "trained" / STEP, architecture)
        self.weights = {name: weights.read(name, 0, weight.matrix[0]) for name, weight in weights.table.items()}

    def mutate(self, random: Random, directory: Path, changes: int) -> str:
        name = random.choice(("trained", "trained", "converted"))
        checkpoint = directory / name / STEP
        copy_honest(self.honest / name / STEP, checkpoint)
        done, kinds = Changes(random, checkpoint), set[str]()
        for _ in range(min(changes, 3)):
            kind, change = random.choice(_CHANGES)
            kinds.add(kind)
            change(done)
        if kinds & {"pieces", "metadata", "sidecars"} and random.random() < 0.95:
            _seal(checkpoint)
        (directory / "kinds").write_text(" ".join(sorted(kinds)), encoding="utf-8")
        return f"{name}: {done.finish()}"

    def check(self, directory: Path) -> None:
        forget()
        kinds = (directory / "kinds").read_text(encoding="utf-8").split()
        (run,) = (path for path in directory.iterdir() if path.name in ("trained", "converted"))
        sealed = any(kind in _SEALED for kind in kinds)
        uses: list[Callable[[], None]] = [
            lambda: self._weights(run / STEP, sealed),
            lambda: self._conversion(run / STEP, directory / "hf"),
            lambda: self._average(run / STEP),
        ]
        if run.name == "trained":
            uses.append(lambda: self._resume(run, sealed))
        try_all(uses)

    def _weights(self, checkpoint: Path, sealed: bool) -> None:
        architecture = architecture_of(checkpoint)
        weights = open_weights(checkpoint, architecture)
        weights.verify()
        if not sealed:
            for name, weight in weights.table.items():
                if not _same(weights.read(name, 0, weight.matrix[0]), self.weights[name]):
                    raise Wrong(f"{name} is not what was saved, though nothing was sealed anew")
            return
        read = {name: weights.read(name, 0, weight.matrix[0]) for name, weight in weights.table.items()}
        stored = _by_torch(checkpoint, parameters(architecture))
        for key, parameter in parameters(architecture).items():
            if key not in stored:
                continue
            for piece, row in parameter.pieces_between(0, parameter.shape[0]):
                found = read[piece.weight][piece.start : piece.stop]
                if not _same(found, stored[key][row : row + piece.stop - piece.start].reshape(found.shape)):
                    raise Wrong(f"{piece.weight} is not what torch reads from {key}")

    def _conversion(self, checkpoint: Path, destination: Path) -> None:
        conversion = plan_conversion(checkpoint, Kind.HF)
        convert(conversion, destination)
        result = open_weights(destination, architecture_of(destination))
        for name, weight in conversion.weights.table.items():
            if not _same(*(one.read(name, 0, weight.matrix[0]) for one in (conversion.weights, result))):
                raise Wrong(f"{name} is another after conversion")

    def _average(self, checkpoint: Path) -> None:
        reader = DistributedCheckpointReader(checkpoint)
        for name, spec in reader.tensors.items():
            if reader.read(name, 0, spec.rows).nbytes != spec.size:
                raise Wrong(f"averaging reads another number of bytes of {name}")

    def _resume(self, run: Path, sealed: bool) -> None:
        state = resumed(run)
        if len(state) != len(self.state) or not (sealed or all(map(_same, state, self.state))):
            raise Wrong("what was resumed is not what was saved")
        if any(not tensor.isfinite().all() for tensor in state) and not sealed:
            raise Wrong("something was not restored")


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(
        one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8)
    )


def _by_torch(checkpoint: Path, keys: Container[str]) -> dict[str, Tensor]:
    """The weights, each put together from pieces that torch reads one by one as plain data."""
    whole = {}
    tensors = read_metadata(checkpoint).tensors
    for key, tensor in ((key, tensor) for key, tensor in tensors.items() if key in keys):
        filled = torch.zeros(tensor.shape, dtype=tensor.dtype)
        for piece in tensor.pieces:
            data = (checkpoint / piece.extent.file).read_bytes()[piece.extent.offset : piece.extent.end]
            place = tuple(slice(start, start + size) for start, size in zip(piece.offsets, piece.sizes, strict=True))
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                order = next((name for name in archive.namelist() if name.endswith("/byteorder")), None)
                if order is not None and archive.read(order) != b"little":
                    raise Wrong(f"{key} was read, and its archive is of the byte order {archive.read(order)!r}")
            try:
                filled[place] = torch.load(io.BytesIO(data), weights_only=True)
            except Exception:  # a part of the archive that says nothing of the numbers is damaged
                break
        else:
            whole[key] = filled
    return whole


def _seal(checkpoint: Path) -> None:
    """Make sizes and digests of ``run.json`` those of the files."""
    file = checkpoint / "run.json"
    try:
        record = json.loads(file.read_bytes())
        files = {name: checkpoint / name for name in record["files"]}
        record["files"] = {name: path.stat().st_size for name, path in files.items()}
        if max(record["files"].values()) > 2**26:  # only another size has made it so
            return
        record["sha256"] = {name: digest_of(files[name].read_bytes()) for name in record["sha256"]}
        file.write_text(json.dumps(record), encoding="utf-8")
    except (ValueError, KeyError, TypeError, OSError, AttributeError, RecursionError):
        return


def _plain(done: Changes) -> None:
    """Bytes of any file, under its digest or checksum."""
    names = sorted(str(path.relative_to(done.directory)) for path in done.directory.rglob("*") if path.is_file())
    shards = [name for name in names if name.endswith(".distcp")]
    name = done.random.choice(shards if shards and done.random.random() < 0.6 else names)
    done.file(name, lambda data: change_bytes(done.random, data))


def _run_file(done: Changes) -> None:
    names = ("files", "sha256", "layout", "optimizer_groups", "extra", "step", "format", "world_size", "tensor")
    done.file("run.json", lambda data: change_json(done.random, data, names))


def _sidecar(done: Changes) -> None:
    names = (
        sorted(path.name for path in (done.directory / "hf").glob("*.json")) if (done.directory / "hf").is_dir() else []
    )
    if names:
        done.file(f"hf/{done.random.choice(names)}", lambda data: change_json(done.random, data))


def _metadata(done: Changes) -> None:
    """The directory as bytes, as objects, or as a pickle that calls something."""
    kind = done.random.random()
    if kind < 0.1:
        done.file(".metadata", lambda _: (calling_pickle(), "a pickle that calls a function"))
    elif kind < 0.3:
        done.file(".metadata", lambda data: change_bytes(done.random, data))
    else:
        done.file(".metadata", lambda data: _changed_directory(done.random, data))


def _changed_directory(random: Random, data: bytes) -> tuple[bytes, str]:
    """A field of torch's own objects, of any type and value."""
    if calling_pickle()[:40] in data:
        return data, "nothing more"
    try:
        metadata = pickle.loads(data)  # noqa: S301 - honest, or with a changed field
    except Exception:
        return change_bytes(random, data)
    try:
        what = _change_metadata(random, metadata)
        return pickle.dumps(metadata), what
    except (AttributeError, TypeError, KeyError, IndexError, ValueError, RuntimeError, OverflowError) as error:
        return data, f"nothing ({error})"


def _strange(random: Random) -> Any:
    return random.choice(
        (
            -1,
            0,
            1,
            2**31,
            2**63,
            2**64,
            1.5,
            float("nan"),
            "x",
            None,
            True,
            b"",
            [],
            {},
            (1,),
            edge(random, 20),
            Caller(),
        )
    )


def _change_metadata(random: Random, metadata: Any) -> str:
    keys = sorted(metadata.state_dict_metadata)
    key = random.choice(keys)
    entry = metadata.state_dict_metadata[key]
    index = random.choice(list(metadata.storage_data))
    info = metadata.storage_data[index]
    match random.randrange(14):
        case 0:
            info.offset = random.choice((info.offset + 1, info.offset - 1, -info.offset, _strange(random)))
            return f"offset of {index.fqn} = {info.offset!r}"
        case 1:
            info.length = random.choice((info.length + 1, info.length - 1, 0, _strange(random)))
            return f"length of {index.fqn} = {info.length!r}"
        case 2:
            info.relative_path = random.choice(
                (*TEXTS, "run.json", "hf/config.json", ".metadata", "../model/model.safetensors", _strange(random))
            )
            return f"file of {index.fqn} = {info.relative_path!r}"
        case 3:
            other = random.choice(list(metadata.storage_data))
            metadata.storage_data[index], metadata.storage_data[other] = metadata.storage_data[other], info
            return f"{index.fqn} and {other.fqn} exchange places"
        case 4:
            del metadata.storage_data[index]
            return f"no place for {index.fqn}"
        case 5:
            del metadata.state_dict_metadata[key]
            return f"{key} is not described"
        case 6:
            other = random.choice(keys)
            metadata.state_dict_metadata[key], metadata.state_dict_metadata[other] = (
                metadata.state_dict_metadata[other],
                entry,
            )
            return f"{key} is described as {other}"
        case 7:
            entry.size = torch.Size(random.choice(([2**40], [0], list(entry.size)[::-1], [*entry.size, 1], [1] * 70)))
            return f"{key} has shape {tuple(entry.size)}"
        case 8:
            entry.properties.dtype = random.choice(
                (torch.float32, torch.float16, torch.int8, torch.complex64, torch.uint8, _strange(random))
            )
            return f"{key} has dtype {entry.properties.dtype}"
        case 9:
            chunk = random.choice(entry.chunks)
            name = random.choice(("offsets", "sizes"))
            setattr(
                chunk,
                name,
                torch.Size(
                    [random.choice((0, 1, 2**40, *getattr(chunk, name))) for _ in range(random.choice((0, 1, 2, 2, 3)))]
                ),
            )
            return f"a piece of {key}: {name} = {tuple(getattr(chunk, name))}"
        case 10:
            entry.chunks = random.choice((entry.chunks * 2, entry.chunks[1:], [], _strange(random)))
            return f"other pieces of {key}"
        case 11:
            new = dataclasses.replace(
                index,
                **{
                    random.choice(("fqn", "offset", "index")): random.choice(
                        (key, None, 0, torch.Size([0]), _strange(random))
                    )
                },
            )
            metadata.storage_data[new] = metadata.storage_data.pop(index)
            return f"the place of {index.fqn} is called {new}"
        case 12:
            name = random.choice(("evil", "optimizer.state.x", "random.x", "common_state/shard_0_2", *TEXTS))
            metadata.state_dict_metadata[name] = entry
            return f"{name!r} is described as {key}"
    setattr(
        metadata,
        random.choice(("planner_data", "storage_meta", "version", "state_dict_metadata", "storage_data")),
        _strange(random),
    )
    return "a field of the whole"


def _piece(done: Changes) -> None:
    """The archive of one piece in a shard, with its checksums made good; now and then a pickle that calls something."""
    random = done.random
    try:
        metadata = pickle.loads((done.directory / ".metadata").read_bytes())  # noqa: S301 - honest, or with a changed field
        index = random.choice(list(metadata.storage_data))
        info = metadata.storage_data[index]
        place = slice(info.offset, info.offset + info.length)
        name = Path(info.relative_path).name
    except Exception:  # an earlier mutation has left no directory
        return

    def change(data: bytes) -> tuple[bytes, str]:
        changed, what = _changed_archive(random, data[place])
        if len(changed) != info.length:
            changed = changed[: info.length].ljust(info.length, b"\0")
        return data[: place.start] + changed + data[place.stop :], f"{index.fqn}: {what}"

    done.file(name, change)


def _changed_archive(random: Random, data: bytes) -> tuple[bytes, str]:
    """An archive with a member's bytes changed and its CRC-32 made good, in the member's and the directory's header."""
    if random.random() < 0.1:
        buffer = io.BytesIO()
        torch.save(Caller(), buffer)
        return buffer.getvalue(), "a pickle that calls a function"
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            member = random.choice(archive.infolist())
            content = archive.read(member)
    except Exception:  # an earlier mutation has left no archive
        return change_bytes(random, data)
    changed, what = change_bytes(random, content)
    changed = changed[: len(content)].ljust(len(content), b"\0")
    start = member.header_offset + 30 + sum(struct.unpack_from("<HH", data, member.header_offset + 26))
    buffer2 = bytearray(data)
    buffer2[start : start + len(content)] = changed
    old, new = (struct.pack("<I", zlib.crc32(value)) for value in (content, changed))
    return bytes(buffer2).replace(old, new), f"{member.filename}: {what}"


_CHANGES: tuple[tuple[str, Callable[[Changes], None]], ...] = (
    ("bytes", _plain),
    ("bytes", _plain),
    ("run file", _run_file),
    ("sidecars", _sidecar),
    ("metadata", _metadata),
    ("metadata", _metadata),
    ("metadata", _metadata),
    ("pieces", _piece),
    ("pieces", _piece),
    ("files", Changes.files),
)

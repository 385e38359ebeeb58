"""Finds out what kind of checkpoint a path is, and reads it; the only place that knows files and folders.

A file is known by how it starts, not by its suffix. A folder is, in this order: a torch.distributed.checkpoint (it has
``.metadata``); weights in shards (it has an ``.index.json``); a Megatron checkpoint (``mp_rank_XX`` folders, or a
``latest_checkpointed_iteration.txt`` that says where they are); or whatever checkpoint files are in it.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from dlcalc.checkpoint.contents import Checkpoint, Contents, Value, joined
from dlcalc.checkpoint.distributed import METADATA, read_distributed
from dlcalc.checkpoint.faults import DamagedError, RefusedCallError
from dlcalc.checkpoint.safetensors_file import read_json_object, read_safetensors, starts_as_safetensors
from dlcalc.checkpoint.torch_file import ZIP_START, read_torch_legacy, read_torch_zip
from dlcalc.errors import CheckpointError
from dlcalc.utils.printable import printable

INDEX_SUFFIX = ".index.json"
TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
ITERATION_FILE = "latest_checkpointed_iteration.txt"
DEEPSPEED_FILE = "latest"
MAX_INDEX_BYTES = 100_000_000
MAX_FOLDER_ENTRIES = 200_000

_MEGATRON_RANK = re.compile(r"mp_rank_\d{2,}(_\d{3,})*", re.ASCII)
_DEEPSPEED_STATES = re.compile(r".*mp_rank_\d+.*_states\.pt|layer_\d+-model_.*\.pt", re.ASCII)
_ITERATION = re.compile(r"\d{1,18}|release", re.ASCII)
_MAIN_FILES = {"model_optim_rng", "model_rng", "model"}
"""Of a Megatron rank: the model is here, and needs no further name."""
_TAR_MAGIC_AT = 257
_PICKLE_STARTS = frozenset(b"(]}lc")
"""Of protocols 0 and 1, for files that are called like a checkpoint; text files may start so."""
_NOT_WEIGHTS = ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt")


def read_checkpoint(path: Path) -> Checkpoint:
    """What the file or folder at ``path`` contains. No code out of it runs, and no tensor data is read."""
    with _blaming(path):
        mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        return _read_folder(path)
    if not stat.S_ISREG(mode):
        raise CheckpointError(f"{path}: is neither a file nor a folder")
    if path.name.endswith(INDEX_SUFFIX):
        return _read_index(path, path)
    if path.name == METADATA:
        return _read_distributed(path.parent)
    kind, contents = _read_file(path)
    return _checkpoint(path, kind, [path], contents)


# ---- one file


def _read_file(path: Path) -> tuple[str, Contents]:
    """The kind of file, and its contents."""
    with _blaming(path), path.open("rb") as file:
        file_bytes = os.fstat(file.fileno()).st_size
        kind, read = _kind_of(file, path)
        return kind, read(file, file_bytes)


def _kind_of(file: BinaryIO, path: Path) -> tuple[str, Callable[[BinaryIO, int], Contents]]:
    start = file.read(_TAR_MAGIC_AT + 5)
    if not start:
        raise DamagedError("the file is empty")
    if path.suffix == ".distcp":
        raise DamagedError("only the data of a torch.distributed.checkpoint; give its folder")
    if start.startswith(ZIP_START):
        return "PyTorch (zip)", read_torch_zip
    if start[_TAR_MAGIC_AT:] == b"ustar":
        raise DamagedError("a tar file of PyTorch before 0.2; load it with a PyTorch of that time and save it anew")
    if starts_as_safetensors(start) or path.suffix == ".safetensors":
        return "safetensors", read_safetensors
    if start[0] == 0x80 or (start[0] in _PICKLE_STARTS and path.suffix in {*TORCH_SUFFIXES, ".pkl", ""}):
        return "PyTorch (legacy)", read_torch_legacy
    raise DamagedError("not a checkpoint: neither a file of torch.save nor safetensors")


# ---- folders


def _read_folder(folder: Path) -> Checkpoint:
    with _blaming(folder):
        names = _names_in(folder)
        steps = [name for file in (ITERATION_FILE, DEEPSPEED_FILE) if file in names for name in _step(folder / file)]
    if METADATA in names:
        return _read_distributed(folder)
    if indices := [name for name in names if name.endswith(INDEX_SUFFIX)]:
        indices.sort(key=lambda name: (not name.startswith(("model.safetensors", "pytorch_model.bin")), name))
        safe = [name for name in indices if ".safetensors" in name]
        return _read_index(folder / (safe or indices)[0], folder)
    if ranks := [name for name in names if _MEGATRON_RANK.fullmatch(name) and (folder / name).is_dir()]:
        return _read_megatron(folder, ranks)
    if _MEGATRON_RANK.fullmatch(folder.resolve().name):
        return _read_rank_files(folder, names)
    if files := _weight_files(names):
        return _read_files(folder, files, names)
    for step in steps:
        if step in names:
            return _read_folder(folder / step)
    raise CheckpointError(f"{folder}: holds no checkpoint{_elsewhere(folder, names)}")


def _names_in(folder: Path) -> list[str]:
    names: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            names.append(entry.name)
            if len(names) > MAX_FOLDER_ENTRIES:
                raise DamagedError(f"holds more than {MAX_FOLDER_ENTRIES:,} files")
    return sorted(names)


def _step(file: Path) -> Sequence[str]:
    """Folders that a file like ``latest`` may mean."""
    with file.open("rb") as stream:
        text = stream.read(200).decode("ascii", "replace").strip()
    if file.name == ITERATION_FILE and _ITERATION.fullmatch(text):
        return (text if text == "release" else f"iter_{int(text):07d}",)
    return (text,) if file.name == DEEPSPEED_FILE and text not in (".", "..") else ()


def _elsewhere(folder: Path, names: Sequence[str]) -> str:
    """Where a checkpoint may be instead: in a folder one level below."""
    found = []
    for name in names[:1000]:
        below = folder / name
        if below.is_dir():
            try:
                inner = _names_in(below)
            except (OSError, DamagedError):
                continue
            is_one = METADATA in inner or _weight_files(inner) or any(map(_MEGATRON_RANK.fullmatch, inner))
            found += [printable(name, 60)] if is_one else []
    if not found:
        return f"; looked for .metadata, *{INDEX_SUFFIX}, mp_rank_XX, *.safetensors and *{', *'.join(TORCH_SUFFIXES)}"
    return f"; there is one in {', '.join(found[:5])}{' and others' if len(found) > 5 else ''}"


def _read_distributed(folder: Path) -> Checkpoint:
    with _blaming(folder):
        contents, files = read_distributed(folder)
    common = folder / "common.pt"  # what Megatron's distributed checkpoints hold outside of them
    if common.is_file():
        contents = joined([contents, _read_file(common)[1].under("common.")])
        files = (*files, common)
    return _checkpoint(folder, "torch.distributed.checkpoint", files, contents)


def _read_index(index: Path, path: Path) -> Checkpoint:
    """Weights in shards, as Hugging Face writes them: ``weight_map`` says which file has which tensor."""
    with _blaming(index):
        shards = _shards(index)
    parts, kinds = [], []
    for shard, names in shards.items():
        file = index.parent / shard
        if not file.is_file():
            raise CheckpointError(f"{index}: {printable(shard, 100)} is missing, with {len(names):,} tensors")
        kind, contents = _read_file(file)
        kinds.append(kind)
        there = {tensor.name for tensor in contents.tensors}
        if absent := next((name for name in names if name not in there), None):
            raise CheckpointError(
                f"{file}: damaged: {printable(absent, 100)} is not in it, and {index.name} says it is"
            )
        extra = len(there) - len(names)
        notes = (f"{shard}: {extra:,} tensors that the index does not name",) if extra else ()
        own = contents.apart(shard)
        parts.append(Contents(own.tensors, _shard_values(own), own.storages, notes))
    files = [index, *(index.parent / shard for shard in shards)]
    return _checkpoint(path, f"{' and '.join(sorted(set(kinds)))}, {len(shards)} shards", files, joined(parts))


def _shard_values(contents: Contents) -> tuple[Value, ...]:
    """What is in every shard alike says nothing of the checkpoint."""
    return tuple(value for value in contents.values if not value.name.startswith("__metadata__."))


def _shards(index: Path) -> dict[str, list[str]]:
    """Names of tensors by shard, in the index's order."""
    with index.open("rb") as stream:
        content = stream.read(MAX_INDEX_BYTES + 1)
    if len(content) > MAX_INDEX_BYTES:
        raise DamagedError(f"an index of more than {MAX_INDEX_BYTES // 10**6} MB")
    weight_map = read_json_object(content, "the index").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise DamagedError("damaged: the index has no weight_map")
    shards: dict[str, list[str]] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not shard or shard in (".", "..") or re.search(r"[/\\\0]", shard):
            raise DamagedError(f"damaged: {printable(name, 100)} is said to be in a file outside of the folder")
        shards.setdefault(shard, []).append(name)
    return shards


def _read_megatron(folder: Path, ranks: Sequence[str]) -> Checkpoint:
    parts: list[Contents] = []
    files: list[Path] = []
    for rank in ranks:
        with _blaming(folder / rank):
            names = _names_in(folder / rank)
        contents, own = _rank_contents(folder / rank, names)
        parts.append(contents.under(f"{rank}/"))
        files += own
    found = joined(parts)
    gap = _missing_rank(ranks)
    return _checkpoint(
        folder,
        f"Megatron, {len(ranks)} ranks",
        files,
        Contents(found.tensors, found.values, found.storages, (*found.notes, *gap)),
    )


def _missing_rank(ranks: Sequence[str]) -> Iterator[str]:
    """Tensor-parallel ranks are numbered without a gap."""
    there = {int(rank.split("_")[2]) for rank in ranks}
    if absent := [number for number in range(max(there)) if number not in there][:5]:
        yield f"no folder of mp_rank_{absent[0]:02d}{', and of others' if len(absent) > 1 else ''}: ranks are missing"


def _read_rank_files(folder: Path, names: Sequence[str]) -> Checkpoint:
    contents, files = _rank_contents(folder, names)
    return _checkpoint(folder, "Megatron, one rank", files, contents)


def _rank_contents(folder: Path, names: Sequence[str]) -> tuple[Contents, list[Path]]:
    """A Megatron rank's files as one; those besides the model's keep their names."""
    files = [folder / name for name in names if name.endswith(TORCH_SUFFIXES)]
    if not files:
        raise CheckpointError(f"{folder}: damaged: no checkpoint file in this rank's folder")
    parts = []
    for file in files:
        contents = _read_file(file)[1]
        parts.append(contents.apart(file.stem) if file.stem in _MAIN_FILES else contents.under(f"{file.stem}/"))
    return joined(parts), files


def _weight_files(names: Sequence[str]) -> list[str]:
    """The files to read of a folder without index: safetensors if there are any, else PyTorch's."""
    safe = [name for name in names if name.endswith(".safetensors")]
    return safe or [name for name in names if name.endswith(TORCH_SUFFIXES) and name not in _NOT_WEIGHTS]


def _read_files(folder: Path, files: Sequence[str], names: Sequence[str]) -> Checkpoint:
    parts, kinds = [], set()
    for name in files:
        kind, contents = _read_file(folder / name)
        kinds.add(kind)
        parts.append(contents.under(f"{name.rsplit('.', 1)[0]}/") if len(files) > 1 else contents)
    kind = "DeepSpeed" if any(map(_DEEPSPEED_STATES.fullmatch, files)) else " and ".join(sorted(kinds))
    others = [name for name in names if name.endswith((*TORCH_SUFFIXES, ".safetensors")) and name not in files]
    found = joined(parts)
    notes = (f"not read: {', '.join(others[:8])}; name one to read it",) if others else ()
    return _checkpoint(
        folder,
        kind,
        [folder / name for name in files],
        Contents(found.tensors, found.values, found.storages, (*found.notes, *notes)),
    )


def _checkpoint(path: Path, kind: str, files: Sequence[Path], contents: Contents) -> Checkpoint:
    with _blaming(path):
        return Checkpoint(path, kind, len(files), sum(file.stat().st_size for file in files), contents)


@contextmanager
def _blaming(path: Path) -> Iterator[None]:
    """Turn whatever is wrong with ``path`` into one line that names it."""
    try:
        yield
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file or folder") from None
    except (DamagedError, RefusedCallError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    except MemoryError:
        raise CheckpointError(f"{path}: is too large to be read in this machine's memory") from None
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise CheckpointError(f"{path}: cannot be read: {reason.lower()}") from None

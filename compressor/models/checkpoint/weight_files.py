"""Files that hold the weights of a model folder, by the rules of transformers; no torch.

``model.safetensors`` counts alone where it exists. Otherwise the shards count that
``model.safetensors.index.json`` names. No other file is read: shards of an earlier save, pickled
weights beside safetensors, and the states of a trainer are left where they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path

from compressor.errors import ModelError
from compressor.foreign_files.json_files import read_json_object
from compressor.foreign_files.limits import INDEX as INDEX_KIND
from compressor.foreign_files.opening import file_problem
from compressor.models.checkpoint.layout import INDEX, WEIGHTS
from compressor.models.checkpoint.safetensors_files import TensorEntry, read_header
from compressor.models.quantized.quantization import QUANTIZATION, SCALES

_COPY = "copy it again from where the checkpoint comes from"
_PICKLED_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})
_PICKLED_WEIGHTS = ("pytorch_model*.bin", "*.pth", "*.pt", "*.ckpt", "*.bin", "*.pkl")
"""Patterns of pickles that may hold the weights, the likeliest first."""
_NO_WEIGHTS = frozenset(
    {"training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "scheduler.bin"}
)
"""Pickles that a trainer writes beside the weights."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Location, dtype and shape of a tensor on disk."""

    file: Path
    entry: TensorEntry


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The weight files of a folder that count, with their headers."""

    folder: Path
    files: tuple[Path, ...]
    """The safetensors files that are read, sorted, and the index where there is one."""
    tensors: Mapping[str, StoredTensor]
    """Stored tensors by name."""
    problems: tuple[str, ...] = ()
    """Everything that keeps the files from being read."""
    remedies: tuple[str, ...] = field(default=())

    def checked(self) -> WeightFiles:
        """Return the files themselves if nothing keeps them from being read.

        Raises:
            ModelError: lists the problems.
        """
        if self.problems:
            raise ModelError(
                f"the weights of {self.folder} cannot be read:\n"
                + "\n".join(f"    {problem}" for problem in self.problems),
                remedy="; ".join(self.remedies) or None,
            )
        return self


def read_weight_files(folder: Path) -> WeightFiles:
    """Read the index and the headers of the weight files that count."""
    if (folder / WEIGHTS).is_file():
        return _read_file(folder / WEIGHTS)
    if (folder / INDEX).is_file():
        return _read_shards(folder)
    for file in (folder / WEIGHTS, folder / INDEX):
        if file.is_symlink() or file.exists():  # to nothing, or a folder
            return _read_file(file)
    problem, remedy = _explain_missing(folder)
    return WeightFiles(folder, (), {}, (problem,), (remedy,))


def pickled_files(folder: Path) -> list[Path]:
    """Return the pickles of a folder, which may run code when they are read."""
    return sorted(
        path for path in folder.iterdir() if path.suffix in _PICKLED_SUFFIXES and path.is_file()
    )


def pickled_weights(folder: Path) -> list[Path]:
    """Return the pickles that may hold weights, those with the usual names alone if there are."""
    pickles = [path for path in pickled_files(folder) if path.name not in _NO_WEIGHTS]
    for pattern in _PICKLED_WEIGHTS:
        if matching := [path for path in pickles if path.match(pattern)]:
            return matching
    return []


def unread_weights(weights: WeightFiles) -> list[Path]:
    """Return the files beside the weights that may be weights too, and that nothing reads."""
    candidates = {*weights.folder.glob("*.safetensors"), *pickled_weights(weights.folder)}
    if (weights.folder / QUANTIZATION).is_file():
        candidates.discard(weights.folder / SCALES)
    return sorted(candidates - {*weights.files})


def _read_file(file: Path) -> WeightFiles:
    """Return the tensors of a safetensors file, or its problem."""
    if file.is_symlink() and not file.exists():
        problem = f"{file.name} is a link to {file.readlink()}, which does not exist"
        return _unreadable(file, problem, "download the checkpoint again")
    if reason := file_problem(file):
        name = reason.replace(str(file), file.name, 1).removesuffix(", expected a regular file")
        name = f"{file.name} is missing" if name.endswith("does not exist") else name
        return _unreadable(file, name, "copy the file from where the checkpoint comes from")
    try:
        tensors = {entry.name: StoredTensor(file, entry) for entry in read_header(file)}
    except ModelError as error:
        return _unreadable(file, error.what.replace(str(file), file.name, 1), error.remedy)
    return WeightFiles(file.parent, (file,), tensors)


def _unreadable(file: Path, problem: str, remedy: str | None) -> WeightFiles:
    return WeightFiles(file.parent, (file,), {}, (problem,), (remedy,) if remedy else ())


def _read_shards(folder: Path) -> WeightFiles:
    index = folder / INDEX
    try:
        shard_of = _read_index(index)
    except ModelError as error:
        return _unreadable(index, error.what.replace(str(index), INDEX, 1), error.remedy)
    tensors: dict[str, StoredTensor] = {}
    files, problems, remedies = [index], [], []
    for shard in sorted(set(shard_of.values())):
        if Path(shard).name != str(Path(shard)):  # `./` is dropped by both
            problems.append(f"{INDEX} names a shard in another folder: {shard}")
            remedies.append(f"copy the shards beside {INDEX} and name them in it without folders")
            continue
        stored = _read_file(folder / shard)
        files.append(folder / shard)
        problems += stored.problems
        remedies += stored.remedies
        indexed = {name for name, named in shard_of.items() if named == shard}
        if not stored.problems and indexed != stored.tensors.keys():
            problems.append(_index_difference(Path(shard).name, indexed, stored.tensors.keys()))
            remedies.append(f"copy {INDEX} and the shards from the same checkpoint")
        tensors |= stored.tensors
    return WeightFiles(
        folder, tuple(files), tensors, tuple(problems), tuple(dict.fromkeys(remedies))
    )


def _index_difference(shard: str, indexed: AbstractSet[str], stored: AbstractSet[str]) -> str:
    differing = sorted(indexed ^ stored)
    return f"{INDEX} and {shard} differ in {len(differing)} tensors: {', '.join(differing[:3])}"


def _read_index(index: Path) -> dict[str, str]:
    """Return the shard of each tensor.

    Raises:
        ModelError: the index is damaged, or not one that transformers reads.
    """
    tree = read_json_object(index, ModelError, remedy=_COPY, kind=INDEX_KIND)
    shard_of = tree.get("weight_map")
    if not isinstance(shard_of, dict):
        raise ModelError(
            f"{INDEX} is no index of shards: expected a mapping of tensors to files under "
            "`weight_map`",
            remedy=_COPY,
        )
    if not shard_of or not all(isinstance(file, str) and file for file in shard_of.values()):
        raise ModelError(f"{INDEX}: `weight_map` has to name a file for each tensor", remedy=_COPY)
    if "metadata" not in tree:
        raise ModelError(
            f"{INDEX} has no `metadata`, without which transformers does not load it",
            remedy=f'add `"metadata": {{}}` to {INDEX}',
        )
    return shard_of


def _explain_missing(folder: Path) -> tuple[str, str]:
    """Return the problem of a folder without weights that count, and its remedy."""
    names = list(_safetensors_names(folder))
    if names:
        listed = ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
        return (
            f"neither {WEIGHTS} nor {INDEX} is there, so nothing states that {listed} "
            "hold the weights",
            f"copy {INDEX} too, or rename a single file to {WEIGHTS}",
        )
    if pickles := pickled_weights(folder):
        listed = ", ".join(path.name for path in pickles[:3]) + (" …" if len(pickles) > 3 else "")
        return (
            f"the weights are pickled ({listed}), and reading a pickle can run code",
            f"write safetensors into a new folder with `autoglm-compress convert {folder} "
            "NEW_FOLDER`, which reads tensors alone",
        )
    return f"{WEIGHTS} is missing", "name the folder that holds config.json and model.safetensors"


def _safetensors_names(folder: Path) -> Iterator[str]:
    if folder.is_dir():
        yield from sorted(path.name for path in folder.glob("*.safetensors"))

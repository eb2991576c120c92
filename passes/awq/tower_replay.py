"""Calls of the parts of vision towers, one part in memory at a time.

A tower's parts, such as its layers, are joined by code of the class that reads windows, positions
or tiles from the images. That code runs again for each part, with the stored results of the parts
before it, so that it need not be known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from compressor.errors import NumericalError
from compressor.models.families.transformers.streaming import StreamedCheckpoint
from passes.awq.activations import CAPTURED_BYTES, Branch, Captures

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
Batches = Callable[[], Iterator[Mapping[str, Tensor]]]
"""Returns the batches of calibration samples."""


@dataclass(frozen=True, slots=True)
class _Stored:
    """Stands for a tensor whose values are stored elsewhere."""

    shape: torch.Size
    dtype: torch.dtype


class StoredTrees:
    """Nested values by key, whose tensors are in memory up to a limit and otherwise in files."""

    def __init__(self, folder: Path) -> None:
        self._captures = Captures(folder, CAPTURED_BYTES)
        self._trees: dict[str, tuple[list[Any], Any]] = {}
        self._forgotten: set[str] = set()
        self.unknown: set[str] = set()
        """Keys whose floating-point values are read as NaN."""

    def put(self, key: str, value: Any) -> None:
        """Store a value."""
        leaves, structure = tree_flatten(value)
        for number, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor):
                self._captures.put(f"{key} {number}", leaf)
                leaves[number] = _Stored(leaf.shape, leaf.dtype)
        self._trees[key] = leaves, structure

    def get(self, key: str) -> Any:
        """Return a copy of a stored value, with NaN in place of values that are forgotten."""
        leaves, structure = self._trees[key]
        values = list(leaves)
        for number, leaf in enumerate(leaves):
            if isinstance(leaf, _Stored):
                values[number] = self._tensor(key, number, leaf)
        return tree_unflatten(values, structure)

    def _tensor(self, key: str, number: int, leaf: _Stored) -> Tensor:
        is_unknown = key in self._forgotten or key in self.unknown
        if is_unknown and leaf.dtype.is_floating_point:
            return torch.full(leaf.shape, torch.nan, dtype=leaf.dtype)
        return self._captures.get(f"{key} {number}").clone()

    def forget(self, key: str) -> None:
        """Remove the floating-point values of a key, but not its shapes."""
        if key not in self._forgotten:
            self._forgotten.add(key)
            for number, leaf in enumerate(self._trees[key][0]):
                if isinstance(leaf, _Stored) and leaf.dtype.is_floating_point:
                    self._captures.drop(f"{key} {number}")

    def close(self) -> None:
        """Remove everything."""
        self._captures.close()


class TowerReplay:
    """Finds the arguments of one part of the towers after another, in the order of computation."""

    def __init__(
        self,
        checkpoint: StreamedCheckpoint,
        batches: Batches,
        calls: Sequence[Counter[str]],
        folder: Path,
    ) -> None:
        """Take what is known of the towers, and run the first batch with images.

        Args:
            checkpoint: the parent.
            batches: returns the calibration batches.
            calls: for each batch the number of calls of each part, in the order of first calls.
            folder: for activations.
        """
        self._checkpoint, self._batches, self._calls = checkpoint, batches, calls
        self._results = StoredTrees(folder / "tower-results")
        self.order = list(dict.fromkeys(part for batch in calls for part in batch))
        """Parts that a sample reaches."""
        self._last_reader = self._find_readers(folder)
        """Part to the last part whose arguments depend on its result."""

    def calls(self, part: str, batch: int) -> int:
        """Return the number of calls of a part in a batch."""
        return self._calls[batch][part]

    @torch.inference_mode()
    def arguments(self, part: str, branch: Branch, arguments: StoredTrees) -> None:
        """Store the arguments of all calls of a part as ``<branch> <batch> <call>``.

        The results of the parts before it have to be stored. The part has its float weights.
        """
        done = self.order[: self.order.index(part)]
        for number, inputs in enumerate(self._batches()):
            if not self.calls(part, number):
                continue
            forward = self._checkpoint.module.get_submodule(part).forward
            count = 0

            def record(*args: Any, number: int = number, run: Any = forward, **kwargs: Any) -> Any:
                nonlocal count
                count += 1
                _check_known(part, (args, kwargs))
                arguments.put(f"{branch} {number} {count}", (args, kwargs))
                if count == self.calls(part, number):
                    raise _PartReachedError
                return run(*args, **kwargs)

            self._run(inputs, {**self._stored(done, branch, number), part: record})

    def put_results(self, part: str, branch: Branch, batch: int, results: Iterable[Any]) -> None:
        """Store the results of all calls of a part in a batch."""
        for call, result in enumerate(results, start=1):
            self._results.put(f"{branch} {part} {batch} {call}", result)

    def finish(self, part: str, branches: Iterable[Branch]) -> None:
        """Remove the results that no part after this one depends on."""
        for branch in branches:
            for done in self.order[: self.order.index(part) + 1]:
                if self.order.index(self._last_reader[done]) <= self.order.index(part):
                    for batch in range(len(self._calls)):
                        for call in range(1, self.calls(done, batch) + 1):
                            self._results.forget(f"{branch} {done} {batch} {call}")

    def close(self) -> None:
        """Remove all stored results."""
        self._results.close()

    def _stored(
        self, parts: Iterable[str], branch: Branch, batch: int
    ) -> dict[str, Callable[..., Any]]:
        """Return functions that return the stored results of parts, call by call."""

        def stand_in(part: str) -> Callable[..., Any]:
            count = iter(range(1, self.calls(part, batch) + 1))
            return lambda *_, **__: self._results.get(f"{branch} {part} {batch} {next(count)}")

        return {part: stand_in(part) for part in parts}

    def _run(
        self, inputs: Mapping[str, Tensor], stand_ins: Mapping[str, Callable[..., Any]]
    ) -> None:
        """Run a batch until a stand-in ends it, or as far as the decoder."""
        with self._checkpoint.stand_ins(stand_ins) as run, suppress(_PartReachedError):
            run(inputs)

    @torch.inference_mode()
    def _find_readers(self, folder: Path) -> dict[str, str]:
        """Return the last reader of each part's result: the part itself if there is none.

        The results of one part after another are made NaN, which what depends on them becomes.
        """
        first = next(number for number, calls in enumerate(self._calls) if calls)
        inputs = next(batch for number, batch in enumerate(self._batches()) if number == first)
        results = StoredTrees(folder / "tower-probe")
        counts: Counter[str] = Counter()

        def compute(part: str) -> Callable[..., Any]:
            forward = self._checkpoint.module.get_submodule(part).forward

            def run(*args: Any, **kwargs: Any) -> Any:
                self._checkpoint.load(part)
                value = forward(*args, **kwargs)
                self._checkpoint.unload(part)
                counts[part] += 1
                results.put(f"{part} {counts[part]}", value)
                return results.get(f"{part} {counts[part]}")

            return run

        parts = [part for part in self.order if self._calls[first][part]]
        self._run(inputs, {part: compute(part) for part in parts})
        readers: dict[str, str] = {}
        for unknown in parts:
            depends: set[str] = {unknown}
            seen: Counter[str] = Counter()

            def stand_in(part: str, depends: set[str] = depends, seen: Any = seen) -> Any:
                def run(*args: Any, **kwargs: Any) -> Any:
                    if _has_nan((args, kwargs)):
                        depends.add(part)
                    seen[part] += 1
                    return results.get(f"{part} {seen[part]}")

                return run

            results.unknown = {f"{unknown} {call}" for call in range(1, counts[unknown] + 1)}
            self._run(inputs, {part: stand_in(part) for part in parts})
            readers[unknown] = max(depends, key=self.order.index)
        results.close()
        last = self.order[-1]
        return {part: readers.get(part, last) for part in self.order}


class _PartReachedError(Exception):
    """Ends a run at the last call of a part."""


def _has_nan(value: Any) -> bool:
    leaves, _ = tree_flatten(value)
    return any(
        isinstance(leaf, Tensor) and leaf.is_floating_point() and bool(leaf.isnan().any())
        for leaf in leaves
    )


def _check_known(part: str, arguments: Arguments) -> None:
    """Check that arguments hold no NaN, neither the model's nor that of a forgotten result.

    Raises:
        NumericalError: they do.
    """
    if _has_nan(arguments):
        raise NumericalError(
            f"{part} receives NaN from the vision tower",
            remedy="remove samples whose images are broken, or remove `vision`",
        )

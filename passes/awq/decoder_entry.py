"""The calibration batches of a streamed checkpoint, run as far as its first decoder layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from compressor.engine.contract import PassContext
from compressor.models.capabilities.streamed_layers import StreamedLayers
from compressor.models.families.transformers.layer_recording import LayerArguments
from compressor.models.families.transformers.streaming import StreamedCheckpoint
from passes.awq.activations import HiddenStates, load_samples
from passes.awq.config import AwqConfig
from passes.awq.linear_shapes import FittedGrid, fitted_grids
from passes.awq.settings import QuantizationSettings
from passes.awq.shards import ShardWriter
from passes.awq.tower_search import TowerSearch
from passes.common.device import tensors_from_batch


class DecoderEntry:
    """Inputs of the decoder: hidden states, arguments of the layers, and quantized towers."""

    def __init__(
        self,
        config: AwqConfig,
        layers: StreamedLayers,
        checkpoint: StreamedCheckpoint,
        writer: ShardWriter,
        context: PassContext,
    ) -> None:
        self.config, self.checkpoint = config, checkpoint
        self.writer, self.context = writer, context
        self.hidden = HiddenStates(context.work, context.artifact_id)
        self.samples = load_samples(config, context)
        self.digest = ""
        """sha256 of the calibration samples."""
        self.masks: list[Tensor | None] = []
        """Valid positions of each batch, bool [B·T]; None where all are valid."""
        self.tower_grids: dict[str, FittedGrid] = {}
        """Grids of the linear layers of the towers."""
        if config.vision is not None:
            self.tower_grids = fitted_grids(config, config.vision, layers.towers)
        self.towers: TowerSearch | None = None
        """Search in the towers; None if they are not packed, or no sample has an image."""
        self.exact_additions: list[list[Tensor | None]] = []
        """By batch, what the float model adds between its layers; empty if `towers` is None."""

    def enter(self) -> list[list[LayerArguments]]:
        """Run the batches as far as the first decoder layer.

        Writes the hidden states, unless this run is resumed, and stores the masks.

        Returns:
            The further arguments of each layer, by batch.
        """
        is_first = self.hidden.layers_done() == 0
        arguments = self._run_towers(is_first=is_first)
        if self.towers is not None:
            self.exact_additions = [[call.added for call in batch] for batch in arguments]
            self.checkpoint.replaced = self.towers.replaced()
            arguments = self._run_towers(is_first=is_first)
            self.checkpoint.replaced = {}
        if is_first:
            self.hidden.finish(0)
        self.digest = self.samples.digest
        return arguments

    def _run_towers(self, *, is_first: bool) -> list[list[LayerArguments]]:
        """Run the batches as far as the first decoder layer; the first time, search the towers.

        Args:
            is_first: True to write the hidden states.

        Returns:
            The further arguments of each layer, by batch.
        """
        has_exact = self.config.error_compensation > 0
        is_behind_quantized = bool(self.checkpoint.replaced)
        arguments: list[list[LayerArguments]] = []
        masks: list[Tensor | None] = []
        found = self.checkpoint.first_layer_inputs(partial(self._batches, masks))
        for number, (hidden, layer_arguments) in enumerate(found):
            arguments.append(layer_arguments)
            if is_first:
                exact = hidden if has_exact and not is_behind_quantized else None
                self.hidden.write(0, number, hidden, exact)
        self.masks, calls = masks, self.checkpoint.tower_calls
        if self.tower_grids and any(calls) and not is_behind_quantized:
            self.towers = self._search_towers(calls)
        return arguments

    def _batches(self, masks: list[Tensor | None]) -> Iterator[dict[str, Tensor]]:
        """Yield the calibration batches, and append the mask of each to ``masks``."""
        for batch in self.samples.batches("calibrate"):
            tensors = tensors_from_batch(batch, torch.device("cpu"))
            mask = tensors.get("attention_mask")
            is_padded = mask is not None and not bool(mask.all())
            masks.append(mask.flatten().bool() if mask is not None and is_padded else None)
            yield {name: tensors[name] for name in self.samples.dataset.input_names}

    def _search_towers(self, calls: Sequence[Counter[str]]) -> TowerSearch:
        """Quantize the parts of the towers that samples reach, unless an earlier run has."""
        assert self.config.vision is not None  # noqa: S101 - there are grids
        search = TowerSearch(
            self.checkpoint,
            self.config.vision,
            self.tower_grids,
            QuantizationSettings.of(self.config, self.checkpoint.dtype),
            self.writer,
            self.context,
        )
        if not search.resume():
            search.run(partial(self._batches, []), calls)
        for name, reason in search.result.kept_float.items():
            self.tower_grids[name] = FittedGrid(None, reason)
        return search

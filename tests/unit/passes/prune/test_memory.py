"""Mapped tensors keep their values, and scoring holds one gradient and one layer's activations."""

from pathlib import Path

import pytest
import torch

from compressor.models.capabilities.cuttable_axes import CuttableAxes
from compressor.models.checkpoint.weights import assign_weights, weights_on_meta
from passes.prune import memory
from passes.prune.importance import score_by_taylor
from passes.prune.memory import consume_gradients, map_to_disk, recompute_activations
from tests.support.tiny_models import CHECKPOINT


def anonymous_memory_bytes():
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in status if line.startswith("RssAnon"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64])
def test_a_mapped_tensor_equals_the_original(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(memory, "_SMALL_BYTES", 100)
    draw = torch.Generator().manual_seed(0)
    tensors = {
        "large": (100 * torch.randn(40, 30, generator=draw)).to(dtype),
        "transposed": (100 * torch.randn(30, 40, generator=draw)).to(dtype).T,
        "small": torch.ones(1, dtype=dtype),
    }
    mapped = map_to_disk(tensors.items(), tmp_path)
    for name, tensor in tensors.items():
        assert mapped[name].dtype == dtype
        assert torch.equal(mapped[name], tensor)
    assert list(tmp_path.iterdir()) == [], "the files are unlinked"
    mapped["large"].zero_()
    assert not bool(mapped["large"].any()), "writes are kept"


def test_memory_does_not_grow_with_mapped_tensors(tmp_path):
    before = anonymous_memory_bytes()
    growth = []

    def tensors():
        for number in range(20):
            yield f"{number}", torch.full((4 << 20,), float(number))
            growth.append(anonymous_memory_bytes() - before)

    mapped = map_to_disk(tensors(), tmp_path)
    assert max(growth) < 4 * (16 << 20), "a few of 20 tensors of 16 MB"
    assert [float(tensor[7]) for tensor in mapped.values()] == list(range(20))


def test_a_module_takes_tensors_without_a_copy_and_stays_tied():
    with weights_on_meta():
        module = torch.nn.Sequential(
            torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 8)
        )
        module[2].weight = module[0].weight
    state = {
        name: torch.randn(tensor.shape).to(tensor.dtype)
        for name, tensor in module.state_dict().items()
    }
    state["2.weight"] = state["0.weight"]
    assigned = assign_weights(module, state)
    assert assigned[2].weight is assigned[0].weight
    assert assigned[0].weight.data_ptr() == state["0.weight"].data_ptr()
    assert not any(tensor.is_meta for tensor in (*assigned.parameters(), *assigned.buffers()))
    assert torch.equal(assigned[1].running_mean, state["1.running_mean"])


@pytest.fixture
def llama():
    return CHECKPOINT.build(CHECKPOINT.presets["tiny-llama"]).eval()


def token_batch():
    generator = torch.Generator().manual_seed(2)
    return {"input_ids": torch.randint(0, 490, (2, 7), generator=generator)}


def test_scoring_holds_the_activations_of_one_layer(llama):
    axes = CHECKPOINT.capability(CuttableAxes, CHECKPOINT.presets["tiny-llama"]).axes
    batch, saved_bytes = token_batch(), []

    def loss(batch):
        saved_bytes.append(0)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            logits = llama(**batch)["logits"]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["input_ids"].flatten())

    def count(tensor):
        saved_bytes[-1] += tensor.nbytes
        return tensor

    inner_axes = [axis for axis in axes if not axis.stack]
    scores = score_by_taylor(llama, inner_axes, [batch], loss)
    loss(batch).backward()  # Gradients of an earlier training are not added.
    saved_bytes.pop()
    with recompute_activations(llama, ["model.layers"]):
        recomputed_scores = score_by_taylor(llama, inner_axes, [batch], loss)
    assert saved_bytes[1] < 0.5 * saved_bytes[0]
    for name, score in scores.items():
        assert torch.equal(recomputed_scores[name], score), name
    assert "forward" not in vars(llama.model.layers[0])


def test_scoring_holds_the_gradient_of_one_weight(llama):
    weights = [layer.mlp.down_proj.weight for layer in llama.model.layers]
    held = []

    def consume(*_):
        held.append([weight.grad is not None for weight in weights])

    with consume_gradients(llama, weights, consume):
        llama(**token_batch())["logits"].sum().backward()
    assert held == [[False] * len(weights)] * len(weights)
    assert all(
        parameter.grad is None and parameter.requires_grad for parameter in llama.parameters()
    )

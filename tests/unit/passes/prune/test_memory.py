"""Cut weights live in files, not in memory, and stay what they are."""

from pathlib import Path

import pytest
import torch

from compressor.models.checkpoint.weights import assigned, weights_on_meta
from passes.prune import memory
from passes.prune.memory import on_disk


def rss_anonymous():
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in status if line.startswith("RssAnon"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64])
def test_a_tensor_on_disk_is_the_same_tensor(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(memory, "_SMALL_BYTES", 100)
    draw = torch.Generator().manual_seed(0)
    tensors = {
        "large": (100 * torch.randn(40, 30, generator=draw)).to(dtype),
        "turned": (100 * torch.randn(30, 40, generator=draw)).to(dtype).T,
        "one": torch.ones(1, dtype=dtype),
    }
    found = on_disk(tensors.items(), tmp_path)
    for name, tensor in tensors.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name], tensor)
    assert list(tmp_path.iterdir()) == [], "files without a name go with the tensors"
    found["large"].zero_()
    assert not bool(found["large"].any()), "what is written to it stays"


def test_memory_does_not_grow_with_what_is_on_disk(tmp_path):
    before = rss_anonymous()
    peak = []

    def tensors():
        for number in range(20):
            yield f"{number}", torch.full((4 << 20,), float(number))
            peak.append(rss_anonymous() - before)

    found = on_disk(tensors(), tmp_path)
    assert max(peak) < 4 * (16 << 20), "20 tensors of 16 MB, of which a few may be in memory"
    assert [float(one[7]) for one in found.values()] == list(range(20))


def test_a_module_takes_tensors_uncopied_and_stays_tied():
    with weights_on_meta():
        module = torch.nn.Sequential(
            torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 8)
        )
        module[2].weight = module[0].weight
    state = {
        name: torch.randn(one.shape).to(one.dtype) for name, one in module.state_dict().items()
    }
    state["2.weight"] = state["0.weight"]
    taken = assigned(module, state)
    assert taken[2].weight is taken[0].weight
    assert taken[0].weight.data_ptr() == state["0.weight"].data_ptr()
    assert not any(one.is_meta for one in (*taken.parameters(), *taken.buffers()))
    assert torch.equal(taken[1].running_mean, state["1.running_mean"])

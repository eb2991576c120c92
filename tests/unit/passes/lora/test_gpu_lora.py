"""The `lora` pass on a GPU, which tests/support/pretended_gpu.py stands in for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from compressor.runtimes.torch.session import AdaptedSession
from passes.lora.config import LoraConfig
from passes.lora.step import Lora
from tests.support.adapters import DATA, lora_context, save_base
from tests.support.pretended_gpu import pretended_gpu

TRAINING = {"steps": 4, "batch_size": 4, "evaluate_every": 2, "checkpoint_every": 2}
CONFIG = LoraConfig.model_validate(
    {"teacher": "large", "lora_dropout": 0.1, "training": TRAINING | {"ema_decay": 0.9}}
)


def test_every_tensor_is_on_the_gpu(tmp_path, monkeypatch):
    base, teacher = save_base(tmp_path), save_base(tmp_path / "teacher", seed=1)

    def train(device):
        context = lora_context(tmp_path / f"{device}-work", {"teacher": teacher})
        out = tmp_path / device
        out.mkdir()
        Lora().run(CONFIG, base, out, replace(context, device=device))
        return out

    expected = train("cpu")
    with pretended_gpu(monkeypatch) as gpu:
        adapter = train("cuda")
        session = AdaptedSession(adapter, 1, "cuda")
        session.run({"input_ids": DATA.batch(np.arange(2))["input_ids"]})
    assert gpu.operations > 100
    name = "adapter_model.safetensors"
    assert (adapter / name).read_bytes() == (expected / name).read_bytes()

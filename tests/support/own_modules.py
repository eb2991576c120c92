"""Python files with small modules as users write them, and pipelines that start from them."""

from __future__ import annotations

import textwrap
from pathlib import Path

NET = '''\
import torch
from layers import Block
from torch import nn


class Net(nn.Module):
    """A small CNN that returns logits and the vector before them."""

    def __init__(self, width=8, classes=3):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.block = Block(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        pooled = self.block(torch.relu(self.norm(self.stem(x)))).mean((2, 3))
        return self.head(pooled), pooled


def build(width=8, classes=3):
    return Net(width, classes)
'''
LAYERS = """\
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.expand = nn.Conv2d(width, 2 * width, 1)
        self.project = nn.Conv2d(2 * width, width, 1)

    def forward(self, x):
        return x + self.project(self.expand(x).relu())
"""
TAGGER = '''\
from torch import nn


class Tagger(nn.Module):
    """Keyword inputs, a recurrent layer, a dict of outputs."""

    def __init__(self, rows=20, width=8, classes=3):
        super().__init__()
        self.embedding = nn.Embedding(rows, width)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, classes)

    def forward(self, *, tokens, mask):
        states, _ = self.lstm(self.embedding(tokens))
        states = states * mask.unsqueeze(-1)
        return {"logits": self.head(states.mean(1)), "states": states, "cache": None}
'''
IMAGE_INPUT = "{image: {shape: [batch, 3, 16, 16]}}"
TOKEN_INPUTS = (
    "{tokens: {shape: [batch, length], dtype: int64, below: 20}, mask: {shape: [batch, length]}}"
)
SAMPLES = """\
import numpy as np


def load(count=32, seed=0):
    generator = np.random.default_rng(seed)
    label = generator.integers(0, 3, count)
    image = generator.normal(size=(count, 3, 16, 16)).astype(np.float32)
    image[np.arange(count), label] += 2
    return {"image": image, "label": label}
"""


def write_own_files(folder: Path) -> Path:
    """Write the modules' files and samples into a folder, and return it."""
    files = {"net.py": NET, "layers.py": LAYERS, "tagger.py": TAGGER, "samples.py": SAMPLES}
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def write_own_pipeline(folder: Path, model: str, rest: str = "") -> Path:
    """Write a pipeline that starts from an own module.

    Args:
        folder: the folder with the module's file.
        model: the mapping under ``model:``, as flow YAML.
        rest: further sections.
    """
    file = folder / "pipeline.yaml"
    file.write_text(f"version: 1\nname: own\nmodel: {model}\n{textwrap.dedent(rest)}")
    return file

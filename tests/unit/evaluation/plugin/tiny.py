"""A minimal model family and data source, found through entry points as third-party ones are."""

import os
import time

import numpy as np

from compressor.config.record import Record
from compressor.data.contract import Dataset, DataSource, SourceConfig
from compressor.errors import DataError
from compressor.models.capabilities.signature import InputSpec, Signature
from compressor.models.contract import Family

WORDS, CLASSES = 7, 3


class TinyConfig(Record):
    hidden: int = 8


class Tiny(Family[TinyConfig]):
    """An embedding tied with the output layer, a convolution over an image, and a batch norm."""

    name, Config, presets = "tiny", TinyConfig, {"small": TinyConfig()}

    def signature(self, config):
        image = InputSpec("image", "uint8", ("batch", 3, 8, 8))
        words = InputSpec("words", "int64", ("batch", "length"))
        return Signature((image, words), ("logits",))

    def parameters(self, config):
        return {"embedding": WORDS * config.hidden, "image": 27 * config.hidden + 2 * config.hidden}

    def macs(self, config):
        return 27 * config.hidden * 16 + CLASSES * config.hidden

    def build(self, config):
        from torch import nn

        class Module(nn.Module):
            def __init__(self):
                super().__init__()
                self.embedding = nn.Embedding(WORDS, config.hidden)
                self.out = nn.Linear(config.hidden, WORDS, bias=False)
                self.out.weight = self.embedding.weight
                self.conv = nn.Conv2d(3, config.hidden, 3, stride=2, padding=1, bias=False)
                self.norm = nn.BatchNorm2d(config.hidden)

            def forward(self, image, words):
                features = self.norm(self.conv(image.float() / 255)).relu().mean(dim=(2, 3))
                hidden = features + self.embedding(words).mean(dim=1)
                return {"logits": self.out(hidden)[:, :CLASSES], "hidden": hidden}

        return Module()


class TinySourceConfig(SourceConfig):
    num_samples: int = 40
    fail: str | None = None
    """Failure while loading: data, crash, bug or hang."""
    length: int = 5


class TinySet(Dataset):
    input_names, label_name = ("image", "words"), "label"

    def __init__(self, config):
        generator = np.random.default_rng(0)
        self.arrays = {
            "image": generator.integers(0, 256, (config.num_samples, 3, 8, 8), dtype=np.uint8),
            "words": generator.integers(0, WORDS, (config.num_samples, config.length)),
            "label": generator.integers(0, CLASSES, config.num_samples),
        }

    def __len__(self):
        return len(self.arrays["label"])

    def batch(self, indices, epoch=0):
        return {name: array[indices] for name, array in self.arrays.items()}

    def slices(self):
        first = self.arrays["words"][:, 0] if len(self) else np.zeros(0)
        return {
            "input": np.where(np.arange(len(self)) % 2 == 0, "text", "speech"),
            "language": np.where(first % 2 == 0, "zh", "en"),
        }


class TinySource(DataSource[TinySourceConfig]):
    name, Config = "tiny", TinySourceConfig

    def problems(self, config, context):
        return []

    def digest(self, config, context):
        return config.model_dump_json()

    def load(self, config, context):
        context.progress("tiny", 1, 1)
        print("a library that prints to stdout")  # noqa: T201
        if config.fail == "data":
            raise DataError("the samples are gone", remedy="bring them back")
        if config.fail == "crash":
            os.abort()
        if config.fail == "bug":
            raise ZeroDivisionError("a bug of ours")
        if config.fail == "hang":
            (context.cache / "pid").write_text(str(os.getpid()))
            time.sleep(60)
        return TinySet(config)

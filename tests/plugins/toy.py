"""A minimal pass of another package, with a checkpoint, found through its entry point."""

import hashlib
import time
from pathlib import Path

from compressor.artifacts.files import write_atomic
from compressor.engine.contract import Pass, PassConfig, PassOutput


class ToyConfig(PassConfig):
    rounds: int = 5
    """Rounds of hashing; a checkpoint after each."""
    sleep: float = 0.0
    """Seconds a round takes."""
    fail: str | None = None
    """Fail with this message."""


class Toy(Pass[ToyConfig]):
    """Hashes its input again and again."""

    name, version = "toy", 1
    accepts, produces = frozenset({"onnx"}), "onnx"
    Config, tools = ToyConfig, ()

    def run(self, config, parent, out, context):
        checkpoint: Path = context.work / "state"
        done, state = 0, (parent.model / "model.onnx").read_bytes()
        if checkpoint.is_file():
            head, _, state = checkpoint.read_bytes().partition(b"\n")
            done = int(head)
        for number in range(done, config.rounds):
            if config.fail:
                raise ValueError(config.fail)
            state = hashlib.sha256(state + bytes([context.seed % 256])).digest()
            write_atomic(checkpoint, b"%d\n" % (number + 1) + state)
            context.progress("round", number + 1, config.rounds, {})
            time.sleep(config.sleep)
        # ONNX's protobuf: a model without a graph, its documentation (field 6) the hash.
        (out / "model.onnx").write_bytes(b"\x32\x40" + state.hex().encode())
        (out / "model.onnx.data").write_bytes(state * 4096)
        return PassOutput({"rounds": config.rounds})

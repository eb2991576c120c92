"""Files of MNN and ONNX Runtime that cannot be real are refused before they are hashed."""

import os

import pytest

from compressor.errors import ModelError
from compressor.runtimes.formats import recognize
from tests.support.tiny_files import tiny_onnx


@pytest.mark.parametrize("name", ["model.mnn", "model.ort"])
def test_a_sparse_file_of_1_tb_is_refused(tmp_path, name):
    (tmp_path / "model.onnx").write_bytes(tiny_onnx())
    (tmp_path / name).touch()
    os.truncate(tmp_path / name, 1 << 40)
    stored = recognize(tmp_path)
    assert stored.format.name == name.partition(".")[2]
    with pytest.raises(ModelError, match="flatbuffers"):
        stored.format.files(stored.path)

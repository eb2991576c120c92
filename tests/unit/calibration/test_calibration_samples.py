"""Which samples are seen, their digest, and the table that is made of them."""

import json

import numpy as np
import pytest

from calibration.samples import Samples, chosen
from calibration.table import TABLE, CalibrationTable, Range, read_table
from compressor.data.contract import Dataset
from compressor.errors import RequirementError


class Numbers(Dataset):
    input_names = ("x",)
    label_name = "label"

    def __init__(self, shift=0):
        self.shift = shift

    def __len__(self):
        return 10

    def batch(self, indices, epoch=0):
        return {"x": indices[:, None] + self.shift, "label": indices}


def test_samples_are_spread_over_the_set_and_follow_no_period():
    assert chosen(3, 5).tolist() == [0, 1, 2]
    first, again, other = chosen(1000, 20, 1), chosen(1000, 20, 1), chosen(1000, 20, 2)
    assert (first == again).all()
    assert (first != other).any()
    assert (first // 50 == np.arange(20)).all()
    assert len(set((chosen(64, 32) % 2).tolist())) == 2


def test_the_digest_is_of_what_was_seen():
    def digest(shift=0, **options):
        samples = Samples(Numbers(shift), **({"count": 5, "batch_size": 2} | options))
        assert [len(batch["x"]) for batch in samples.batches("see")]
        return samples.digest

    assert digest() == digest()
    assert len({digest(), digest(shift=1), digest(count=6), digest(seed=3)}) == 4


def test_progress_counts_samples():
    told = []
    samples = Samples(Numbers(), count=5, batch_size=2, progress=lambda *one: told.append(one))
    list(samples.batches("see"))
    assert told == [("see", 2, 5), ("see", 4, 5), ("see", 5, 5)]


def table(model="ab12"):
    ranges = {"head:input": Range(values=4, minimum=-1.0, maximum=2.0, bound=1.5)}
    return CalibrationTable(
        model=model, observer="mse", bits=8, num_samples=4, samples_sha256="0" * 64, tensors=ranges
    )


def test_a_table_is_read_back_and_can_be_read_by_people(tmp_path):
    table().write(tmp_path)
    assert json.loads((tmp_path / TABLE).read_text())["tensors"]["head:input"]["bound"] == 1.5
    assert read_table(tmp_path, "ab12", 8) == table()


def test_a_table_of_another_model_is_refused(tmp_path):
    table().write(tmp_path)
    with pytest.raises(
        RequirementError, match="belongs to another model: it was found on ab12, and this is cd34"
    ):
        read_table(tmp_path, "cd34", 8)


@pytest.mark.parametrize(
    "text",
    ["{", "\ud8ff", '{"version": 2}', json.dumps({"version": 1, "tensors": {"a": {"bound": -1}}})],
)
def test_a_damaged_table_is_refused(tmp_path, text):
    (tmp_path / TABLE).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(RequirementError, match="is damaged"):
        read_table(tmp_path, "ab12", 8)


def test_a_table_for_other_bits_is_refused(tmp_path):
    table().write(tmp_path)
    with pytest.raises(RequirementError, match="is for grids of 8 bits, and these have 4"):
        read_table(tmp_path, "ab12", 4)


def test_no_table_is_told(tmp_path):
    with pytest.raises(RequirementError, match="holds no calibration"):
        read_table(tmp_path, "ab12", 8)

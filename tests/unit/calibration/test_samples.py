"""Selection of calibration samples, their digest, and their progress reports."""

import numpy as np

from calibration.samples import Samples, spread_indices
from compressor.data.contract import Dataset


class Numbers(Dataset):
    """Ten samples, each its index plus ``shift``."""

    input_names = ("x",)
    label_name = "label"

    def __init__(self, shift=0):
        self.shift = shift

    def __len__(self):
        return 10

    def batch(self, indices, epoch=0):
        return {"x": indices[:, None] + self.shift, "label": indices}


def test_samples_are_spread_over_the_set_and_follow_no_period():
    assert spread_indices(3, 5).tolist() == [0, 1, 2]
    first, repeated = spread_indices(1000, 20, 1), spread_indices(1000, 20, 1)
    assert (first == repeated).all()
    assert (first != spread_indices(1000, 20, 2)).any()
    assert (first // 50 == np.arange(20)).all()
    assert len(set((spread_indices(64, 32) % 2).tolist())) == 2


def test_the_digest_covers_the_samples_of_the_iteration():
    def digest(shift=0, **options):
        samples = Samples(Numbers(shift), **({"count": 5, "batch_size": 2} | options))
        assert [len(batch["x"]) for batch in samples.batches("calibrate")]
        return samples.digest

    assert digest() == digest()
    assert len({digest(), digest(shift=1), digest(count=6), digest(seed=3)}) == 4


def test_a_subset_is_spread_evenly_over_the_samples():
    samples = Samples(Numbers(), count=10, batch_size=2)
    assert samples.subset(5).tolist() == [0, 2, 4, 6, 8]
    assert samples.subset(20).tolist() == list(range(10))


def test_progress_counts_samples():
    reports = []
    samples = Samples(
        Numbers(), count=5, batch_size=2, progress=lambda *report: reports.append(report)
    )
    list(samples.batches("calibrate"))
    assert reports == [("calibrate", 2, 5), ("calibrate", 4, 5), ("calibrate", 5, 5)]

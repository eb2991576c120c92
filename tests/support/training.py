"""A small data set that is quickly learned, and a simulated kill."""

import numpy as np

from compressor.data.contract import Dataset


class Blobs(Dataset):
    """64 images of noise, brighter in the left or the right upper corner; the label is 0 or 1."""

    input_names = ("image",)
    label_name = "label"

    def __len__(self):
        return 64

    def batch(self, indices, epoch=0):
        label = indices % 2
        noise = np.stack(
            [np.random.default_rng([epoch, i]).integers(0, 90, (3, 16, 16)) for i in indices]
        )
        for image, right in zip(noise, label, strict=True):
            image[:, :8, 8 * right : 8 * right + 8] += 60
        return {"image": noise.astype(np.uint8), "label": label}


class Killed(BaseException):
    """Raised by a test to end a run as a kill would; no handler of ours catches it."""

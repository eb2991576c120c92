"""Drawings of discs, squares, crosses and rings, of random size and place, in noise."""

import numpy as np

SIDE = 28


def load(count: int, seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    label = generator.integers(0, 4, count)
    radius = generator.uniform(4, 9, (count, 1, 1))
    centre = generator.uniform(10, SIDE - 10, (2, count, 1, 1))
    y, x = (
        np.arange(SIDE).reshape(1, -1, 1) - centre[0],
        np.arange(SIDE).reshape(1, 1, -1) - centre[1],
    )
    distance, square = np.hypot(y, x), np.maximum(abs(y), abs(x))
    drawings = np.stack(
        [
            distance < radius,
            square < 0.85 * radius,
            (np.minimum(abs(y), abs(x)) < radius / 4) & (square < radius),
            abs(distance - 0.8 * radius) < radius / 4,
        ]
    )
    image = drawings[label, np.arange(count)] + generator.normal(0, 0.5, (count, SIDE, SIDE))
    return {"image": image[:, None].astype(np.float32), "label": label}

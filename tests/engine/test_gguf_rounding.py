"""What the GGUF converter computes beside torch, which its own tests do without."""

import numpy as np
import torch

from zmqrt.worker.weights import to_bfloat16


def test_bfloat16_rounds_as_torch_does() -> None:
    """To the nearest, ties to even, for numbers of every size."""
    values = np.random.RandomState(0).randint(0, 2**32, 100_000, dtype=np.uint32).view(np.float32)
    values = np.concatenate([values[np.isfinite(values)], np.array([1.00390625, 1.01171875, -0.0, 3e38], np.float32)])

    expected = torch.tensor(values).bfloat16().view(torch.int16).numpy().view(np.uint16)

    assert (to_bfloat16(values) == expected).all()

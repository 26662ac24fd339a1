"""Values that ranks tell each other, as JSON.

Accelerate's gather_object pickles, and to unpickle is to run what another rank sent.
"""

import json
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator


def gather_json(value: Any, accelerator: Accelerator) -> list[Any]:
    """Every rank's value, on every rank, by rank."""
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = accelerator.gather(torch.tensor([len(text)], device=accelerator.device)).tolist()
    row = torch.zeros(1, max(sizes), dtype=torch.uint8, device=accelerator.device)
    row[0, : len(text)] = torch.from_numpy(text.copy())
    rows = accelerator.gather(row).cpu().numpy()  # (world, bytes)
    return [json.loads(text[:size].tobytes()) for text, size in zip(rows, sizes, strict=True)]

"""Heat maps from the evidence of any branch, and a check of the genres asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def check_genres(genres: Sequence[int], count: int) -> None:
    """Check that genre indices are in range.

    Raises:
        IndexError: an index is out of range; the message names it.
    """
    for genre in genres:
        if not 0 <= genre < count:
            raise IndexError(f"genre {genre} of {count}")


def scale_heat(evidence: np.ndarray | Tensor, size: tuple[int, int]) -> np.ndarray:
    """Heat maps of the evidence at each place.

    Only evidence for a genre is kept. Each map is scaled to a maximum of 1, so maps show places and
    not amounts.

    Args:
        evidence: (K, h, w) float32, positive for a genre and negative against it.
        size: H and W of the maps.

    Returns:
        (K, H, W) float32 in [0, 1]; zeros for a genre without positive evidence.
    """
    heat = torch.relu(torch.as_tensor(evidence))[:, None].float()
    if not len(heat):
        return np.zeros((0, *size), dtype=np.float32)
    heat = F.interpolate(heat, size, mode="bilinear", align_corners=False)
    heat = heat / heat.amax(dim=(2, 3), keepdim=True).clamp(min=torch.finfo(heat.dtype).tiny)
    return np.asarray(heat[:, 0].cpu().numpy())

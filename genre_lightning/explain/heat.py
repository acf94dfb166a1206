"""Heat maps of any branch: genres that there are, evidence for them alone, each scaled to 1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def check_genres(genres: Sequence[int], count: int) -> None:
    """Refuse a genre that there is not.

    Raises:
        IndexError: naming it.
    """
    for genre in genres:
        if not 0 <= genre < count:
            raise IndexError(f"genre {genre} of {count}")


def scale_heat(evidence: np.ndarray | Tensor, size: tuple[int, int]) -> np.ndarray:
    """Heat maps of what each place says.

    Only evidence for a genre is shown. Each map is scaled to a maximum of 1, so maps tell places
    and not amounts.

    Args:
        evidence: (K, h, w) float32, for and against a genre.
        size: H and W of the maps.

    Returns:
        (K, H, W) float32 in [0, 1]; zeros for a genre that nothing speaks for.
    """
    heat = torch.relu(torch.as_tensor(evidence))[:, None].float()
    if not len(heat):
        return np.zeros((0, *size), dtype=np.float32)
    heat = F.interpolate(heat, size, mode="bilinear", align_corners=False)
    heat = heat / heat.amax(dim=(2, 3), keepdim=True).clamp(min=torch.finfo(heat.dtype).tiny)
    return np.asarray(heat[:, 0].cpu().numpy())

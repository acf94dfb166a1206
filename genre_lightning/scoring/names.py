"""What the scores of a split are called; imported before PyTorch is."""

from __future__ import annotations

#: At the thresholds that were fitted; with "_at_0.5" at a fixed 0.5.
DECISIONS = (
    "f1_micro",
    "f1_macro",
    "f1_samples",
    "f1_weighted",
    "precision_micro",
    "precision_macro",
    "recall_micro",
    "recall_macro",
)
#: What an epoch's validation gives, and a run can be told to monitor.
MONITORED = tuple(
    f"val/{name}"
    for name in (
        *DECISIONS,
        *(f"{name}_at_0.5" for name in DECISIONS),
        "map_macro",
        "map_micro",
        "loss",
    )
)

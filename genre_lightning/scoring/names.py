"""Names of a split's metrics, kept apart so that they can be imported without PyTorch."""

from __future__ import annotations

#: Metrics at the fitted thresholds; with the suffix "_at_0.5", at a fixed 0.5.
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
#: Metrics of each validation that a run can monitor.
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

"""Limits OpenMP's threads before PyTorch is imported, which reads the variable only once."""

import os

# Networks in tests are tiny: more threads would only wait for each other. Commands that tests start
# inherit the variable.
os.environ.setdefault("OMP_NUM_THREADS", "1")

"""Before anything else of the tests is imported, and with it PyTorch, which reads this once."""

import os

# Networks in tests are tiny: more threads only wait for each other. Inherited by the commands that
# tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

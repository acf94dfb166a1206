"""torchrun with one message: the process that starts it reports why a run has ended."""

from __future__ import annotations

import logging
import sys

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as run


def main() -> None:
    """Run torchrun without its log, and without a traceback if a process failed or on SIGTERM."""
    logging.disable(logging.ERROR)
    try:
        run()
    except SignalException as stop:
        raise SystemExit(128 + stop.sigval) from None
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.signal_name() != "<N/A>":  # it could not say so itself
            print(f"process {rank} was ended by {failure.signal_name()}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()

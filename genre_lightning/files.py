"""Files that are whole or not there."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal, TextIO, overload

from genre_lightning.errors import UserError

#: No space, no quota, no larger file allowed.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@overload
def whole_file(path: Path, mode: Literal["w"] = "w") -> AbstractContextManager[TextIO]: ...
@overload
def whole_file(path: Path, mode: Literal["wb"]) -> AbstractContextManager[BinaryIO]: ...
@contextmanager  # type: ignore[misc]
def whole_file(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file that appears under its name once it is whole, and not otherwise.

    Whatever stood there before stays until then, also when the block raises or is killed.

    Args:
        path: of the file.
        mode: "w" for UTF-8 text, "wb" for bytes.

    Raises:
        UserError: the disk is full; the message names the file and the space that is left.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    try:
        with temporary.open(mode, **text) as file:  # type: ignore[call-overload]
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno not in FULL:
            raise
        free = shutil.disk_usage(path.parent).free
        raise UserError(
            f"{path} could not be written: {error.strerror} ({free / 2**20:,.0f} MiB free there). "
            "What stood there before is intact"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)

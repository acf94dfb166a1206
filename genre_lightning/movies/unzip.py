"""Unpacking of an untrusted zip."""

from __future__ import annotations

import errno
import shutil
import stat
import zipfile
from pathlib import Path, PurePosixPath

from genre_lightning.movies.movie import DAMAGED_ZIP, DataError

#: The original zip of MovieLens-1M holds 3,259 files and 95 MB; far more can't be the dataset.
MAX_ARCHIVE_FILES = 100_000
MAX_ARCHIVE_BYTES = 4 << 30


def unpack(archive: Path, folder: Path) -> None:
    """Unpack an untrusted zip into a new folder.

    Raises:
        DataError: an entry would leave the folder, is a link or special file, is repeated or
            damaged, or the zip is absurdly large. Files unpacked so far are left in ``folder``;
            the caller should delete them.
    """
    folder.mkdir()
    try:
        with zipfile.ZipFile(archive) as source:
            infos = source.infolist()
            # Declared sizes are enough: ZipFile never returns more bytes than an entry declares.
            total = sum(info.file_size for info in infos)
            if len(infos) > MAX_ARCHIVE_FILES or total > MAX_ARCHIVE_BYTES:
                raise DataError(
                    f"the zip is absurdly large ({len(infos)} files, {total} bytes; at most "
                    f"{MAX_ARCHIVE_FILES} files, {MAX_ARCHIVE_BYTES} bytes are unpacked)"
                )
            for info in infos:
                _refuse_unsafe(info)
            for info in infos:
                target = folder.joinpath(*PurePosixPath(info.filename).parts)
                if info.is_dir():
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                with source.open(info) as reader, target.open("xb") as writer:
                    shutil.copyfileobj(reader, writer)
    except FileExistsError as error:
        raise DataError(f"the zip holds {error.filename!r} twice") from error
    except DataError:
        raise
    except DAMAGED_ZIP as error:
        raise DataError(f"the zip is damaged ({error!s:.300})") from error
    except OSError as error:
        # Errors of bzip2 have no errno; an offset before the file's start is EINVAL.
        if error.errno not in (None, errno.EINVAL):
            raise
        raise DataError(f"the zip is damaged ({error!s:.300})") from error


def _refuse_unsafe(info: zipfile.ZipInfo) -> None:
    """Refuse an entry that would be written elsewhere, or is not a plain file or folder."""
    name = info.filename
    path = PurePosixPath(name)
    # ":" covers drive letters and the hidden streams of NTFS; no name in this dataset has one.
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
        raise DataError(f"the zip holds an entry that would leave its folder: {name!r}")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise DataError(f"the zip holds a link or special file: {name!r}")

"""Reads parts of files into memory, several at a time, past the page cache where that is possible.

Reads of a few MiB, four of them under way: a disk gives its full rate then, and the threads sleep
in the kernel meanwhile. Files stay open, so that one that is replaced or removed is still the one
that was there at first.
"""

from __future__ import annotations

import contextlib
import errno
import os
import weakref
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import NoReturn

from popxl_torch.executor.file_ranges import FileRange

ALIGNMENT = 4096
"""Of places in files, of memory and of lengths, where reads go past the page cache."""

PIECE_BYTES = 4 << 20
IN_FLIGHT = 4


class Reading:
    """Reads that are under way."""

    def __init__(self, pieces: list[Future[None]]) -> None:
        self._pieces = pieces

    @property
    def done(self) -> bool:
        """Whether nothing writes to the memory any more."""
        return all(piece.done() for piece in self._pieces)

    def wait(self) -> None:
        """Wait until all are done.

        Raises:
            OSError: the first that failed.
        """
        wait(self._pieces)
        for piece in self._pieces:
            piece.result()

    def cancel(self) -> None:
        """Give up what has not begun, and wait for the rest."""
        for piece in self._pieces:
            piece.cancel()
        wait(self._pieces)


class FileReader:
    """The threads and open files of one session."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="popxl_torch_read")
        self._files: dict[Path, _File] = {}

    def open(self, path: Path, size: int) -> None:
        """Open a file that has at least ``size`` bytes.

        Raises:
            OSError: it cannot be read, or is shorter.
        """
        if path not in self._files:
            self._files[path] = _File(path)
        self._files[path].check_size(size)

    def read(self, parts: Iterable[tuple[FileRange, memoryview]]) -> Reading:
        """Begin to read ranges of files that were opened, each into the memory beside it.

        Ranges begin at multiples of :data:`ALIGNMENT`, and so does their memory, which has room up
        to the next multiple behind their end.
        """
        pieces = []
        for whole, memory in parts:
            file = self._files[whole.path]
            for start in range(whole.start, whole.end, PIECE_BYTES):
                begin = start - whole.start
                piece = memory[begin : begin + PIECE_BYTES]
                end = min(start + PIECE_BYTES, whole.end)
                pieces.append(self._threads.submit(file.read, start, end, piece))
        return Reading(pieces)

    def close(self) -> None:
        """End the threads and close the files."""
        self._threads.shutdown(cancel_futures=True)
        for file in self._files.values():
            file.close()
        self._files.clear()


class _File:
    """An open file, read directly where its filesystem can do that."""

    def __init__(self, path: Path) -> None:
        self.path = path
        flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)
        self._cached = os.open(path, flags)
        open_files = [self._cached]
        self.close = weakref.finalize(self, _close, open_files)
        self._direct: int | None = None
        with contextlib.suppress(OSError, AttributeError):
            self._direct = os.open(path, flags | os.O_DIRECT)
            open_files.append(self._direct)

    def check_size(self, size: int) -> None:
        """OSError if there are fewer bytes."""
        found = os.fstat(self._cached).st_size
        if found < size:
            self._too_short(found, size)

    def read(self, start: int, end: int, memory: memoryview) -> None:
        """Fill memory with [start, end); see :meth:`FileReader.read`."""
        done = start
        while done < end:
            count = self._read_some(done, end, memory[done - start :])
            if count == 0:
                self._too_short(done, end)
            done += count

    def _read_some(self, start: int, end: int, memory: memoryview) -> int:
        """How many bytes were read from ``start``; none at the end of the file."""
        if self._direct is not None:
            try:
                count = os.preadv(self._direct, [memory], start)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise self._named(error) from error
                self._direct = None
            else:
                if start + count >= end:
                    return end - start
                # Cut short: the next direct read must begin at a multiple again.
                count -= count % ALIGNMENT
                if count:
                    return count
        try:
            count = os.preadv(self._cached, [memory[: end - start]], start)
        except OSError as error:
            raise self._named(error) from error
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._cached, start, count, os.POSIX_FADV_DONTNEED)
        return count

    def _named(self, error: OSError) -> OSError:
        return OSError(error.errno, error.strerror, str(self.path))

    def _too_short(self, found: int, wanted: int) -> NoReturn:
        what = f"the file has become shorter: {found:,} bytes where {wanted:,} are needed"
        raise OSError(errno.EIO, what, str(self.path))


def _close(files: list[int]) -> None:
    for file in files:
        os.close(file)

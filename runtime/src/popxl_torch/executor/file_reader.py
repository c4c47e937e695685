"""Reads parts of files into memory, several at a time, past the page cache where that is asked for
and possible.

Reads of a few MiB, four of them under way: a disk gives its full rate then, and the threads sleep
in the kernel meanwhile. Files stay open, so that one that is replaced or removed is still the one
that was there at first. Parts of the process's own memory are copied in the same way.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path

from popxl_torch.executor.file_ranges import FileRange, too_short

ALIGNMENT = 4096
"""Of places in files, of memory and of lengths, where reads go past the page cache."""

PIECE_BYTES = 4 << 20
IN_FLIGHT = 4

Read = Callable[[memoryview], None]
"""Fills memory with a piece; it has room up to the next multiple of ALIGNMENT behind the piece."""

Deliver = Callable[[Read, int, int], None]
"""Called in a thread with how to read a piece, where it belongs behind all before it, its bytes."""


def aligned(size: int) -> int:
    """The next multiple of :data:`ALIGNMENT`."""
    return -(-size // ALIGNMENT) * ALIGNMENT


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

    def __init__(self, direct: bool = True) -> None:
        """``direct`` reads go past the page cache where the filesystem can do that."""
        self._direct = direct
        self._threads = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="popxl_torch_read")
        self._files: dict[Path, _File] = {}

    def open(self, whole: FileRange) -> None:
        """Open the file of a range, which must have all of it.

        Raises:
            OSError: it cannot be read, or is shorter.
        """
        path = whole.path
        if path is None:
            return
        if path not in self._files:
            self._files[path] = _File(path, self._direct)
        self._files[path].check_size(whole.end)

    def read(self, ranges: Iterable[FileRange], deliver: Deliver) -> Reading:
        """Begin to read ranges that were opened, one behind the other, in pieces.

        Ranges begin at multiples of :data:`ALIGNMENT`; behind each of them there is room up to the
        next multiple, where the next one belongs.
        """
        pieces, place = [], 0
        for whole in ranges:
            source = _copy if whole.path is None else self._files[whole.path].read
            for start in range(whole.start, whole.end, PIECE_BYTES):
                size = min(PIECE_BYTES, whole.end - start)
                read = partial(source, start, start + size)
                at = place + start - whole.start
                pieces.append(self._threads.submit(deliver, read, at, size))
            place += aligned(whole.end - whole.start)
        return Reading(pieces)

    def read_into(self, memory: memoryview, ranges: Iterable[FileRange]) -> Reading:
        """:meth:`read` into memory that begins at a multiple of :data:`ALIGNMENT`."""

        def deliver(read: Read, place: int, size: int) -> None:
            read(memory[place : place + aligned(size)])

        return self.read(ranges, deliver)

    def close(self) -> None:
        """End the threads and close the files."""
        self._threads.shutdown(cancel_futures=True)
        for file in self._files.values():
            file.close()
        self._files.clear()


def _copy(start: int, end: int, memory: memoryview) -> None:
    """Fill memory with what lies at addresses [start, end); other threads go on meanwhile."""
    ctypes.memmove(ctypes.addressof(ctypes.c_char.from_buffer(memory)), start, end - start)


class _File:
    """An open file, read directly where that is asked for and its filesystem can do it."""

    def __init__(self, path: Path, direct: bool) -> None:
        self.path = path
        self._drops_cache = direct and hasattr(os, "posix_fadvise")
        flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)
        self._cached = os.open(path, flags)
        open_files = [self._cached]
        self.close = weakref.finalize(self, _close, open_files)
        self._direct: int | None = None
        if direct:
            with contextlib.suppress(OSError, AttributeError):
                self._direct = os.open(path, flags | os.O_DIRECT)
                open_files.append(self._direct)

    def check_size(self, size: int) -> None:
        """OSError if there are fewer bytes."""
        found = os.fstat(self._cached).st_size
        if found < size:
            raise too_short(self.path, found, size)

    def read(self, start: int, end: int, memory: memoryview) -> None:
        """Fill memory with [start, end); see :meth:`FileReader.read`."""
        done = start
        while done < end:
            count = self._read_some(done, end, memory[done - start :])
            if count == 0:
                raise too_short(self.path, done, end)
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
        if self._drops_cache:
            os.posix_fadvise(self._cached, start, count, os.POSIX_FADV_DONTNEED)
        return count

    def _named(self, error: OSError) -> OSError:
        return OSError(error.errno, error.strerror, str(self.path))


def _close(files: list[int]) -> None:
    for file in files:
        os.close(file)

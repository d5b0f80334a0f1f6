"""Reading files for retrieval: from a path to chunks or text, in processes with limits.

    reader = DocumentReader(ReadingLimits(max_bytes=..., timeout_s=120, memory_bytes=2 * 2**30))
    chunks = await reader.read(path, "handbook.pdf", settings)

Each file is read by a process that can neither open other files nor connections, within limits of
time and memory. A file that breaks them costs its process, and nobody else anything.
"""

import asyncio
import os
import stat
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

from cluster.types import Chunk
from models.documents.errors import UnreadableDocumentError
from models.documents.reading_process import ReadingProcess, ReadingProcessKilledError
from models.documents.reading_wire import ChunkPiece, TextPiece
from models.documents.settings import ChunkSettings, ReadingLimits


class DocumentReader:
    """Up to `num_processes` files at a time; more wait. Belongs to one event loop."""

    def __init__(self, limits: ReadingLimits, *, num_processes: int = 2) -> None:
        """Processes are started when they are needed, and kept."""
        self._limits = limits
        self._slots = asyncio.Semaphore(num_processes)
        self._idle: list[ReadingProcess] = []
        self._busy: set[ReadingProcess] = set()
        self._endings: set[asyncio.Task[None]] = set()

    async def read(self, path: Path, filename: str, settings: ChunkSettings) -> list[Chunk]:
        """All chunks of a file; `filename` is what it is called, whatever the path is.

        Raises:
            UnreadableDocumentError: with the reason, for whoever uploaded it.
            OSError: there is no such file.
            RuntimeError: no process could be started.
        """
        async with aclosing(self.stream(path, filename, settings)) as pieces:
            return [chunk async for piece in pieces for chunk in piece]

    async def stream(
        self, path: Path, filename: str, settings: ChunkSettings
    ) -> AsyncGenerator[list[Chunk], None]:
        """The same, piece by piece, in bounded memory: the process waits for whoever iterates.

        Close the iterator when it is not read to its end (`contextlib.aclosing`): that kills the
        process.
        """
        async with aclosing(self._pieces(path, filename, settings)) as pieces:
            async for piece in pieces:
                assert isinstance(piece, ChunkPiece)
                yield piece.chunks

    async def read_text(self, path: Path, filename: str) -> str:
        """The text that chunks' `start` and `end` refer to. Raises as `read` does."""
        async with aclosing(self._pieces(path, filename, None)) as pieces:
            return "".join([piece.text async for piece in pieces if isinstance(piece, TextPiece)])

    async def close(self) -> None:
        """End all processes; files that are being read fail."""
        for process in self._idle:
            self._end(process)
        self._idle.clear()
        for process in self._busy:
            process.kill()
        await asyncio.gather(*self._endings, *(process.wait() for process in self._busy))

    async def _pieces(
        self, path: Path, filename: str, settings: ChunkSettings | None
    ) -> AsyncGenerator[ChunkPiece | TextPiece, None]:
        num_pieces = 0
        try:
            async with aclosing(self._read_once(path, filename, settings)) as pieces:
                async for piece in pieces:
                    num_pieces += 1
                    yield piece
            return
        except ReadingProcessKilledError:
            if num_pieces:
                raise
        # Another file of another process may have been the cause.
        async with aclosing(self._read_once(path, filename, settings)) as pieces:
            async for piece in pieces:
                yield piece

    async def _read_once(
        self, path: Path, filename: str, settings: ChunkSettings | None
    ) -> AsyncGenerator[ChunkPiece | TextPiece, None]:
        """Reads a piece ahead: the last one is handed out when the process has been given back,
        however long it is then worked on."""
        ahead: ChunkPiece | TextPiece | None = None
        descriptor = _open(path, self._limits.max_bytes)
        try:
            async with (
                self._process() as process,
                aclosing(process.read(descriptor, filename, settings)) as pieces,
            ):
                async for piece in pieces:
                    if ahead is not None:
                        yield ahead
                    ahead = piece
        finally:
            os.close(descriptor)
        if ahead is not None:
            yield ahead

    @asynccontextmanager
    async def _process(self) -> AsyncIterator[ReadingProcess]:
        """A process of one's own, kept for others if it is usable in the end."""
        async with self._slots:
            process = self._take()
            self._busy.add(process)
            try:
                yield process
            finally:
                self._busy.discard(process)
                if process.is_usable:
                    self._idle.append(process)
                else:
                    self._end(process)

    def _take(self) -> ReadingProcess:
        while self._idle:
            process = self._idle.pop()
            if process.is_alive:
                return process
            self._end(process)  # somebody else has killed it: the kernel, when memory ended
        return ReadingProcess(self._limits)

    def _end(self, process: ReadingProcess) -> None:
        process.kill()
        process.close()
        ending = asyncio.create_task(process.wait())
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)


def _open(path: Path, max_bytes: int) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableDocumentError("It is not a regular file.")
        if status.st_size > max_bytes:
            raise UnreadableDocumentError(
                f"It has {status.st_size:,} bytes; files of up to {max_bytes:,} are read."
            )
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor

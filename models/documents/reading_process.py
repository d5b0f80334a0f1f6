"""The service's end of one process that reads files: orders out, pieces in, and the kill."""

import asyncio
import shutil
import signal
import socket
import tempfile
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec

from models.child_process import LENGTH, encode_frame, start_child
from models.documents.errors import UnreadableDocumentError
from models.documents.reading_wire import (
    Answer,
    ChunkPiece,
    ReaderSetup,
    ReadOrder,
    Ready,
    Refused,
    TextPiece,
    TokenizerSent,
)
from models.documents.settings import ChunkSettings, ReadingLimits

_START_TIMEOUT_S = 120.0  # imports on a loaded machine
_END_TIMEOUT_S = 5.0  # between the connection's end and the process'
_MAX_FRAME_BYTES = 256 * 2**20
_MAX_FILES = 200  # then a fresh process takes over: parsers leak
#: Pieces that come slower than this, beyond the time limit, are given up.
_MIN_CHARS_PER_S = 20_000
_DECODER: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


class ReadingProcessKilledError(UnreadableDocumentError):
    """Somebody killed the process: the kernel, when memory ended. The file may not be the cause."""


class ReadingProcess:
    """Reads one file at a time. `kill` it in the end."""

    def __init__(self, limits: ReadingLimits) -> None:
        """Starts the process and does not wait for it."""
        self._limits = limits
        self._temporary_folder = tempfile.mkdtemp(prefix="shoal-reader-")  # needed at the start
        self._process, self._socket = start_child(
            "models.documents.worker", environment={"TMPDIR": self._temporary_folder}
        )
        self._socket.setblocking(False)
        self._is_started = False
        self._num_files = 0
        self._tokenizers: dict[str, int] = {}  # those it has -> their numbers
        #: Whether it can read another file: not while one is read, nor after it was not read to
        #: its end.
        self.is_usable = True

    @property
    def process_id(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    async def read(
        self, descriptor: int, filename: str, settings: ChunkSettings | None
    ) -> AsyncGenerator[ChunkPiece | TextPiece, None]:
        """The pieces of the open file. Its time passes only while a piece is waited for.

        Raises:
            UnreadableDocumentError: the file cannot be read, or takes too long or too much memory.
            RuntimeError: the process did not start.
        """
        self.is_usable = False
        await self._await_start()
        self._num_files += 1
        try:
            await self._order(descriptor, filename, settings)
            async with aclosing(self._pieces()) as pieces:
                async for piece in pieces:
                    yield piece
        except (ConnectionError, msgspec.DecodeError) as error:
            raise await self._cause_of_death() from error

    def kill(self) -> None:
        """End the process at once, whatever it does; a read that goes on fails."""
        self.is_usable = False
        self._process.kill()

    async def wait(self) -> None:
        """Until a killed process is gone."""
        await asyncio.to_thread(self._process.wait)
        if not self._is_started:
            await asyncio.to_thread(shutil.rmtree, self._temporary_folder, ignore_errors=True)

    def close(self) -> None:
        """Let go of the connection, when nothing is read any more."""
        self._socket.close()

    async def _await_start(self) -> None:
        if self._is_started:
            return
        setup = ReaderSetup(
            memory_bytes=self._limits.memory_bytes, timeout_s=self._limits.timeout_s
        )
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                await self._send(setup)
                answer = await self._receive()
        except (OSError, msgspec.DecodeError) as error:  # TimeoutError is one
            raise RuntimeError("a reading process did not start; see its error output") from error
        assert isinstance(answer, Ready), answer
        await asyncio.to_thread(shutil.rmtree, self._temporary_folder)
        self._is_started = True

    async def _order(self, descriptor: int, filename: str, settings: ChunkSettings | None) -> None:
        number = 0
        if settings is not None:
            number = await self._tokenizer_number(settings.tokenizer_json)
            settings = msgspec.structs.replace(settings, tokenizer_json="")
        await self._send(ReadOrder(filename=filename, settings=settings, tokenizer_number=number))
        socket.send_fds(self._socket, [b"F"], [descriptor])

    async def _tokenizer_number(self, tokenizer_json: str) -> int:
        number = self._tokenizers.get(tokenizer_json)
        if number is None:
            number = len(self._tokenizers)
            await self._send(TokenizerSent(number=number, tokenizer_json=tokenizer_json))
            self._tokenizers[tokenizer_json] = number
        return number

    async def _pieces(self) -> AsyncGenerator[ChunkPiece | TextPiece, None]:
        clock = asyncio.get_running_loop().time
        num_chars, waited_s = 0, 0.0
        while True:
            started_s = clock()
            allowed_s = self._limits.timeout_s + num_chars / _MIN_CHARS_PER_S
            try:
                async with asyncio.timeout(allowed_s - waited_s):
                    answer = await self._receive()
            except TimeoutError as error:
                raise UnreadableDocumentError(
                    f"Reading it takes longer than {allowed_s:g} s."
                ) from error
            waited_s += clock() - started_s
            if isinstance(answer, ChunkPiece):
                num_chars = answer.chunks[-1].end
            elif isinstance(answer, TextPiece):
                num_chars += len(answer.text)
            else:
                break
            yield answer
        is_spent = isinstance(answer, Refused) and answer.is_spent
        self.is_usable = not is_spent and self._num_files < _MAX_FILES
        if isinstance(answer, Refused):
            raise UnreadableDocumentError(answer.reason)

    async def _cause_of_death(self) -> UnreadableDocumentError:
        if self._process.poll() is None:
            await self._await_end()
        limits = self._limits
        if self._process.returncode == -signal.SIGKILL:
            return ReadingProcessKilledError(
                "The process that read it was killed; the machine may have run out of memory."
            )
        if self._process.returncode == -signal.SIGXCPU:
            return UnreadableDocumentError(
                f"Reading it takes more than {limits.timeout_s:g} s of processor time."
            )
        return UnreadableDocumentError(
            f"Its parser crashed, or needed more than {limits.memory_bytes:,} bytes of memory."
        )

    async def _await_end(self) -> None:
        """Of a process that has closed its end of the connection, or said what it may not."""
        try:
            async with asyncio.timeout(_END_TIMEOUT_S):
                while self._process.poll() is None:  # noqa: ASYNC110 - there is no event of it
                    await asyncio.sleep(0.01)
        except TimeoutError:
            self._process.send_signal(signal.SIGABRT)
            await self.wait()

    async def _send(self, message: msgspec.Struct) -> None:
        await asyncio.get_running_loop().sock_sendall(self._socket, encode_frame(message))

    async def _receive(self) -> Answer:
        (length,) = LENGTH.unpack(await self._receive_exactly(LENGTH.size))
        if length > _MAX_FRAME_BYTES:
            raise ConnectionResetError(f"a frame of {length} bytes is none of ours")
        return _DECODER.decode(await self._receive_exactly(length))

    async def _receive_exactly(self, count: int) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            part = await asyncio.get_running_loop().sock_recv(self._socket, count - len(parts))
            if not part:
                raise ConnectionResetError("the process is gone")
            parts += part
        return bytes(parts)

"""A process of its own that parses and divides files, so that a hostile one hurts nobody else.

python -m models.documents.worker FD      (started by `ReadingProcess`, speaks over socket FD)
"""

import contextlib
import io
import itertools
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec
import tokenizers

from models.child_process import limit_memory, receive_body, receive_frame, send_frame
from models.documents.chunker import chunks_of
from models.documents.confinement import (
    allow_processor_time,
    forbid_files_and_network,
    forbid_writing_and_opening,
    stand_back,
)
from models.documents.errors import UnreadableDocumentError
from models.documents.extraction import extract_html_as_markdown, extract_pdf_pages
from models.documents.parser import read_blocks
from models.documents.reading_wire import (
    Answer,
    ChunkPiece,
    Finished,
    Order,
    ReaderSetup,
    ReadOrder,
    Ready,
    Refused,
    TextPiece,
    TokenizerSent,
)
from models.documents.text_encoding import load_codecs

_CHUNKS_PER_PIECE = 64
_CONNECTION_FD = 3
_DECODER: msgspec.msgpack.Decoder[Order] = msgspec.msgpack.Decoder(Order)


class _Worker:
    """Serves one parent."""

    def __init__(self, connection: socket.socket, setup: ReaderSetup) -> None:
        self._connection = connection
        self._setup = setup
        self._tokenizers: dict[int, tokenizers.Tokenizer] = {}

    def serve(self) -> None:
        """Until the parent is gone, or a file has left the process in a bad state."""
        is_spent = False
        while not is_spent:
            try:
                order = _DECODER.decode(receive_body(self._connection, deadline=None))
            except ConnectionResetError:
                return
            if isinstance(order, TokenizerSent):
                self._tokenizers[order.number] = _tokenizer(order.tokenizer_json)
            else:
                is_spent = self._read(order)

    def _read(self, order: ReadOrder) -> bool:
        """Whether the process should end."""
        answer: Answer
        with self._receive_file() as file:
            try:
                allow_processor_time(self._setup.timeout_s)
                for piece in self._pieces(file, order):
                    send_frame(self._connection, piece)
                    allow_processor_time(self._setup.timeout_s)
                answer = Finished()
            except UnreadableDocumentError as error:
                answer = Refused(reason=str(error))
            except MemoryError:
                limit = self._setup.memory_bytes
                answer = Refused(
                    reason=f"Reading it takes more than {limit:,} bytes of memory.", is_spent=True
                )
            except ConnectionError:
                return True
            except Exception as error:  # a parser's defect is the file's misfortune, not ours
                answer = Refused(
                    reason=f"It cannot be parsed ({type(error).__name__}).", is_spent=True
                )
        send_frame(self._connection, answer)
        return isinstance(answer, Refused) and answer.is_spent

    def _pieces(self, file: BinaryIO, order: ReadOrder) -> Iterator[ChunkPiece | TextPiece]:
        if order.settings is None:
            for block in read_blocks(file, order.filename):
                yield TextPiece(text=block.text)
            return
        blocks = read_blocks(file, order.filename, loader=order.settings.loader)
        tokenizer = self._tokenizers[order.tokenizer_number]
        chunks = chunks_of(blocks, tokenizer, order.settings)
        while piece := list(itertools.islice(chunks, _CHUNKS_PER_PIECE)):
            yield ChunkPiece(chunks=piece)

    def _receive_file(self) -> BinaryIO:
        _, descriptors, _, _ = socket.recv_fds(self._connection, 1, 1)
        return io.BufferedReader(io.FileIO(descriptors[0]))


def _tokenizer(tokenizer_json: str) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _warm_up() -> None:
    """What libraries do once, they do before there are limits: threads, descriptors, codecs."""
    extract_html_as_markdown("<p>text</p>")
    with contextlib.suppress(UnreadableDocumentError):  # it is none, and the library is loaded
        extract_pdf_pages(b"%PDF-1.4")
    list(read_blocks(io.BytesIO(b'{"a": 1}'), "warm.json"))


def main() -> None:
    """Serve the parent on the socket whose number is the argument."""
    given = int(sys.argv[1])
    if given != _CONNECTION_FD:  # as low as can be: see `forbid_writing_and_opening`
        os.dup2(given, _CONNECTION_FD)
        os.close(given)
    with socket.socket(fileno=_CONNECTION_FD) as connection:
        setup = receive_frame(connection, ReaderSetup, deadline=None)
        load_codecs()
        stand_back()
        limit_memory(setup.memory_bytes)
        # Before there are other threads, which it would not reach. Kreuzberg unpacks and loads a
        # library in the folder for temporary files, which is a fresh one of ours.
        forbid_files_and_network(allowed_folder=Path(os.environ["TMPDIR"]))
        _warm_up()
        forbid_writing_and_opening()
        send_frame(connection, Ready())
        _Worker(connection, setup).serve()


if __name__ == "__main__":
    main()

"""Real processes, and files that are made to break them. A good file is read after each."""

import asyncio
import os
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path

import psutil
import pytest
import tokenizers

from models.documents.errors import UnreadableDocumentError
from models.documents.reader import DocumentReader
from models.documents.settings import ChunkSettings, ReadingLimits
from tests.models.documents.made_files import bomb, docx, paragraph, pdf, pptx, xlsx

MiB = 2**20
LIMITS = ReadingLimits(max_bytes=100 * MiB, timeout_s=60, memory_bytes=2048 * MiB)

MakeReader = Callable[..., DocumentReader]
WriteFile = Callable[[bytes], Path]


@pytest.fixture
async def make_reader() -> AsyncIterator[MakeReader]:
    readers: list[DocumentReader] = []

    def make(limits: ReadingLimits = LIMITS, *, num_processes: int = 1) -> DocumentReader:
        readers.append(DocumentReader(limits, num_processes=num_processes))
        return readers[-1]

    yield make
    for reader in readers:
        await reader.close()


@pytest.fixture
def write_file(tmp_path: Path) -> WriteFile:
    def write(data: bytes) -> Path:
        path = tmp_path / f"object-{len(list(tmp_path.iterdir()))}"
        path.write_bytes(data)
        return path

    return write


@pytest.fixture(scope="module")
def chunk_settings(word_pieces: tokenizers.Tokenizer) -> ChunkSettings:
    return ChunkSettings(tokenizer_json=word_pieces.to_str(), max_tokens=126)


def children() -> set[int]:
    return {
        process.pid
        for process in psutil.Process().children()
        if "models.documents.worker" in process.cmdline()
    }


async def until(is_so: Callable[[], bool]) -> None:
    while not is_so():  # noqa: ASYNC110 - what another process does has no event
        await asyncio.sleep(0.01)


async def test_a_file_becomes_chunks_whose_places_are_those_of_its_text(
    make_reader: MakeReader, write_file: WriteFile, chunk_settings: ChunkSettings
) -> None:
    reader = make_reader()
    files = {
        "a.pdf": pdf([f"Page {n} has text.\nAnd more of it." * 20 for n in range(5)]),
        "a.docx": docx(paragraph("Title", style="Heading1"), paragraph("AT&T text. " * 200)),
        "a.pptx": pptx([("Slide", "text " * 100), ("Other", "more")]),
        "a.xlsx": xlsx({"S": [["a", "b"], *[[f"row {n}", n] for n in range(200)]]}),
        "a.md": b"# Head\n\n" + b"Some text here. " * 300,
        "a.txt": "Größe. ".encode("latin-1") * 500,
        "a.csv": b"name,city\n" + b"Ann,Oslo\n" * 300,
        "a.json": b'[{"a": "b"}, {"a": "c"}]',
        "a.html": b"<html><h1>H</h1>" + b"<p>para graph</p>" * 100,
    }
    for filename, data in files.items():
        path = write_file(data)
        chunks = await reader.read(path, filename, chunk_settings)
        text = await reader.read_text(path, filename)
        assert chunks, filename
        assert all(text[chunk.start : chunk.end] == chunk.text for chunk in chunks), filename
        assert chunks == await reader.read(path, filename, chunk_settings)
    assert len(children()) == 1


async def test_pages_and_headings_are_kept(
    make_reader: MakeReader, write_file: WriteFile, chunk_settings: ChunkSettings
) -> None:
    reader = make_reader()
    pages = [f"Text of page {number}.\n" + "More of it, much more.\n" * 40 for number in (1, 2, 3)]
    chunks = await reader.read(write_file(pdf(pages)), "a.pdf", chunk_settings)
    assert {chunk.page for chunk in chunks} == {1, 2, 3}
    markdown = b"# A\n\n" + b"Words come. " * 100 + b"\n\n## B\n\n" + b"Words go. " * 100
    chunks = await reader.read(write_file(markdown), "a.md", chunk_settings)
    assert {chunk.heading for chunk in chunks} == {"A", "A > B"}


def image_pdf() -> bytes:
    return pdf(["", "", ""])


def pdf_with_a_bomb() -> bytes:
    """A page whose content unpacks to 512 MiB."""
    packer = zlib.compressobj(1)
    packed = b"".join(packer.compress(b" " * 64 * MiB) for _ in range(8)) + packer.flush()
    body = pdf([""])
    start = body.index(b"<< /Length")
    end = body.index(b"endstream")
    stream = b"<< /Length %d /Filter /FlateDecode >>\nstream\n%s\n" % (len(packed), packed)
    return body[:start] + stream + body[end:]


@pytest.mark.parametrize(
    ("make", "filename", "reason"),
    [
        (lambda: b"", "a.txt", "The file is empty"),
        (lambda: b" \n " * 100, "a.txt", "There is no text in it"),
        (lambda: os.urandom(100_000), "a.txt", "binary data|neither UTF-8"),
        (lambda: bomb("word/document.xml", 300 * MiB), "a.docx", "unpacks from"),
        (lambda: bomb("xl/workbook.xml", 300 * MiB), "a.xlsx", "unpacks from"),
        (lambda: docx(paragraph("text"))[:200], "a.docx", "damaged or cut short"),
        (lambda: pdf(["text"])[:300], "a.pdf", "cannot be parsed"),
        (lambda: pdf(["secret"], password="x"), "a.pdf", "encrypted"),
        (image_pdf, "a.pdf", "no text on its 3 page"),
        (lambda: b"\x89PNG\r\n", "a.txt", "PNG image"),
    ],
)
async def test_a_file_that_cannot_be_read_says_why_and_hurts_no_other(
    make_reader: MakeReader,
    write_file: WriteFile,
    chunk_settings: ChunkSettings,
    make: Callable[[], bytes],
    filename: str,
    reason: str,
) -> None:
    reader = make_reader()
    with pytest.raises(UnreadableDocumentError, match=reason):
        await reader.read(write_file(make()), filename, chunk_settings)
    before = children()
    chunks = await reader.read(write_file(b"A good file."), "good.txt", chunk_settings)
    assert [chunk.text for chunk in chunks] == ["A good file."]
    assert children() == before, "a refusal costs no process"


async def test_a_pdf_of_5000_pages_is_read(
    make_reader: MakeReader, write_file: WriteFile, chunk_settings: ChunkSettings
) -> None:
    data = pdf([f"Section {n}: Overview\nThis is page {n}." for n in range(1, 5001)])
    chunks = await make_reader().read(write_file(data), "long.pdf", chunk_settings)
    assert chunks[0].page == 1
    assert "page 5000." in chunks[-1].text
    assert len({chunk.page for chunk in chunks}) > 400


async def test_a_file_of_500_mb_is_refused_unread(
    make_reader: MakeReader, tmp_path: Path, chunk_settings: ChunkSettings
) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(500 * MiB)
    with pytest.raises(UnreadableDocumentError, match=r"524,288,000 bytes; files of up to 104,857"):
        await make_reader().read(path, "large.txt", chunk_settings)
    generous = ReadingLimits(max_bytes=2**30, timeout_s=60, memory_bytes=256 * MiB)
    with pytest.raises(UnreadableDocumentError, match="binary data"):
        await make_reader(generous).read(path, "large.txt", chunk_settings)


@pytest.mark.parametrize(
    ("make", "filename"),
    [
        (lambda: b"[" + b"[0]," * 2_000_000 + b"0]", "a.json"),
        (pdf_with_a_bomb, "a.pdf"),
    ],
)
async def test_a_file_that_needs_too_much_memory_fails_alone(
    make_reader: MakeReader,
    write_file: WriteFile,
    chunk_settings: ChunkSettings,
    make: Callable[[], bytes],
    filename: str,
) -> None:
    limits = ReadingLimits(max_bytes=100 * MiB, timeout_s=60, memory_bytes=96 * MiB)
    reader = make_reader(limits)
    with pytest.raises(UnreadableDocumentError, match="more than 100,663,296 bytes of memory"):
        await reader.read(write_file(make()), filename, chunk_settings)
    chunks = await reader.read(write_file(b"A good file."), "good.txt", chunk_settings)
    assert len(chunks) == 1


async def test_large_text_is_read_in_little_memory(
    make_reader: MakeReader, write_file: WriteFile
) -> None:
    limits = ReadingLimits(max_bytes=100 * MiB, timeout_s=60, memory_bytes=32 * MiB)
    data = b"A line of text that says little.\n" * (40 * MiB // 33)
    text = await make_reader(limits).read_text(write_file(data), "a.txt")
    assert len(text) == len(data)


async def test_a_file_that_takes_too_long_fails_alone(
    make_reader: MakeReader, write_file: WriteFile, chunk_settings: ChunkSettings
) -> None:
    limits = ReadingLimits(max_bytes=100 * MiB, timeout_s=0.2, memory_bytes=2048 * MiB)
    reader = make_reader(limits)
    slow = write_file(b"<html>" + b"<table><tr><td>a</td></tr></table>" * 1_000_000)
    with pytest.raises(UnreadableDocumentError, match=r"takes longer than 0\.2 s|processor time"):
        await reader.read(slow, "slow.html", chunk_settings)
    reader._limits = LIMITS  # of the next process: a busy machine is not what is slow here
    chunks = await reader.read(write_file(b"A good file."), "good.txt", chunk_settings)
    assert len(chunks) == 1


async def test_chunks_come_while_the_file_is_still_read(
    make_reader: MakeReader, write_file: WriteFile, chunk_settings: ChunkSettings
) -> None:
    reader = make_reader()
    path = write_file(b"A sentence of a file that is long. " * 1_000_000)
    pieces = reader.stream(path, "a.txt", chunk_settings)
    first = await anext(pieces)
    assert 0 < len(first) <= 64
    (child,) = children()
    await pieces.aclose()
    await reader.close()
    assert not psutil.pid_exists(child), "who stops reading ends the process"


async def test_a_process_is_free_before_its_last_chunks_are_worked_on(
    make_reader: MakeReader, write_file: WriteFile, chunk_settings: ChunkSettings
) -> None:
    reader = make_reader()
    async with aclosing(reader.stream(write_file(b"One."), "a.txt", chunk_settings)) as pieces:
        assert [chunk.text for chunk in await anext(pieces)] == ["One."]
        others = await reader.read(write_file(b"Two."), "b.txt", chunk_settings)
        assert [chunk.text for chunk in others] == ["Two."]


async def test_cancelling_ends_the_process(
    make_reader: MakeReader, write_file: WriteFile, chunk_settings: ChunkSettings
) -> None:
    reader = make_reader()
    await reader.read(write_file(b"Warm."), "a.txt", chunk_settings)
    (child,) = children()
    slow = write_file(b"A sentence of a file that is long. " * 2_000_000)
    reading = asyncio.create_task(reader.read(slow, "slow.txt", chunk_settings))
    before_s = psutil.Process(child).cpu_times().user
    await until(lambda: psutil.Process(child).cpu_times().user > before_s + 0.1)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    chunks = await reader.read(write_file(b"A good file."), "good.txt", chunk_settings)
    assert len(chunks) == 1
    assert child not in children()


async def test_more_files_than_processes_wait_their_turn(
    make_reader: MakeReader, write_file: WriteFile, chunk_settings: ChunkSettings
) -> None:
    reader = make_reader(num_processes=2)
    paths = [write_file(f"File {number}.".encode()) for number in range(12)]
    results = await asyncio.gather(*(reader.read(path, "a.txt", chunk_settings) for path in paths))
    assert [chunks[0].text for chunks in results] == [f"File {number}." for number in range(12)]
    assert len(children()) == 2


async def test_a_process_that_somebody_killed_is_replaced(
    make_reader: MakeReader, write_file: WriteFile, chunk_settings: ChunkSettings
) -> None:
    reader = make_reader()
    path = write_file(b"A good file.")
    await reader.read(path, "a.txt", chunk_settings)
    (child,) = children()
    psutil.Process(child).kill()
    assert len(await reader.read(path, "a.txt", chunk_settings)) == 1


async def test_two_tokenizers_are_kept_apart(
    make_reader: MakeReader,
    write_file: WriteFile,
    word_pieces: tokenizers.Tokenizer,
    byte_pairs: tokenizers.Tokenizer,
) -> None:
    reader = make_reader()
    text = "Größenwahnsinnige Übermäßigkeit. " * 50
    path = write_file(text.encode())
    for _ in range(2):
        for tokenizer in (word_pieces, byte_pairs):
            settings = ChunkSettings(tokenizer_json=tokenizer.to_str(), max_tokens=64)
            chunks = await reader.read(path, "a.txt", settings)
            sizes = [len(tokenizer.encode(c.text, add_special_tokens=False)) for c in chunks]
            assert 40 < max(sizes) <= 64


async def test_a_file_that_is_not_there_is_an_error_of_the_caller(
    make_reader: MakeReader, tmp_path: Path, chunk_settings: ChunkSettings
) -> None:
    with pytest.raises(FileNotFoundError):
        await make_reader().read(tmp_path / "missing", "a.txt", chunk_settings)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnreadableDocumentError, match="not a regular file"):
        await make_reader().read(tmp_path / "pipe", "a.txt", chunk_settings)

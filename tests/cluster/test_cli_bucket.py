"""The commands against the real S3 face; the embeddings API beside it is written down."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send
from typer.testing import CliRunner

from cluster import cli_bucket_embed
from cluster.cli_bucket import bucket_app
from cluster.cli_bucket_client import UnavailableError
from cluster.cli_error import CommandError
from tests.deployments.ingress.s3.face_server import KEY, FaceServer, serving_face

EMBEDDINGS = "/v2/ai/embeddings"


def status_of(filename: str, status: str, at: int = 1, reason: str | None = None) -> dict[str, Any]:
    return {
        "filename": filename,
        "status": status,
        "created_at": "2026-01-01T00:00:00Z",
        "updated_at": f"2026-01-01T00:00:{at:02}Z",
        "error_reason": reason,
    }


def task(status: str, num_done: int, num_files: int | None = 3, **more: Any) -> dict[str, Any]:
    progress = {"num_files": num_files, "num_done": num_done, "num_failed": 0, "message": ""}
    return {"task_id": "t-1", "status": status, "progress": progress, **more}


@dataclass
class ScriptedEmbeddings:
    """Answers a step at a time: each look at the task goes on to the next."""

    files: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    steps: list[tuple[dict[str, Any] | int, list[dict[str, Any]]]] = field(default_factory=list)
    hits: list[dict[str, Any]] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        body = await request.body()
        if body:
            self.bodies.append(json.loads(body))
        answer = self._answer(request.method, request.url.path.removeprefix(EMBEDDINGS))
        await answer(scope, receive, send)

    def _answer(self, method: str, path: str) -> Response:
        bucket = path.removeprefix("/buckets/")
        match method, path:
            case "POST", "":
                return JSONResponse({"data": task("queued", 0, None)})
            case "POST", "/similarity-search":
                return JSONResponse({"data": self.hits})
            case "GET", "/t-1":
                return self._next_step()
            case "GET", "/buckets":
                return JSONResponse({"data": {"buckets": list(self.files)}})
            case "GET", _ if bucket in self.files:
                return JSONResponse({"data": self.files[bucket]})
            case "DELETE", _ if bucket in self.files:
                self.deleted.append(bucket)
                return Response()
        error = {"code": "10005", "title": "x", "detail": "The bucket has no embeddings."}
        return JSONResponse({"errors": [error]}, status_code=404)

    def _next_step(self) -> Response:
        step, files = self.steps.pop(0)
        if isinstance(step, int):
            return JSONResponse({"errors": [{"detail": "Redis is away."}]}, status_code=step)
        self.files["docs"] = files
        return JSONResponse({"data": step})


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaceServer]:
    monkeypatch.setenv("SHOAL_API_KEY", KEY)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(cli_bucket_embed, "POLL_S", 0.001)
    with serving_face(tmp_path / "storage") as started:
        started.other_paths = ScriptedEmbeddings()
        yield started


@pytest.fixture
def embeddings(server: FaceServer) -> ScriptedEmbeddings:
    assert isinstance(server.other_paths, ScriptedEmbeddings)
    return server.other_paths


def run(server: FaceServer, *arguments: str, typed: str = "") -> Result:
    url = server.url.removesuffix("/v2/storage/s3")
    result = CliRunner().invoke(bucket_app, [*arguments, "--url", url], input=typed)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def lines_of(result: Result) -> list[str]:
    return [" ".join(line.split()) for line in result.stdout.splitlines()]


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """A folder with files to upload."""
    folder = tmp_path / "my docs"
    for name in ("a.md", "sub/b c.txt", "sub/deep/ü.md", ".git/config", ".hidden", "empty"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("" if name == "empty" else f"content of {name}")
    (folder / "broken link").symlink_to(folder / "nowhere")
    return folder


def test_files_go_into_a_bucket_and_are_listed(server: FaceServer, docs: Path) -> None:
    assert run(server, "create", "docs").stdout == "created docs\n"
    result = run(server, "put", "docs", str(docs), "-r")
    assert result.stdout == "put 4 files (62 bytes) into docs\n"
    assert "left out 2 hidden files" in result.stderr
    keys = ["a.md", "empty", "sub/b c.txt", "sub/deep/ü.md"]
    assert server.files() == sorted(f"default/docs/{key}" for key in keys)
    listed = lines_of(run(server, "ls", "docs"))
    assert listed[0] == "object size changed embedding"
    assert [line.split(" bytes")[0].rsplit(" ", 1)[0] for line in listed[1:]] == keys
    assert all(line.endswith(" -") for line in listed[1:])
    content = server.boto().get_object(Bucket="docs", Key="a.md")
    assert (content["Body"].read(), content["ContentType"]) == (b"content of a.md", "text/markdown")


def test_keys_are_names_below_the_folder_behind_the_prefix(server: FaceServer, docs: Path) -> None:
    run(server, "create", "docs")
    run(server, "put", "docs", str(docs / "a.md"), str(docs / "sub"), "-r", "--prefix", "x/")
    run(server, "put", "docs", str(docs), "-r", "--hidden", "--prefix", "y/")
    run(server, "put", "docs", str(docs / ".hidden"))
    assert server.files() == [
        "default/docs/.hidden",
        "default/docs/x/a.md",
        "default/docs/x/b c.txt",
        "default/docs/x/deep/ü.md",
        "default/docs/y/.git/config",
        "default/docs/y/.hidden",
        "default/docs/y/a.md",
        "default/docs/y/empty",
        "default/docs/y/sub/b c.txt",
        "default/docs/y/sub/deep/ü.md",
    ]


def test_what_cannot_be_put_is_said_before_anything_is(
    server: FaceServer, docs: Path, tmp_path: Path
) -> None:
    run(server, "create", "docs")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.md").write_text("x")
    (tmp_path / "nothing").mkdir()
    wrong = {
        "is a folder; -r puts everything": [str(docs)],
        "there is no such file": [str(docs / "missing")],
        "would both be a.md": ["-r", str(docs), str(tmp_path / "other")],
        "there is nothing to put": ["-r", str(tmp_path / "nothing")],
        "must not begin or end with '/'": ["--prefix", "/", str(docs / "a.md")],
    }
    for message, arguments in wrong.items():
        with pytest.raises(CommandError, match=message):
            run(server, "put", "docs", *arguments)
    assert server.files() == []


def test_a_file_that_fails_does_not_stop_the_others(server: FaceServer, docs: Path) -> None:
    run(server, "create", "docs")
    server.boto().put_object(Bucket="docs", Key="sub", Body=b"a file where a folder should be")
    with pytest.raises(CommandError) as caught:
        run(server, "put", "docs", str(docs), "-r")
    *reasons, summary = str(caught.value).splitlines()
    assert summary == "2 of 4 files failed"
    assert all("different names" in reason for reason in reasons)
    assert server.files() == ["default/docs/a.md", "default/docs/empty", "default/docs/sub"]


def test_a_missing_bucket_is_named_once(server: FaceServer, docs: Path) -> None:
    for arguments in (["put", "missing", str(docs), "-r"], ["ls", "missing"], ["rm", "missing"]):
        with pytest.raises(CommandError, match=r"^There is no bucket 'missing'\. \[HTTP 404\]$"):
            run(server, *arguments)


def test_buckets_are_listed_with_whether_they_are_embedded(
    server: FaceServer, embeddings: ScriptedEmbeddings
) -> None:
    assert "shoal bucket create NAME" in run(server, "ls").stderr
    for bucket in ("archive", "docs"):
        run(server, "create", bucket)
    embeddings.files["docs"] = []
    listed = lines_of(run(server, "ls"))
    assert [(line.split()[0], line.split()[-1]) for line in listed] == [
        ("bucket", "embedded"),
        ("archive", "no"),
        ("docs", "yes"),
    ]
    assert "docs is empty" in run(server, "ls", "docs").stderr


def test_objects_are_listed_with_what_became_of_their_embedding(
    server: FaceServer, embeddings: ScriptedEmbeddings, docs: Path
) -> None:
    run(server, "create", "docs")
    run(server, "put", "docs", str(docs / "a.md"), str(docs / "empty"))
    embeddings.files["docs"] = [
        status_of("a.md", "success"),
        status_of("empty", "failure", reason="it has no text\x1b[2J"),
    ]
    listed = lines_of(run(server, "ls", "docs"))
    assert listed[1].endswith(" success")
    assert listed[2].endswith(" failure: it has no text [2J")
    only = lines_of(run(server, "ls", "docs", "--prefix", "a"))
    assert [line.split()[0] for line in only[1:]] == ["a.md"]


def test_embedding_is_followed_file_by_file(
    server: FaceServer, embeddings: ScriptedEmbeddings
) -> None:
    before = [status_of("old.md", "success", 1)]
    embeddings.files["docs"] = before
    first = [*before, status_of("a.md", "success", 5), status_of("b.md", "processing", 5)]
    second = [*first[:2], status_of("b.md", "success", 7)]
    embeddings.steps = [
        (task("queued", 0, None), before),
        (task("processing", 1), first),
        (503, []),
        (task("processing", 2), first),
        (task("success", 3), second),
    ]
    result = run(server, "embed", "docs", "--chunk-size", "256", "--model", "tiny")
    assert result.stdout == "docs: 2 embedded, 1 unchanged\n"
    assert [line for line in result.stderr.splitlines() if line.startswith("ok")] == [
        "ok      a.md",
        "ok      b.md",
    ]
    assert embeddings.bodies == [
        {"bucket_name": "docs", "embedding_model": "tiny", "document_chunk_size": 256}
    ]


def test_files_that_failed_are_an_error_with_their_reasons(
    server: FaceServer, embeddings: ScriptedEmbeddings
) -> None:
    files = [
        status_of("a.md", "success"),
        status_of("broken.pdf", "failure", reason="not a PDF"),
        status_of("zip.docx", "failure", reason="it would unpack to 4 GB"),
    ]
    embeddings.steps = [(task("partial_success", 3), files)]
    with pytest.raises(CommandError) as caught:
        run(server, "embed", "docs")
    assert str(caught.value).splitlines() == [
        "broken.pdf: not a PDF",
        "zip.docx: it would unpack to 4 GB",
        "docs: 1 embedded, 2 failed",
    ]


def test_a_task_that_fails_says_why(server: FaceServer, embeddings: ScriptedEmbeddings) -> None:
    embeddings.steps = [(task("failure", 0, None, error_reason="the bucket is gone"), [])]
    with pytest.raises(CommandError, match=r"^docs: 0 embedded: the bucket is gone$"):
        run(server, "embed", "docs")


def test_a_cluster_that_stays_away_ends_the_watching(
    server: FaceServer, embeddings: ScriptedEmbeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_bucket_embed, "PATIENCE_S", 0.0)
    embeddings.steps = [(503, []), (503, [])]
    with pytest.raises(CommandError, match=r"Redis is away.*the task goes on"):
        run(server, "embed", "docs")


def test_who_does_not_wait_gets_the_task(server: FaceServer) -> None:
    assert run(server, "embed", "docs", "--no-wait").stdout == "t-1\n"


def test_hits_are_printed_with_source_and_certainty(
    server: FaceServer, embeddings: ScriptedEmbeddings
) -> None:
    metadata = {"certainty": 0.8765, "filename": "leave.md", "source": "http://x/docs/leave.md"}
    embeddings.hits = [{"document_chunk": "30 days\n\x07of " + "leave " * 99, "metadata": metadata}]
    result = run(server, "search", "docs", "How many days?", "-k", "5")
    name, source, text = lines_of(result)[:3]
    assert (name, source) == ("0.876 leave.md", "http://x/docs/leave.md")
    assert text.startswith("30 days of leave")
    assert text.endswith(" …")
    assert "\x07" not in result.stdout
    whole = run(server, "search", "docs", "How many days?", "--whole").stdout
    assert whole.count("leave ") >= 98
    as_json = run(server, "search", "docs", "How many days?", "--json").stdout
    assert json.loads(as_json) == embeddings.hits
    assert embeddings.bodies[0] == {
        "bucket_name": "docs",
        "query": "How many days?",
        "num_of_docs": 5,
    }
    embeddings.hits = []
    assert "nothing found" in run(server, "search", "docs", "x").stderr


def test_objects_folders_and_buckets_are_deleted_after_a_question(
    server: FaceServer, embeddings: ScriptedEmbeddings, docs: Path
) -> None:
    run(server, "create", "docs")
    run(server, "put", "docs", str(docs), "-r")
    embeddings.files["docs"] = []
    assert run(server, "rm", "docs/a.md", typed="n\n").exit_code == 1
    assert "default/docs/a.md" in server.files()
    asked = run(server, "rm", "docs/a.md", typed="y\n")
    assert "Delete docs/a.md?" in asked.stderr
    assert asked.stdout.endswith("deleted 1 object\n")
    assert run(server, "rm", "docs/sub/", "--yes").stdout == "deleted 2 objects\n"
    assert server.files() == ["default/docs/empty"]
    assert run(server, "rm", "docs", "-y").stdout == "deleted bucket docs\n"
    assert embeddings.deleted == ["docs"]
    assert server.boto().list_buckets()["Buckets"] == []
    run(server, "create", "docs")
    embeddings.files.clear()
    assert run(server, "rm", "docs", "--yes").exit_code == 0
    for wrong in ("docs/", "missing/"):
        with pytest.raises(CommandError, match="leave out the '/'"):
            run(server, "rm", wrong)


def test_what_is_not_there_is_not_deleted(server: FaceServer, docs: Path) -> None:
    run(server, "create", "docs")
    run(server, "put", "docs", str(docs), "-r")
    for missing in ("x/", "a.m", "a.md.txt", "sub"):
        with pytest.raises(CommandError, match=f"nothing called {missing} in docs"):
            run(server, "rm", f"docs/{missing}", "--yes")
    assert len(server.files()) == 4


def test_a_wrong_key_and_a_cluster_that_is_not_there_are_one_line_each(
    server: FaceServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = CliRunner().invoke(bucket_app, ["create", "docs", "--url", "http://127.0.0.1:9"])
    assert isinstance(result.exception, UnavailableError)
    assert str(result.exception).startswith("nothing answers at http://127.0.0.1:9;")
    monkeypatch.setenv("SHOAL_API_KEY", "shoal-wrong")
    with pytest.raises(CommandError) as caught:
        run(server, "create", "docs")
    assert str(caught.value) == (
        "The access key id is not one of the API keys. (the key comes from SHOAL_API_KEY, "
        "else from the api_key file in SHOAL_HOME) [HTTP 403]"
    )


def test_where_objects_are_at_an_endpoint_the_commands_say_so(
    server: FaceServer, embeddings: ScriptedEmbeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.cli_bucket_client.S3_FACE_PATH", "/v2/storage/none")
    embeddings.files["docs"] = [status_of("a.md", "success")]
    with pytest.raises(CommandError, match=r"at an S3 endpoint"):
        run(server, "create", "docs")
    buckets = run(server, "ls")
    assert lines_of(buckets)[1].split() == ["docs", "yes"]
    assert lines_of(run(server, "ls", "docs"))[1] == "a.md success"


def test_the_help_says_what_the_commands_are_for() -> None:
    help_text = CliRunner().invoke(bucket_app, ["--help"]).stdout
    for word in ("create", "put", "ls", "embed", "search", "rm", "Example:"):
        assert word in help_text

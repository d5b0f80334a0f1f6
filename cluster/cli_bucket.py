"""`shoal bucket`: put files into buckets, embed them, search them, from the terminal.

What goes over the wire is in `cli_bucket_client`, which files are meant in `cli_bucket_files`.
"""

import itertools
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from cluster.cli_bucket_client import (
    BucketClient,
    BucketError,
    NoFaceError,
    NoSuchThingError,
    RemoteFile,
    RemoteObject,
    UnavailableError,
)
from cluster.cli_bucket_embed import EmbedWatch
from cluster.cli_bucket_files import LocalFile, select_files
from cluster.cli_error import CommandError
from cluster.cli_report import show
from cluster.cli_target import api_url, deployed_or_found_config, read_api_key

NUM_UPLOADS_AT_ONCE = 4
SNIPPET_CHARS = 300
# What stands in files and their names must not move the cursor, ring or set the terminal's title.
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f]")

bucket_app = typer.Typer(
    help=(
        "Files for answers: put them into a bucket, embed it, search it. "
        "A chat request with the retrieval tool then answers from it."
    ),
    epilog=(
        "Example: shoal bucket create handbook; shoal bucket put handbook docs/ -r; "
        "shoal bucket embed handbook; shoal bucket search handbook 'How many days of leave?'"
    ),
    no_args_is_help=True,
)

BucketArgument = Annotated[str, typer.Argument(metavar="BUCKET", help="The bucket's name.")]
URLOption = Annotated[
    str | None, typer.Option("--url", help="Another cluster's API, like http://gpu-box:8000.")
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@bucket_app.command()
def create(bucket: BucketArgument, *, url: URLOption = None) -> None:
    """Make an empty bucket. Names have 3 to 63 of a-z, 0-9, '.' and '-'."""
    with _client(url) as client:
        client.create(bucket)
    typer.echo(f"created {bucket}")


@bucket_app.command()
def put(
    bucket: BucketArgument,
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="Files, and folders with -r.")
    ],
    *,
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="Folders, with everything in them.")
    ] = False,
    prefix: Annotated[
        str, typer.Option(metavar="TEXT", help="What each key begins with, like 'docs/'.")
    ] = "",
    hidden: Annotated[
        bool, typer.Option("--hidden", help="Also files and folders with a dot in front.")
    ] = False,
    url: URLOption = None,
) -> None:
    """Upload files. A file is called by its name, one from a folder by its path below that folder.

    Objects of the same name are replaced. A bucket that is embedded follows by itself.
    """
    selection = select_files(paths, prefix=prefix, is_recursive=recursive, with_hidden=hidden)
    files = selection.files
    with _client(url) as client:
        failures = _upload(client, bucket, files)
    if selection.num_hidden:
        _say(f"left out {selection.num_hidden} hidden files; --hidden takes them too")
    if failures:
        raise CommandError("\n".join([*failures, f"{len(failures)} of {len(files)} files failed"]))
    size = decimal(sum(file.num_bytes for file in files))
    typer.echo(f"put {_count(len(files), 'file')} ({size}) into {bucket}")


@bucket_app.command("ls")
def list_(
    bucket: Annotated[
        str | None, typer.Argument(metavar="[BUCKET]", help="Default: list the buckets.")
    ] = None,
    *,
    prefix: Annotated[str, typer.Option(help="Only objects whose keys begin so.")] = "",
    url: URLOption = None,
) -> None:
    """List the buckets, or a bucket's objects and what became of their embedding."""
    with _client(url) as client:
        if bucket is None:
            _show_buckets(client)
        else:
            _show_objects(client, bucket, prefix)


@bucket_app.command()
def embed(
    bucket: BucketArgument,
    *,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="An embedding model of the cluster; default: its own."),
    ] = None,
    chunk_size: Annotated[
        int | None, typer.Option(help="Tokens of a passage, at most.", min=1)
    ] = None,
    overlap: Annotated[
        int | None, typer.Option(help="Tokens that neighbours share; default: half.", min=0)
    ] = None,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Print the task's id and leave.")
    ] = False,
    url: URLOption = None,
) -> None:
    """Make a bucket searchable, and follow it file by file; exit status 1 when files failed.

    Files that are embedded already and have not changed are skipped. Ctrl-C stops the watching,
    not the embedding.
    """
    wanted = {
        "embedding_model": model,
        "document_chunk_size": chunk_size,
        "document_chunk_overlap_size": overlap,
    }
    body = {name: value for name, value in wanted.items() if value is not None}
    with _client(url) as client:
        watch = EmbedWatch(client, bucket)
        task_id = str(client.embed({"bucket_name": bucket, **body})["task_id"])
        if no_wait:
            typer.echo(task_id)
            return
        try:
            outcome = watch.follow(task_id, console=_errors(), say=_say_file)
        except KeyboardInterrupt:
            _say(f"\nstopped watching; it goes on: shoal bucket ls {bucket}")
            raise typer.Exit(130) from None
    if not outcome.is_success:
        reasons = [f"{_shown(file.filename)}: {file.error_reason}" for file in outcome.failed]
        raise CommandError("\n".join([*reasons, f"{bucket}: {outcome}"]))
    typer.echo(f"{bucket}: {outcome}")


@bucket_app.command()
def search(
    bucket: BucketArgument,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="What to look for.")],
    *,
    num_results: Annotated[
        int, typer.Option("-k", "--num-results", min=1, max=100, help="So many, at most.")
    ] = 3,
    whole: Annotated[bool, typer.Option("--whole", help="Passages in full.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For a program.")] = False,
    url: URLOption = None,
) -> None:
    """Print the passages of an embedded bucket that are nearest to a question, best first.

    The number before each is its certainty, from 0 to 1.
    """
    with _client(url) as client:
        hits = client.search(bucket, query, max_results=num_results)
    if as_json:
        typer.echo(orjson.dumps(hits, option=orjson.OPT_INDENT_2))
        return
    if not hits:
        _say(f"nothing found in {bucket}")
    for hit in hits:
        _show_hit(hit, whole=whole)


@bucket_app.command()
def rm(
    target: Annotated[
        str,
        typer.Argument(
            metavar="BUCKET[/KEY]", help="A bucket, an object, or (with a '/' at its end) a folder."
        ),
    ],
    *,
    yes: YesOption = False,
    url: URLOption = None,
) -> None:
    """Delete an object, all objects of a folder, or a bucket with its objects and its embeddings.

    Asks first.
    """
    bucket, slash, key = target.partition("/")
    is_bucket = not key
    if slash and is_bucket:
        raise CommandError(f"{target}: leave out the '/' to delete the bucket")
    with _client(url) as client:
        listed = (item.key for item in client.objects(bucket, prefix=key))
        if is_bucket or key.endswith("/"):
            keys = list(listed)
        else:
            keys = [first for first in itertools.islice(listed, 1) if first == key]
        if not keys and not is_bucket:
            raise CommandError(f"there is nothing called {_shown(key)} in {bucket}")
        if not yes:
            _confirm(bucket, keys, is_bucket=is_bucket)
        for name in keys:
            client.delete_object(bucket, name)
        if is_bucket:
            client.delete_bucket(bucket)
            _forget_embeddings(client, bucket)
    deleted = f"bucket {bucket}" if is_bucket else _count(len(keys), "object")
    typer.echo(f"deleted {deleted}")


def _client(url: str | None) -> BucketClient:
    address = (url or api_url(deployed_or_found_config())).rstrip("/")
    return BucketClient(address, api_key=read_api_key())


def _upload(client: BucketClient, bucket: str, files: Sequence[LocalFile]) -> list[str]:
    """Upload several at once; why those failed that did.

    Raises:
        BucketError: the bucket is not there, or the cluster does not answer.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    failures = []
    total = sum(file.num_bytes for file in files)
    with (
        Progress(*columns, console=_errors(), transient=True) as progress,
        ThreadPoolExecutor(NUM_UPLOADS_AT_ONCE) as uploads,
    ):
        bar = progress.add_task(f"0/{len(files)} files", total=total)
        advance = partial(progress.advance, bar)
        running = {
            uploads.submit(client.put, bucket, file.key, file.path, sent=advance): file
            for file in files
        }
        try:
            for num_done, done in enumerate(as_completed(running), start=1):
                try:
                    done.result()
                except (UnavailableError, NoSuchThingError, NoFaceError):
                    raise  # the others would fail for the same reason
                except (BucketError, OSError) as error:
                    failures.append(f"{_shown(str(running[done].path))}: {error}")
                progress.update(bar, description=f"{num_done}/{len(files)} files")
        finally:
            for upload in running:
                upload.cancel()
    return sorted(failures)


def _show_buckets(client: BucketClient) -> None:
    embedded = client.embedded_buckets()
    try:
        buckets = {bucket.name: bucket.created for bucket in client.buckets()}
    except NoFaceError:
        _say("objects are at an S3 endpoint; these buckets are embedded")
        buckets = dict.fromkeys(embedded, "")
    if not buckets:
        _say("there are no buckets; `shoal bucket create NAME` makes one")
        return
    table = Table("bucket", "changed", "embedded", box=None)
    for name, changed in sorted(buckets.items()):
        table.add_row(name, _moment(changed), "yes" if name in embedded else "no")
    show([table])


def _show_objects(client: BucketClient, bucket: str, prefix: str) -> None:
    files = {file.filename: file for file in _files_of(client, bucket)}
    objects: dict[str, RemoteObject] = {}
    try:
        objects = {item.key: item for item in client.objects(bucket, prefix=prefix)}
    except NoFaceError:
        if not files:
            raise
    names = {name for name in files if name.startswith(prefix)} | objects.keys()
    if not names:
        _say(f"{bucket} is empty; `shoal bucket put {bucket} PATH...` fills it")
        return
    table = Table("object", box=None)
    table.add_column("size", justify="right")
    for title in ("changed", "embedding"):
        table.add_column(title)
    for name in sorted(names):
        item = objects.get(name)
        size, changed = ("", "") if item is None else (decimal(item.num_bytes), item.modified)
        table.add_row(_shown(name), size, _moment(changed), _embedding(files.get(name)))
    show([table])


def _files_of(client: BucketClient, bucket: str) -> Iterable[RemoteFile]:
    try:
        return client.files(bucket)
    except NoSuchThingError:
        return ()


def _embedding(file: RemoteFile | None) -> str:
    if file is None:
        return "-"
    return f"{file.status}: {_shown(file.error_reason)}" if file.error_reason else file.status


def _forget_embeddings(client: BucketClient, bucket: str) -> None:
    # Last, because it ends the tasks that the deletions before have started.
    try:
        client.delete_embeddings(bucket)
    except NoSuchThingError:
        return  # never embedded


def _confirm(bucket: str, keys: Sequence[str], *, is_bucket: bool) -> None:
    what = f"{bucket}/{keys[0]}" if len(keys) == 1 else _count(len(keys), "object")
    if is_bucket:
        what = f"the bucket {bucket}, its {_count(len(keys), 'object')} and its embeddings"
    typer.confirm(f"Delete {_shown(what)}?", abort=True, err=True)


def _show_hit(hit: dict[str, Any], *, whole: bool) -> None:
    metadata = hit["metadata"]
    text = " ".join(_shown(hit["document_chunk"]).split())
    if not whole and len(text) > SNIPPET_CHARS:
        text = text[:SNIPPET_CHARS].rsplit(" ", 1)[0] + " …"
    console = Console(highlight=False, markup=False)
    source = _shown(metadata["source"])
    console.print(f"{metadata['certainty']:.3f}  {_shown(metadata['filename'])}", style="bold")
    console.print(f"       {source}", style="dim", soft_wrap=True)
    console.print(f"       {text}\n", soft_wrap=True)


def _say_file(file: RemoteFile) -> None:
    is_good = file.status == "success"
    _say(f"{'ok    ' if is_good else 'failed'}  {_shown(file.filename)}")


def _moment(iso: str) -> str:
    return iso[:19].replace("T", " ")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _shown(text: str) -> str:
    return _CONTROL_CHARACTERS.sub(" ", text)


def _errors() -> Console:
    return Console(stderr=True, highlight=False)


def _say(text: str) -> None:
    """Progress and notes, beside the results on standard output."""
    typer.echo(text, err=True)

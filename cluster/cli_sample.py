"""The sample bucket: a small handbook that ships with Shoal, put in and embedded once."""

from pathlib import Path

from rich.console import Console

from cluster.cli_bucket_client import BucketClient, RemoteFile
from cluster.cli_bucket_embed import EmbedWatch
from cluster.cli_error import CommandError

SAMPLE_BUCKET = "handbook"
SAMPLE_QUESTION = "Who leads the legal team?"
_FOLDER = Path(__file__).with_name("sample_bucket")


def ensure_sample_bucket(client: BucketClient, *, console: Console) -> bool:
    """Have the sample bucket embedded; False: it was already.

    Objects of an existing bucket of this name are left as they are, whosever they are.

    Raises:
        CommandError: it cannot be embedded.
    """
    if SAMPLE_BUCKET in client.embedded_buckets():
        return False
    if SAMPLE_BUCKET not in {bucket.name for bucket in client.buckets()}:
        client.create(SAMPLE_BUCKET)
        for path in sorted(_FOLDER.iterdir()):
            client.put(SAMPLE_BUCKET, path.name, path, sent=_ignore)
    watch = EmbedWatch(client, SAMPLE_BUCKET)
    task_id = str(client.embed({"bucket_name": SAMPLE_BUCKET})["task_id"])
    outcome = watch.follow(task_id, console=console, say=_ignore_file)
    if not outcome.is_success:
        reasons = "; ".join(f"{file.filename}: {file.error_reason}" for file in outcome.failed)
        raise CommandError(f"the sample bucket was not embedded: {outcome} {reasons}".rstrip())
    return True


def _ignore(_: int) -> None:
    return


def _ignore_file(_: RemoteFile) -> None:
    return

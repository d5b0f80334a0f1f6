"""`shoal cluster`: files for `ray up` and KubeRay, checked before anything is started.

`deployments.cluster_files` knows Ray's schema, so it is imported by name and only when one of these
commands runs.
"""

import importlib
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.cli_error import CommandError
from cluster.cli_report import show

cluster_app = typer.Typer(
    help="Check a cluster file for `ray up`, or a KubeRay manifest, and make its keys.",
    no_args_is_help=True,
)
FileArgument = Annotated[
    Path, typer.Argument(metavar="FILE", help="Like ray_config/hosts/cluster.yaml.")
]


@cluster_app.command("check")
def check(file: FileArgument) -> None:
    """Say what is wrong with a cluster file and the shoal.yaml that it serves. Nothing is started.

    Ray's own schema, and what that leaves out: keys of the provider, machines and their GPUs
    against the models, whether everything finds a place, the start commands, what is open to whom.
    """
    checked = _module("check").check_cluster_file(file)
    if checked.problems:
        raise CommandError("\n".join(f"{file}: {problem}" for problem in checked.problems))
    show([f"OK {file}", *checked.facts, *(f"note: {note}" for note in checked.notes)])


@cluster_app.command("keys")
def keys(file: FileArgument) -> None:
    """Make the secrets that a cluster file mounts and that are not there yet."""
    documents = _module("check").read_documents(file)
    made = _module("keys").make_keys(documents[0])
    show([f"made {path}" for path in made] or ["nothing to make: all of them are there"])


def _module(name: str) -> Any:
    return importlib.import_module(f"deployments.cluster_files.{name}")

"""Which files a `shoal bucket put` means, and which keys they get."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.cli_error import CommandError
from cluster.storage.names import key_problem


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalFile:
    """A file to upload, and what it will be called."""

    path: Path
    key: str
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """`num_hidden` files were left out because their names, or a folder's, begin with a dot."""

    files: list[LocalFile]
    num_hidden: int


def select_files(
    paths: Sequence[Path], *, prefix: str, is_recursive: bool, with_hidden: bool
) -> Selection:
    """A file's key is its name; in a folder, its path below that folder. `prefix` comes before.

    Raises:
        CommandError: nothing to upload, a folder without -r, or keys that cannot be.
    """
    found: dict[str, LocalFile] = {}
    num_hidden = 0
    for path in paths:
        for file, name, is_hidden in _files(path, is_recursive=is_recursive):
            if is_hidden and not with_hidden:
                num_hidden += 1
                continue
            key = prefix + name
            _check(key, file)
            if key in found:
                raise CommandError(f"{found[key].path} and {file} would both be {key}")
            found[key] = LocalFile(path=file, key=key, num_bytes=file.stat().st_size)
    if not found:
        hidden = f" ({num_hidden} hidden; --hidden takes them too)" if num_hidden else ""
        raise CommandError(f"there is nothing to put{hidden}")
    return Selection(files=list(found.values()), num_hidden=num_hidden)


def _files(path: Path, *, is_recursive: bool) -> Iterator[tuple[Path, str, bool]]:
    """(file, name in the bucket, is it hidden) of one argument. A file that is named is wanted."""
    if path.is_file():
        yield path, path.name, False
    elif not path.is_dir():
        raise CommandError(f"{path}: there is no such file")
    elif not is_recursive:
        raise CommandError(f"{path} is a folder; -r puts everything in it")
    else:
        for folder, folders, names in os.walk(path, onerror=_unreadable):
            folders.sort()
            for name in sorted(names):
                file = Path(folder, name)
                below = file.relative_to(path)
                if file.is_file():  # not a socket, not a link to nothing
                    yield file, below.as_posix(), any(part[0] == "." for part in below.parts)


def _unreadable(error: OSError) -> None:
    raise CommandError(f"{error.filename}: {error.strerror}") from error


def _check(key: str, path: Path) -> None:
    problem = key_problem(key)
    if problem is not None:
        raise CommandError(f"{path}: the key {problem}; it would be {key[:100]!r}")

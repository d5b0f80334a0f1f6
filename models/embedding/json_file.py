"""A JSON object from a checkpoint's file, read with checks that name the file and the key."""

import json
from pathlib import Path
from typing import Self

from models.checkpoint import CheckpointError, read_json


class JSONFile:
    """The file's object; {} for an optional file that is not there."""

    def __init__(self, path: Path, values: dict[str, object]) -> None:
        self.path = path
        self.values = values

    @classmethod
    def read(cls, path: Path, *, is_optional: bool = False) -> Self:
        """
        Raises:
            CheckpointError: the file is missing, unreadable, or holds no JSON object.
        """
        if is_optional and not path.exists():
            return cls(path, {})
        values = read_json(path)
        if not isinstance(values, dict):
            raise CheckpointError(f"{path}: must hold an object, not {json.dumps(values)[:80]}")
        return cls(path, values)

    def error(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {problem}")

    def wrong(self, key: str, expected: str) -> CheckpointError:
        given = json.dumps(self.values[key])[:80] if key in self.values else "missing"
        return self.error(f"{key} must be {expected}, not {given}")

    def boolean(self, key: str, default: bool) -> bool:
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def text(self, key: str) -> str | None:
        """None where the key is missing or null."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, str):
            raise self.wrong(key, "a text or null")
        return value

    def positive_int(self, key: str) -> int | None:
        """None where the key is missing or null."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise self.wrong(key, "a positive integer")
        return value

    def mapping(self, key: str) -> dict[str, object]:
        """{} where the key is missing or null."""
        value = self.values.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.wrong(key, "an object")
        return value

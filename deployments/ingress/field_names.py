"""The fields of a chat request under the names that another endpoint has for them.

`/responses` and `/messages` are translated into chat requests; what is then found wrong must be
said in the words of the client.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from cluster.errors import ServingError, ValidationError

FieldPath = tuple[str | int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldNames:
    """`renamed`: paths in the chat request to the endpoint's; `messages`: where each came from;
    `of_functions`: the same for the fields of functions, which lie flat in their tool here."""

    renamed: Mapping[FieldPath, FieldPath]
    messages: Sequence[FieldPath] = ()
    of_functions: Mapping[str, str] = field(default_factory=dict)

    def of(self, path: FieldPath) -> FieldPath:
        """The endpoint's name for a field of the chat request."""
        match path:
            case ("messages", int(position), *rest) if position < len(self.messages):
                return (*self.messages[position], *rest)
            case ("tools", int(position), "function", str(name), *rest):
                return ("tools", position, self.of_functions.get(name, name), *rest)
        for length in range(len(path), 0, -1):
            if path[:length] in self.renamed:
                return (*self.renamed[path[:length]], *path[length:])
        return path

    @contextmanager
    def in_errors(self) -> Iterator[None]:
        """Errors raised inside name the endpoint's fields."""
        try:
            yield
        except ValidationError as error:
            problems = [replace(problem, loc=self.of(problem.loc)) for problem in error.problems]
            raise ValidationError(problems) from error
        except ServingError as error:
            if error.param is None:
                raise
            renamed = copy.copy(error)
            renamed.param = ".".join(map(str, self.of(_path(error.param))))
            raise renamed from error


def _path(dotted: str) -> FieldPath:
    return tuple(int(part) if part.isdigit() else part for part in dotted.split("."))

"""What the check of a cluster file has found."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """One line each; a problem begins with its place in the file."""

    problems: list[str] = field(default_factory=list)  # it would not come up, or not be safe
    notes: list[str] = field(default_factory=list)  # it would, with a limit worth knowing
    facts: list[str] = field(default_factory=list)  # what the file comes to

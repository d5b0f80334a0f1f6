"""A start-up that failed for a reason a person can act on, kept readable on its way through Serve.

Serve hands a constructor's error on as the text of a traceback; the marks find the message in it.
"""

import re

_BEGIN, _END = "[[shoal:", ":shoal]]"
_MARKED = re.compile(re.escape(_BEGIN) + r"(.*?)" + re.escape(_END), re.DOTALL)


class StartupError(Exception):
    """One readable message, between marks."""

    def __init__(self, message: str) -> None:
        super().__init__(f"{_BEGIN}{message}{_END}")
        self.message = message


def find_startup_message(text: str) -> str | None:
    """The message of the last `StartupError` in a traceback; None where there is none."""
    found = _MARKED.findall(text)
    return found[-1] if found else None

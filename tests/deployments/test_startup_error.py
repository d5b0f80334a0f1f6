"""A start-up message stays readable through whatever Serve wraps around it."""

import traceback

from deployments.startup_error import StartupError, find_startup_message


def traceback_of(message: str) -> str:
    try:
        try:
            raise ValueError("what was wrong")
        except ValueError as error:
            raise StartupError(message) from error
    except StartupError:
        return traceback.format_exc()


def test_the_message_is_found_in_a_traceback() -> None:
    message = "m: /models/x: 8 blocks of 16 tokens cannot hold\none sequence"
    text = f"The deployment failed to start 1 times in a row.\n{traceback_of(message)}\nmore"
    assert find_startup_message(text) == message


def test_a_text_without_one_has_none() -> None:
    assert find_startup_message("RuntimeError: something else") is None

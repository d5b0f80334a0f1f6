"""What a command says when it cannot do what it was asked."""


class CommandError(Exception):
    """Ends a command with exit status 1; the message is meant for a person."""

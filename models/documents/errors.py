"""The one way in which reading a file fails: a reason for whoever uploaded it."""


class UnreadableDocumentError(ValueError):
    """A file that cannot be read, or has nothing to read; the message says why, in a sentence."""

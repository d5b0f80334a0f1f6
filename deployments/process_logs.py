"""Where the lines of our loggers go in processes that Ray starts."""

import logging

_PACKAGES = ("cluster", "models", "deployments", "uvicorn")


def write_to_serve_log(level: str) -> None:
    """Call it in a deployment's constructor: from then on our lines stand in its log file."""
    _write_to(logging.getLogger("ray.serve").handlers, level)


def write_to_stderr(level: str) -> None:
    """For a process that is no replica: Ray keeps its standard error in a file."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    _write_to([handler], level)


def _write_to(handlers: list[logging.Handler], level: str) -> None:
    for package in _PACKAGES:
        package_logger = logging.getLogger(package)
        package_logger.setLevel(level)
        package_logger.handlers = list(handlers)
        package_logger.propagate = False

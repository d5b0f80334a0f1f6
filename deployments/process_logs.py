"""Lets the lines of our loggers reach the log file that Serve keeps for the process."""

import logging

_PACKAGES = ("cluster", "models", "deployments", "uvicorn")


def write_to_serve_log(level: str) -> None:
    """Call it in a deployment's constructor: from then on our lines stand in its log file."""
    handlers = logging.getLogger("ray.serve").handlers
    for package in _PACKAGES:
        package_logger = logging.getLogger(package)
        package_logger.setLevel(level)
        package_logger.handlers = list(handlers)
        package_logger.propagate = False

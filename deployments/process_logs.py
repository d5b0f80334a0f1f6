"""Where the lines of our loggers go in processes that Ray starts."""

import logging
from logging.handlers import MemoryHandler, WatchedFileHandler
from pathlib import Path

from ray import serve

from cluster.audit import AUDIT_LOGGER
from cluster.config import LogSettings, shoal_home
from cluster.log_lines import LineFormatter

_PACKAGES = ("cluster", "models", "deployments", "uvicorn")
_SERVE_LOGGER = "ray.serve"


def write_to_serve_log(settings: LogSettings) -> None:
    """Call it in a deployment's constructor: from then on our lines stand in its log file, and what
    Serve itself writes there has the same form."""
    replica = serve.get_replica_context().replica_id
    formatter = _formatter(
        settings, component=replica.deployment_id.name, replica=replica.unique_id
    )
    handlers = logging.getLogger(_SERVE_LOGGER).handlers
    for handler in handlers:
        # Serve collects lines in memory; the file behind it writes them down.
        writer = handler.target if isinstance(handler, MemoryHandler) else handler
        if writer is not None:
            writer.setFormatter(formatter)
    _write_to(handlers, settings.level)
    write_audit_log(shoal_home() / "logs")


def write_to_stderr(settings: LogSettings, *, component: str) -> None:
    """For a process that is no replica: Ray keeps its standard error in a file."""
    handler = logging.StreamHandler()
    handler.setFormatter(_formatter(settings, component=component))
    _write_to([handler], settings.level)


def write_audit_log(folder: Path) -> None:
    """Administrative acts go to `audit.log` there, in every process of this machine: a line at a
    time, always JSON, whatever the level of the other logs."""
    folder.mkdir(parents=True, exist_ok=True)
    handler = WatchedFileHandler(folder / "audit.log", encoding="utf-8")
    handler.setFormatter(LineFormatter(json=True))
    audit = logging.getLogger(AUDIT_LOGGER)
    audit.setLevel(logging.INFO)
    audit.handlers = [handler]
    audit.propagate = False


def _formatter(settings: LogSettings, *, component: str, replica: str = "") -> LineFormatter:
    return LineFormatter(json=settings.format == "json", component=component, replica=replica)


def _write_to(handlers: list[logging.Handler], level: str) -> None:
    for package in _PACKAGES:
        package_logger = logging.getLogger(package)
        package_logger.setLevel(level)
        package_logger.handlers = list(handlers)
        package_logger.propagate = False

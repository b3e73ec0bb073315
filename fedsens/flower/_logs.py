"""Logs for an operator: text among Flower's own lines, or one JSON object per line."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime

from flwr.app import Error

from fedsens.config import LOG_FORMAT
from fedsens.errors import ConfigurationError

FORMATS = ("text", "json")
LONGEST = 2000  # characters of a client's reason that are shown
FIGURES = "figures"  # key of a record's extra: what a line says, as numbers

MISSING_QUERY = "No query function registered with name 'fedsens_"  # as Flower says it
REMEDIES = {
    1: "see the traceback in its log: its app does not start",
    3: "it could not fetch the message before the deadline: raise that, or see its log",
    4: "its answer came after the deadline: raise that, or see its log",
    5: "see that its SuperNode runs and reaches the SuperLink",
    7: "see its log: it could not read the app",
    8: "its process ended: see its SuperExec's log, and whether its machine is out of memory",
}


def log_through_flower(log_format: str | None = None) -> None:
    """Show fedsens's log lines; an app calls this once, the library never does.

    Args:
        log_format: ``text`` puts them among Flower's, ``json`` writes each as a JSON object to
            standard error. None takes ``FEDSENS_LOG_FORMAT`` from the environment, else ``text``.

    Raises:
        ConfigurationError: the format is neither.
    """
    chosen = log_format or os.environ.get(LOG_FORMAT) or "text"
    if chosen not in FORMATS:
        raise ConfigurationError(
            f"expected a log format among {', '.join(FORMATS)}, got {chosen!r}; correct "
            f"fedsens.log-format or {LOG_FORMAT}"
        )
    logger = logging.getLogger("fedsens")
    logger.setLevel(logging.INFO)
    logger.parent = logging.getLogger("flwr")
    logger.propagate = chosen == "text"
    for handler in [h for h in logger.handlers if isinstance(h.formatter, JsonLines)]:
        logger.removeHandler(handler)
    if chosen == "json":
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(JsonLines())
        logger.addHandler(handler)


def tell(logger: logging.Logger, text: str, *values: object, **figures: object) -> None:
    """Log what every user of a run is to see.

    It goes to a logger of fedsens where somebody has chosen to see its information, and else
    among Flower's own lines.
    """
    chosen = logger if logger.isEnabledFor(logging.INFO) else logging.getLogger("flwr")
    chosen.info(text, *values, extra={FIGURES: figures} if figures else None)


class JsonLines(logging.Formatter):
    """A log record as one line of JSON: time (UTC), level, logger, message and figures."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record; its ``extra`` of ``figures`` is added as it is."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        figures = getattr(record, FIGURES, None)
        if isinstance(figures, Mapping):
            line |= figures
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def reason_of(error: Error) -> str:
    """One sentence on why a node has no answer; a client's own refusal says what to do."""
    remedy, text = REMEDIES.get(error.code), (error.reason or "no reason given")[:LONGEST]
    if MISSING_QUERY in text:
        return "its app has no install(app, ...) of fedsens.flower: call it where the app is made"
    # It is the client's text, and must not be able to forge lines of the server's log.
    reason = "".join(each if each.isprintable() else " " for each in text)
    return f"{reason}; {remedy}" if remedy else reason

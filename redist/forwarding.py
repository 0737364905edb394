"""Log records of processes that run tasks, handled again by the loggers of a client."""

from __future__ import annotations

import logging
from typing import Any

from redist.callbacks import Callbacks
from redist.plugins import WorkerPlugin

__all__ = ["ForwardLogging", "handle", "names_for"]

_PLAIN = (str, int, float, bytes, bool, type(None))


def names_for(logger_name: str | None) -> tuple[str, str]:
    """Return the names of the plugin and of the topic of a logger."""
    plugin = f"forward-logging-{logger_name or '<root>'}"
    return plugin, f"forwarded-log-record-{plugin}"


def handle(event: tuple[float, dict[str, Any]]) -> None:
    """Handle a record by the logger of its name."""
    record = logging.makeLogRecord(event[1])
    logging.getLogger(record.name).handle(record)


class ForwardLogging(WorkerPlugin):
    """Logs the records of a logger, and of those below it, as events.

    Parameters
    ----------
    logger_name : str or None
        Which; None for all.
    level : int or str
        The least level.
    topic : str
        Where to.
    """

    def __init__(self, logger_name: str | None, level: int | str, topic: str) -> None:
        self._logger_name = logger_name
        self._level = level
        self._topic = topic
        self._handler: _Handler | None = None

    def setup(self, worker: Any) -> None:
        """Begin."""
        self._handler = _Handler(worker, self._topic, self._level)
        logging.getLogger(self._logger_name).addHandler(self._handler)

    def teardown(self, worker: Any) -> None:
        """End."""
        if self._handler is not None:
            logging.getLogger(self._logger_name).removeHandler(self._handler)
            self._handler.close()


class _Handler(logging.Handler):
    def __init__(self, worker: Any, topic: str, level: int | str) -> None:
        super().__init__(level)
        self._worker = worker
        self._topic = topic
        # A record may be made anywhere, in a `__del__` under the session's lock too: another thread sends it.
        self._sending = Callbacks("redist-logging")
        self._sending.put(lambda: None)

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.partition(".")[0] == "redist":  # what sending logs would be sent again, and again
            return
        attributes = self._plain(record)
        self._sending.put(lambda: self._worker.log_event(self._topic, attributes))

    def _plain(self, record: logging.LogRecord) -> dict[str, Any]:
        if record.exc_info and not record.exc_text:
            self.format(record)
        attributes = {
            name: value if type(value) in _PLAIN else str(value)
            for name, value in vars(record).items()
            if name not in ("args", "exc_info", "message")
        }
        return {
            **attributes, "msg": record.getMessage(), "args": None, "exc_info": None, "worker": self._worker.address,
        }  # fmt: skip

    def close(self) -> None:
        self._sending.close()
        super().close()

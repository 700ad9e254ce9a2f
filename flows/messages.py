"""What a command prints: our own lines; of the libraries, errors alone."""

from __future__ import annotations

import logging
import os


class _Printed(logging.Handler):
    """Prints to what is standard output at the time, which may be another than at first (see `json_apart`)."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), flush=True)


_HANDLER = _Printed()
_HANDLER.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S"))


def quiet_models(debug: bool) -> None:
    """Of the libraries that run models, errors alone, or with --debug everything; before they are imported."""
    if debug:
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")


def quiet_libraries(debug: bool) -> None:
    """Our own log lines on standard output; of the libraries, errors alone, or with --debug everything."""
    quiet_models(debug)
    os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "flows,datagen,shards")  # so that the UI shows our lines too
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "DEBUG" if debug else "CRITICAL")
    import prefect.main  # noqa: F401  (sets up logging once; our handler is added to what it sets)

    for name in ("flows", "datagen", "shards"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.addHandler(_HANDLER)  # once, though a repair runs several flows in one process

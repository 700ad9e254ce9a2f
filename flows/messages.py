"""What a command prints and Prefect's UI shows: our own lines; of the libraries, errors alone."""

from __future__ import annotations

import logging
import os


class _Printed(logging.Handler):
    """Prints to what is standard output at the time, which may be another than at first (see `json_apart`)."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), flush=True)


_HANDLER = _Printed()
_HANDLER.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S"))

OURS = ("flows", "datagen")
# Errors of these types say in their own words what is wrong; others are faults of the code, told by their traceback.
TOLD = (OSError, RuntimeError, ValueError)


class _OneLine(logging.Filter):
    """Has Prefect tell an error in its own words, once, without a traceback unless PREFECT_LOGGING_LEVEL is DEBUG."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, TOLD) or logging.getLogger(record.name).isEnabledFor(logging.DEBUG):
            return True
        first = not vars(error).setdefault("told_by_prefect", False)
        vars(error)["told_by_prefect"] = True
        record.msg, record.args, record.exc_info = " ".join(str(error).split()) or repr(error), (), None
        return first  # a task tells it, then its flow, then the engine


def speak_in_prefect() -> None:
    """Have Prefect show our loggers' lines, and the errors that end its runs as one line; done by importing `flows`."""
    for name in OURS:  # Prefect takes them on (PREFECT_LOGGING_EXTRA_LOGGERS), but leaves their level at the root's
        logging.getLogger(name).setLevel(logging.INFO)
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_OneLine())


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
    os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "flows,datagen")  # so that the UI shows our lines too
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "DEBUG" if debug else "CRITICAL")
    import prefect.main  # noqa: F401  (sets up logging once; our handler is added to what it sets)

    for name in OURS:
        logging.getLogger(name).addHandler(_HANDLER)  # once, though a repair runs several flows in one process

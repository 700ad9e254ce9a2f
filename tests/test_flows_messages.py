"""What Prefect's log, and so its UI, says of an error that ends a run."""

import logging

import pytest

import flows.messages  # noqa: F401  (importing flows is what has Prefect speak so)

RUN, ADVICE = "prefect.flow_runs", "runs/x: the dataset is not finished:\nrun build-dataset for it first"


def end_with(error: Exception) -> None:
    """As Prefect's engine tells an error: from its task, then from the flow, then once more."""
    try:
        raise error
    except Exception:
        for logger in ("prefect.task_runs", RUN, RUN):
            logging.getLogger(logger).exception("Encountered exception during execution: %r", error)


def test_an_error_in_our_own_words_is_one_line_once(caplog: pytest.LogCaptureFixture) -> None:
    end_with(FileNotFoundError(ADVICE))
    assert [(record.name, record.getMessage(), record.exc_info) for record in caplog.records] == [
        ("prefect.task_runs", ADVICE.replace("\n", " "), None)
    ]


def test_a_fault_of_the_code_keeps_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    end_with(KeyError("captions"))
    assert len(caplog.records) == 3 and all(record.exc_info for record in caplog.records)


def test_debugging_shows_every_traceback(caplog: pytest.LogCaptureFixture) -> None:
    for name in ("prefect.task_runs", RUN):
        caplog.set_level(logging.DEBUG, logger=name)
    end_with(ValueError(ADVICE))
    assert len(caplog.records) == 3 and all(record.exc_info for record in caplog.records)

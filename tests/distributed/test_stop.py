"""The stop flag: signals of the main thread, with the program's own handlers restored."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from twoviews.distributed.stop import SIGNALS, StopFlag


def test_a_signal_sets_the_flag_and_the_programs_own_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopFlag() as stop:
        assert stop.signal is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == signal.SIGTERM
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_second_interrupt_is_an_exception_and_not_the_end_of_the_process() -> None:
    with StopFlag():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_another_thread_trains_without_signal_handlers() -> None:
    found: list[object] = []

    def use() -> None:
        with StopFlag() as stop:
            found.extend([stop.signal, signal.getsignal(signal.SIGTERM)])

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert found == [None, signal.getsignal(signal.SIGTERM)]


def test_a_handler_that_python_cannot_restore_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    real = signal.getsignal
    monkeypatch.setattr(signal, "getsignal", lambda number: None if number == signal.SIGUSR1 else real(number))
    with StopFlag() as stop:
        assert signal.SIGUSR1 not in stop._before
        assert signal.SIGTERM in stop._before

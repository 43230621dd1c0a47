"""Ctrl-C waits for the end of a step."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dreamjax.training.interrupt import SIGNALS, Interrupt, Stopped, stoppable


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_waits_for_the_check_and_the_handlers_come_back(number, capsys):
    before = [signal.getsignal(n) for n in SIGNALS]
    reached = []
    with pytest.raises(Stopped) as caught, Interrupt() as interrupt:
        interrupt.check()
        os.kill(os.getpid(), number)
        reached.append("the end of the step")
        interrupt.check()
        reached.append("another step")
    assert reached == ["the end of the step"] and caught.value.args == (number,)
    assert "stopping after this step" in capsys.readouterr().err
    assert [signal.getsignal(n) for n in SIGNALS] == before


@pytest.mark.parametrize("number", SIGNALS)
def test_where_there_is_nothing_to_save_a_signal_stops_at_once(number):
    before = [signal.getsignal(n) for n in SIGNALS]
    with pytest.raises(Stopped) as caught, stoppable():
        os.kill(os.getpid(), number)
        raise AssertionError("it went on")
    assert caught.value.args == (number,)
    assert [signal.getsignal(n) for n in SIGNALS] == before


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable(), Interrupt() as interrupt:
            os.kill(os.getpid(), signal.SIGHUP)
            interrupt.check()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_second_kills():
    code = (
        "import os, signal; from dreamjax.training.interrupt import Interrupt\n"
        "with Interrupt():\n"
        "    os.kill(os.getpid(), signal.SIGINT); print('one', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT); print('two', flush=True)"
    )
    env = dict(os.environ, PYTHONPATH=str(Path(__file__).resolve().parents[2]))
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout == "one\n" and done.returncode == -signal.SIGINT

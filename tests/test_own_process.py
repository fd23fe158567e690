"""Jobs in a process of their own: what they return, what they raise, and how they end."""

import os
import signal
import subprocess
import sys

import pytest
from helpers import ROOT

from support.cli import UserError
from support.own_process import in_own_process

PARENT = """
import sys, time
from support.own_process import in_own_process

def job():
    import os
    print(os.getpid(), flush=True)
    time.sleep(60)

in_own_process(job)
"""


def test_the_job_runs_elsewhere_and_its_result_comes_back():
    assert in_own_process(os.getpid) != os.getpid()
    assert in_own_process(divmod, 7, 3, start_method="spawn") == (2, 1)


def test_what_the_job_raises_is_raised_here():
    with pytest.raises(ZeroDivisionError):
        in_own_process(divmod, 7, 0)


def test_a_job_that_is_killed_is_one_line():
    with pytest.raises(UserError, match="killed, perhaps for want of memory"):
        in_own_process(signal.raise_signal, signal.SIGKILL)


def test_the_job_ends_with_a_parent_that_is_killed():
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, env=env)
    pid = int(parent.stdout.readline())
    parent.kill()
    try:
        parent.communicate(timeout=20)  # until nobody holds its output, which the job has, too
    except subprocess.TimeoutExpired:
        os.kill(pid, signal.SIGKILL)
        pytest.fail("the job outlived its parent")

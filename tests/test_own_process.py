"""Jobs in a process of their own: what they return, what they raise, and how they end."""

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from helpers import ROOT

from support.cli import UserError
from support.own_process import function_in_own_process, in_own_process, own_processes

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


def count_calls() -> Callable[[], None]:
    """A function that prints its process and its number of calls to the file that the environment names."""
    calls = itertools.count(1)

    def function():
        with open(os.environ["CALLS"], "a") as file:
            print(os.getpid(), next(calls), file=file)

    return function


def test_a_function_in_its_own_process_keeps_its_state_between_calls(tmp_path, monkeypatch):
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    with function_in_own_process(count_calls) as first, function_in_own_process(count_calls) as second:
        first()
        first()
        second()
    (first_pid, first_call), (again, second_call), (other_pid, third_call) = map(
        str.split, (tmp_path / "calls").read_text().splitlines()
    )
    assert first_pid == again and len({first_pid, other_pid, str(os.getpid())}) == 3
    assert (first_call, second_call, third_call) == ("1", "2", "1")


def test_what_making_a_function_raises_is_raised_here():
    with pytest.raises(ZeroDivisionError), function_in_own_process(divmod, 7, 0):
        pass


def killing_function() -> Callable[[], None]:
    return lambda: signal.raise_signal(signal.SIGKILL)


def test_a_job_that_is_killed_is_one_line():
    with pytest.raises(UserError, match="killed, perhaps for want of memory"):
        in_own_process(signal.raise_signal, signal.SIGKILL)
    with pytest.raises(UserError, match="killed"), function_in_own_process(killing_function) as function:
        function()


@pytest.mark.parametrize("finished", [0, 5])
def test_one_of_several_processes_that_is_killed_is_one_line(finished):
    with pytest.raises(UserError, match="killed"), own_processes(2) as pool:
        jobs = [pool.submit(divmod, 7, 3) for _ in range(finished)]
        assert [job.result() for job in jobs] == [(2, 1)] * finished
        jobs = [pool.submit(signal.raise_signal, signal.SIGKILL), pool.submit(time.sleep, 0.1)]
        for job in jobs:
            job.result()


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

"""Claims about the workers: every job is done, whatever happens to the processes, and none outlives the parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from flatscope.parallel import LostWorkerError, Workers

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")


def square(number: int) -> int:
    return number * number


def die_once(job: tuple[int, Path]) -> int:
    """Number 3 kills its worker at the first try."""
    number, folder = job
    if number == 3 and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return square(number)


def die_always(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return square(number)


def hang(number: int) -> int:
    if number == 1:
        time.sleep(600.0)
    return square(number)


def state(number: int) -> tuple[int, str, Any]:
    return os.getpid(), os.environ["OMP_NUM_THREADS"], signal.getsignal(signal.SIGINT)


def fail(number: int) -> int:
    raise ValueError(f"{number} is wrong")


def test_every_job_is_done_whatever_the_number_of_workers() -> None:
    for count in (1, 2, 3):
        with Workers(count) as workers:
            assert sorted(workers.do(square, range(5))) == [(n, n * n) for n in range(5)]
            assert dict(workers.do(square, [7])) == {0: 49}, "the same workers take a second round"
            assert list(workers.do(square, [])) == []


def test_a_worker_that_dies_is_replaced_and_its_job_tried_again(tmp_path: Path) -> None:
    with Workers(2) as workers:
        made = dict(workers.do(die_once, [(number, tmp_path) for number in range(6)]))
    assert (tmp_path / "died").exists()
    assert made == {number: number * number for number in range(6)}


def test_a_job_that_kills_two_workers_fails_alone() -> None:
    with Workers(2) as workers:
        made = dict(workers.do(die_always, range(6)))
    lost = made.pop(3)
    assert isinstance(lost, LostWorkerError)
    assert str(lost) == "its worker process died twice"
    assert made == {number: number * number for number in (0, 1, 2, 4, 5)}


def test_a_worker_that_stops_answering_is_ended() -> None:
    begun = time.monotonic()
    with Workers(2, limit_s=2.0) as workers:
        made = dict(workers.do(hang, range(4)))
    assert isinstance(made[1], LostWorkerError)
    assert str(made.pop(1)) == "its worker process gave no answer within 2 s twice"
    assert made == {0: 0, 2: 4, 3: 9}
    assert time.monotonic() - begun < 60.0


def test_a_worker_that_died_idle_costs_no_job() -> None:
    with Workers(2) as workers:
        pids = {pid for _, (pid, _, _) in workers.do(state, range(8))}  # type: ignore[misc]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            _wait_for_end(pid)
        assert dict(workers.do(square, range(4))) == {number: number * number for number in range(4)}


def test_workers_have_one_thread_and_leave_ctrl_c_to_the_parent() -> None:
    before = os.environ.get("OMP_NUM_THREADS"), signal.getsignal(signal.SIGINT)
    with Workers(2) as workers:
        for _, (pid, threads, handler) in workers.do(state, range(4)):  # type: ignore[misc]
            assert pid != os.getpid()
            assert (threads, handler) == ("1", signal.SIG_IGN)
    assert (os.environ.get("OMP_NUM_THREADS"), signal.getsignal(signal.SIGINT)) == before


def test_an_error_in_a_job_ends_the_round_and_every_worker() -> None:
    with Workers(2) as workers:
        pids = {pid for _, (pid, _, _) in workers.do(state, range(4))}  # type: ignore[misc]
        with pytest.raises(ValueError, match="is wrong"):
            list(workers.do(fail, range(4)))
    for pid in pids:
        _wait_for_end(pid)


def test_workers_that_cannot_start_are_an_error_and_no_failed_jobs(capfd: Any) -> None:
    begin = pytest.raises(LostWorkerError, match="die before they begin to work")
    with Workers(2, start=fail, given=(3,)) as workers, begin:
        list(workers.do(square, range(4)))
    assert "3 is wrong" in capfd.readouterr().err


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    program = tmp_path / "parent.py"
    program.write_text(
        "import os, signal, time\n"
        "from flatscope.parallel import Workers\n"
        "def work(folder):\n"
        "    open(os.path.join(folder, str(os.getpid())), 'w').close()\n"
        "    time.sleep(600.0)\n"
        "if __name__ == '__main__':\n"
        "    with Workers(2) as workers:\n"
        f"        list(workers.do(work, [{str(tmp_path / 'pids')!r}] * 2))\n",
        encoding="utf-8",
    )
    (tmp_path / "pids").mkdir()
    with subprocess.Popen([sys.executable, str(program)]) as parent:
        until = time.monotonic() + 60.0
        while len(list((tmp_path / "pids").iterdir())) < 2:
            assert time.monotonic() < until
            time.sleep(0.02)
        parent.kill()
    for path in (tmp_path / "pids").iterdir():
        _wait_for_end(int(path.name))


def _wait_for_end(pid: int, *, limit_s: float = 5.0) -> None:
    """Wait until a process is gone, or a zombie that nobody has waited for."""
    until = time.monotonic() + limit_s
    while _is_alive(pid):
        assert time.monotonic() < until, f"process {pid} is still there"
        time.sleep(0.02)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"

"""End to end: the default context, which all runs of Trio in a process share, and its end when the interpreter exits."""

from __future__ import annotations

import signal
import sys
import textwrap
from pathlib import Path

import pytest
from running import Ended, run, run_script, started, write

PRELUDE = """\
import atexit, os, signal, sys, threading, time
import exit_jobs as jobs
import trio, trio_offload
from trio_offload import run_sync, default_context_statistics as statistics

pid_of_worker = lambda: trio.run(run_sync, os.getpid)
"""
JOBS = """
    import atexit, os, sys, threading, time

    def at_exit_write(text):
        def write():
            print(text, flush=True)
        atexit.register(write)

    def at_exit_sleep():
        atexit.register(time.sleep, 1000)

    def leave_thread(seconds):
        threading.Thread(target=time.sleep, args=(seconds,)).start()

    def ready_then_sleep(path):
        with open(path, "w"):
            pass
        time.sleep(1000)

    def ready_then_spin(path):
        with open(path, "w"):
            pass
        while True:
            pass
"""


def program(folder: Path, text: str) -> Path:
    """A script; it has no guard, so it also shows that none is needed for what is in a module."""
    write(folder / "exit_jobs.py", JOBS)
    return write(folder / "script.py", PRELUDE + textwrap.dedent(text))


def run_program(folder: Path, text: str, expect: int | None = 0) -> Ended:
    return run([sys.executable, program(folder, text)], expect=expect)


# --- shared by all runs --------------------------------------------------------------------------------------


def test_one_run_after_another(tmp_path: Path) -> None:
    ended = run_program(
        tmp_path,
        """
        first = pid_of_worker()
        assert statistics().idle_workers == 1
        assert pid_of_worker() == first
        assert statistics() == trio_offload.WorkerContextStatistics(1, 0)
        print("done")
        """,
    )
    assert (ended.stdout, ended.stderr) == ("done\n", "")


def test_runs_at_once_in_threads(tmp_path: Path) -> None:
    """No worker is ever with two of them: each call's answer is its own."""
    ended = run_program(
        tmp_path,
        """
        async def main(number):
            for turn in range(40):
                assert await run_sync(divmod, number, 1 + turn) == divmod(number, 1 + turn)
                assert await run_sync(int, str(number), kill_on_cancel=True) == number
                statistics()

        errors = []

        def thread(number):
            try:
                trio.run(main, number)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=thread, args=(number,)) for number in range(6)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert not errors, errors
        found = statistics()
        assert found.running_workers == 0
        assert 1 <= found.idle_workers <= 6
        print("done")
        """,
    )
    assert (ended.stdout, ended.stderr) == ("done\n", "")


def test_a_run_in_a_thread_while_others_come_and_go(tmp_path: Path) -> None:
    """A worker that was started by a thread serves on when that thread has ended."""
    ended = run_program(
        tmp_path,
        """
        pids = []
        for _ in range(5):
            thread = threading.Thread(target=lambda: pids.append(pid_of_worker()))
            thread.start()
            thread.join()
        pids.append(pid_of_worker())
        assert len(set(pids)) == 1, pids
        print("done")
        """,
    )
    assert (ended.stdout, ended.stderr) == ("done\n", "")


def test_from_a_thread_only(tmp_path: Path) -> None:
    """The main thread never runs Trio; the interpreter joins the thread at its end and sees the worker off."""
    ended = run_program(
        tmp_path,
        """
        def thread():
            time.sleep(0.2)
            trio.run(run_sync, jobs.at_exit_write, "the worker left in order")

        threading.Thread(target=thread).start()
        """,
    )
    assert (ended.stdout, ended.stderr) == ("the worker left in order\n", "")


def test_trio_threads_may_run_trio(tmp_path: Path) -> None:
    ended = run_program(
        tmp_path,
        """
        async def main():
            await run_sync(bool)
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(trio.to_thread.run_sync, trio.run, run_sync, bool)

        trio.run(main)
        print("done")
        """,
    )
    assert (ended.stdout, ended.stderr) == ("done\n", "")


def test_guest_mode(tmp_path: Path) -> None:
    ended = run_program(
        tmp_path,
        """
        import queue
        todo = queue.SimpleQueue()
        outcomes = []
        trio.lowlevel.start_guest_run(
            run_sync, os.getpid, run_sync_soon_threadsafe=todo.put, done_callback=outcomes.append
        )
        while not outcomes:
            todo.get()()
        assert outcomes[0].unwrap() != os.getpid()
        print("done")
        """,
    )
    assert (ended.stdout, ended.stderr) == ("done\n", "")


# --- the end of the interpreter ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "status"),
    [
        ("pass", 0),
        ("sys.exit(3)", 3),
        ("raise ValueError('the end')", 1),
        ("raise KeyboardInterrupt", -signal.SIGINT),
    ],
)
def test_workers_leave_in_order(tmp_path: Path, statement: str, status: int) -> None:
    """However the program ends: exit handlers run in the workers, and what they print is seen."""
    ended = run_program(
        tmp_path,
        f"""
        trio.run(run_sync, jobs.at_exit_write, "the worker left in order")
        {statement}
        """,
        expect=status,
    )
    assert ended.stdout == "the worker left in order\n"
    assert "trio_offload" not in ended.stderr


def test_many_workers_leave_at_once(tmp_path: Path) -> None:
    ended = run_program(
        tmp_path,
        """
        async def main():
            trio_offload.current_default_worker_limiter().total_tokens = 8
            async with trio.open_nursery() as nursery:
                for number in range(8):
                    nursery.start_soon(run_sync, time.sleep, 0.5)
            assert statistics().idle_workers == 8

        trio.run(main)
        """,
    )
    assert (ended.stdout, ended.stderr) == ("", "")


@pytest.mark.parametrize(
    "configuration",
    [
        "trio_offload.configure_default_context(grace_period=0.5)",
        "trio_offload.configure_default_context(0.001, bool, bool, 0.5)",
        "assert trio_offload.atexit_shutdown_grace_period(0.5) == 0.5",
    ],
)
def test_a_worker_that_does_not_leave_is_killed(tmp_path: Path, configuration: str) -> None:
    ended = run_program(
        tmp_path,
        f"""
        {configuration}
        trio.run(run_sync, jobs.at_exit_sleep)
        print("main is done")
        """,
    )
    assert ended.stdout == "main is done\n"
    assert "BrokenWorkerError" in ended.stderr
    assert "had to be killed after the grace period" in ended.stderr


def test_a_worker_gets_its_time_to_leave(tmp_path: Path) -> None:
    """Its exit waits for the threads that jobs have left, as any Python's does."""
    ended = run_program(
        tmp_path,
        """
        trio_offload.atexit_shutdown_grace_period(float("inf"))
        start = time.monotonic()
        atexit.register(lambda: None)
        trio.run(run_sync, jobs.leave_thread, 1)
        trio.run(run_sync, jobs.at_exit_write, "left")
        """,
    )
    assert (ended.stdout, ended.stderr) == ("left\n", "")


def test_the_grace_period_by_its_older_name(tmp_path: Path) -> None:
    ended = run_program(
        tmp_path,
        """
        get = trio_offload.atexit_shutdown_grace_period
        print(get(), get(5), get(), get(-1), get(0), get())
        trio_offload.configure_default_context(grace_period=7)
        print(get())
        """,
    )
    assert ended.lines() == ["30.0 5 5 5 0 0", "7"]


def test_a_worker_that_broke_while_it_was_idle(tmp_path: Path) -> None:
    """Nobody called it since, so the exit is the first to see it; it says so, and does not fail for it otherwise."""
    ended = run_program(
        tmp_path,
        """
        os.kill(pid_of_worker(), signal.SIGKILL)
        print("main is done")
        """,
    )
    assert ended.stdout == "main is done\n"
    assert "BrokenWorkerError" in ended.stderr
    assert "-9" in ended.stderr


def test_workers_that_left_before_are_no_news(tmp_path: Path) -> None:
    """By idle timeout, retirement, or told by a service manager that stops the whole group."""
    ended = run_program(
        tmp_path,
        """
        trio_offload.configure_default_context(idle_timeout=0.05)
        pid_of_worker()
        time.sleep(0.5)
        """,
    )
    assert (ended.stdout, ended.stderr) == ("", "")
    ended = run_program(tmp_path, "os.kill(pid_of_worker(), signal.SIGTERM); time.sleep(0.2)")
    assert (ended.stdout, ended.stderr) == ("", "")


def test_exit_handlers_run_in_their_order(tmp_path: Path) -> None:
    """The last registered runs first: one from after the import still has its workers, one from before sees them gone."""
    write(tmp_path / "exit_jobs.py", JOBS)
    ended = run_script(
        tmp_path,
        """
        import atexit
        atexit.register(lambda: print("the program's first handler", flush=True))
        import exit_jobs as jobs
        import trio, trio_offload
        trio.run(trio_offload.run_sync, jobs.at_exit_write, "the worker's handler")

        def late():
            print("the program's last handler", trio.run(trio_offload.run_sync, abs, -5), flush=True)

        atexit.register(late)
        """,
    )
    assert ended.lines() == ["the program's last handler 5", "the worker's handler", "the program's first handler"]
    assert ended.stderr == ""


def test_calls_in_the_very_last_handler(tmp_path: Path) -> None:
    """After the shutdown a call starts a worker anew; nobody sees it off, but it does not stay behind."""
    ended = run_script(
        tmp_path,
        """
        import atexit

        def last():
            print(trio.run(trio_offload.run_sync, abs, -5), trio.run(trio_offload.run_sync, abs, -6), flush=True)

        atexit.register(last)
        import trio, trio_offload
        trio.run(trio_offload.run_sync, bool)
        """,
    )
    assert ended.lines() == ["5 6"]
    assert ended.stderr == ""


def test_multiprocessing_has_no_part_in_it(tmp_path: Path) -> None:
    """Its own exit handler joins what it knows of, and it knows nothing of the workers."""
    ended = run_program(
        tmp_path,
        """
        import multiprocessing
        multiprocessing.log_to_stderr(10)
        trio.run(run_sync, jobs.at_exit_write, "the worker left in order")
        assert multiprocessing.active_children() == []
        """,
    )
    assert ended.stdout == "the worker left in order\n"
    assert "[INFO/MainProcess] process shutting down" in ended.stderr
    assert "calling join() for" not in ended.stderr


@pytest.mark.parametrize("job", ["ready_then_sleep", "ready_then_spin"])
def test_a_daemon_thread_in_the_middle_of_a_call(tmp_path: Path, job: str) -> None:
    """The interpreter does not wait for such threads, and so it does not for the job; the worker ends with its parent."""
    ended = run_program(
        tmp_path,
        f"""
        threading.Thread(target=trio.run, args=(run_sync, jobs.{job}, "ready"), daemon=True).start()
        while not os.path.exists("ready"):
            time.sleep(0.01)
        print("main is done")
        """.replace('"ready"', repr(str(tmp_path / "ready"))),
    )
    assert ended.stdout == "main is done\n"


@pytest.mark.parametrize(
    "ending", ["os._exit(0)", "os.kill(os.getpid(), signal.SIGKILL)", "os.abort()", "os.execv('/bin/true', ['true'])"]
)
def test_an_end_without_exit_handlers(tmp_path: Path, ending: str) -> None:
    """Idle workers and a running one see that the parent is gone. (A program that becomes another one has no workers.)"""
    run_program(
        tmp_path,
        f"""
        import resource
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        ready = {str(tmp_path / "ready")!r}
        pid_of_worker()
        threading.Thread(target=trio.run, args=(run_sync, jobs.ready_then_spin, ready), daemon=True).start()
        while not os.path.exists(ready):
            time.sleep(0.01)
        async def another():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run_sync, time.sleep, 0.1)
                nursery.start_soon(run_sync, time.sleep, 0.1)
        trio.run(another)
        {ending}
        """,
        expect=None,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL, signal.SIGQUIT])
def test_a_program_that_is_told_to_end(tmp_path: Path, number: signal.Signals) -> None:
    path = program(
        tmp_path,
        """
        import resource
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        # Whoever runs the tests may ignore one of them (nohup does), and that is inherited.
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)
        pid_of_worker()
        trio.run(run_sync, jobs.ready_then_spin, sys.argv[1])
        """,
    )
    with started([sys.executable, path, tmp_path / "ready"]) as process:
        while not (tmp_path / "ready").exists():
            assert process.poll() is None
        process.send_signal(number)
        assert process.wait(60) == -number


def test_a_fork_ends_without_harm(tmp_path: Path) -> None:
    """A copy of the program runs its exit handlers too, those of this package included; the workers are not its own."""
    ended = run_program(
        tmp_path,
        """
        trio.run(run_sync, jobs.at_exit_write, "the worker left in order")
        before = pid_of_worker()
        child = os.fork()
        if child == 0:
            assert statistics().idle_workers == 0
            # It may have workers of its own.
            assert pid_of_worker() not in (before, os.getpid())
            sys.exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert pid_of_worker() == before
        print("the same worker as before", flush=True)
        """,
    )
    assert ended.lines() == ["the same worker as before", "the worker left in order"]
    assert "Traceback" not in ended.stderr


# --- configured ---------------------------------------------------------------------------------------------------


def test_a_configuration_replaces_the_previous_one(tmp_path: Path) -> None:
    """Its idle workers leave at once, not only at the end; the warning names the line that asked for it."""
    ended = run_program(
        tmp_path,
        """
        import warnings
        trio.run(run_sync, jobs.at_exit_write, "the previous worker left")
        before = pid_of_worker()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            trio_offload.configure_default_context(idle_timeout=100)
            trio_offload.configure_default_context(idle_timeout=200)
        assert [warning.category for warning in told] == [UserWarning], told
        assert told[0].filename == __file__
        assert "configure_default_context" in str(told[0].message)
        assert statistics().idle_workers == 0
        while os.path.exists(f"/proc/{before}/root"):  # a zombie has none
            time.sleep(0.01)
        print("gone", flush=True)
        assert pid_of_worker() != before
        """,
    )
    assert ended.lines() == ["the previous worker left", "gone"]
    assert ended.stderr == ""


def test_a_configuration_while_a_call_runs(tmp_path: Path) -> None:
    """The call ends as if nothing had been; its worker leaves at the end, also if there is another configuration by then."""
    ended = run_program(
        tmp_path,
        """
        import warnings
        warnings.simplefilter("ignore")

        async def main():
            async with trio.open_nursery() as nursery:
                async def call():
                    await run_sync(jobs.at_exit_write, "the old worker left")
                    await run_sync(time.sleep, 0.5)
                    pids.append(await run_sync(os.getpid))
                pids = []
                nursery.start_soon(call)
                await trio.sleep(0.2)
                trio_offload.configure_default_context(init=bool)
                pids.append(await run_sync(os.getpid))
            assert statistics().running_workers == 0

        trio.run(main)
        trio_offload.configure_default_context()
        print("main is done", flush=True)
        """,
    )
    assert sorted(ended.lines()) == ["main is done", "the old worker left"]
    assert ended.stderr == ""


def test_only_the_main_thread_configures(tmp_path: Path) -> None:
    ended = run_program(
        tmp_path,
        """
        def thread():
            try:
                trio_offload.configure_default_context()
            except RuntimeError as error:
                print(error)

        thread_object = threading.Thread(target=thread)
        thread_object.start()
        thread_object.join()
        """,
    )
    assert "main thread" in ended.stdout


def test_init_of_the_default_context(tmp_path: Path) -> None:
    """Also at the top of a script, before anything runs; and one that fails does so for each call, without an end."""
    ended = run_program(
        tmp_path,
        """
        trio_offload.configure_default_context(init=jobs.no_such_thing if 0 else sys.exit)
        for _ in range(2):
            try:
                trio.run(run_sync, bool)
            except trio_offload.WorkerStartError as error:
                print(type(error.__cause__).__name__, "sys.exit" in str(error) or "exit" in str(error))
        assert statistics() == trio_offload.WorkerContextStatistics(0, 0)
        """,
    )
    assert ended.lines() == ["SystemExit True"] * 2

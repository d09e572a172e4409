"""End to end: workers that are forked off a template, and what is special about them.

What they have in common with all others is tested with the others; see the fixture ``worker_type``.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import signal
import subprocess
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jobs
import pytest
import template_jobs
import trio
import workers
from kinds import environment_of
from lifeline import PATIENCE, Gate, Lifeline, process_state, until_stopped, wait_for_end
from running import in_fork, run_script, started, write
from trio.testing import wait_all_tasks_blocked
from workers import make_launcher

import trio_offload
from trio_offload import (
    BrokenWorkerError,
    WorkerContext,
    WorkerStartError,
    WorkerType,
    cache_scope,
    open_worker_context,
)
from trio_offload._interpreter import hello as _hello
from trio_offload._interpreter import locate as _locate
from trio_offload._launch.template import Template
from trio_offload._pickling.calls import dump_call
from trio_offload._pool.cache import WorkerCache
from trio_offload._process import inherited
from trio_offload._process.pending import PendingFork
from trio_offload._transport.channel import Channel
from trio_offload._worker.handshake import WorkerHandshake
from trio_offload._worker.worker import Worker
from trio_offload_worker._system import family

ENVIRONMENT = environment_of()
forked = functools.partial(open_worker_context, worker_type=WorkerType.FORKSERVER)


@pytest.fixture(autouse=True)
def executable_is_used() -> None:
    if not _locate.runtime().is_native:
        pytest.skip("templates need the worker executable, and here workers are run in Python")


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Any]:
    """Writes modules that workers can import."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    return lambda name, text: write(folder / f"{name}.py", text)


def template_of(context: WorkerContext) -> Template:
    template = workers.template_of(context)
    assert template is not None
    return template


def children() -> set[int]:
    return set(family.children([os.getpid()]))


async def reserve_of(context: WorkerContext) -> PendingFork:
    """The process that the template has forked ahead, once it is there."""
    await wait_all_tasks_blocked()
    reserve = template_of(context)._standby
    assert reserve is not None
    with trio.fail_after(PATIENCE):
        while not reserve.process.read_pid():
            await trio.lowlevel.wait_readable(reserve.process._pid_pipe)
    return reserve


@pytest.fixture
def no_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every worker is forked when it is wanted."""
    monkeypatch.setattr(Template, "fork_standby", lambda template: None)


# --- who is whose child --------------------------------------------------------------------------


async def test_forked_workers_are_children_of_program() -> None:
    before = children()
    async with forked() as context:
        worker = await context.run_sync(os.getpid)
        template = template_of(context).process.pid
        reserve = (await reserve_of(context)).process.pid
        assert children() - before == {worker, template, reserve}
        assert await context.run_sync(os.getppid) == os.getpid()
        assert await context.run_sync(os.getpid) == worker


async def test_statistics_exclude_template_and_standby() -> None:
    async with forked() as context:
        worker = await context.run_sync(os.getpid)
        await reserve_of(context)
        (record,) = context.statistics().workers
        assert (record.pid, record.state, record.jobs) == (worker, "idle", 1)
        assert record.rss is not None
        assert context.statistics().idle_workers == 1


async def test_template_lives_from_first_call_to_context_end() -> None:
    before = children()
    async with forked() as context:
        await trio.lowlevel.checkpoint()
        assert children() == before
        await context.run_sync(bool)
        template = template_of(context).process
    assert template.exitcode == 0
    assert children() == before


async def test_a_worker_has_one_main_thread_that_knows_its_own_number() -> None:
    async with forked() as context:
        pid, native, signalled = await context.run_sync(template_jobs.thread_numbers)
        assert native == pid
        assert signalled


async def test_nothing_but_its_own_descriptors_is_open_in_a_worker() -> None:
    async with open_worker_context() as spawning:
        expected = await spawning.run_sync(template_jobs.open_descriptors)
    async with forked(retire=object) as context:
        for _ in range(3):
            found = await context.run_sync(template_jobs.open_descriptors)
            # Ctrl+C is swallowed without a thread and its pipe.
            assert set(found) <= set(expected)
            assert {0, 1, 2, 3, 4} <= set(found)


# --- how they end --------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [0, 1, 42, 255])
async def test_exit_statuses_are_exact(status: int) -> None:
    async with forked() as context:
        with pytest.raises(BrokenWorkerError) as told:
            await context.run_sync(os._exit, status)
        assert told.value.exitcode == status
        # The template has not noticed.
        assert await context.run_sync(int, "5") == 5


async def test_a_kill_is_exact() -> None:
    async with forked() as context:
        with pytest.raises(BrokenWorkerError, match="SIGKILL") as told:
            await context.run_sync(jobs.kill_self)
        assert told.value.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGSEGV, signal.SIGABRT])
async def test_signals_are_exact(number: signal.Signals) -> None:
    async with forked() as context:
        with pytest.raises(BrokenWorkerError, match=number.name) as told:
            await context.run_sync(jobs.end_by, number)
        assert (told.value.exitcode, told.value.signal) == (-number, number)


@pytest.mark.parametrize("job", [jobs.segfault, jobs.abort])
async def test_a_crash_leaves_its_stack(job: Callable[[], None]) -> None:
    async with forked() as context:
        for _ in range(2):
            with pytest.raises(BrokenWorkerError) as told:
                await context.run_sync(job)
            assert told.value.crash is not None
            assert job.__name__ in told.value.crash.stack
        assert template_of(context)._record is not None
        assert template_of(context)._record.read() == ""  # type: ignore[union-attr]


async def test_a_job_that_takes_too_much_is_ended() -> None:
    async with forked(memory_limit="300 MB") as context:
        with pytest.raises(trio_offload.WorkerMemoryError):
            await context.run_sync(template_jobs.take_memory, 2_000_000_000)


async def test_what_it_owes_at_its_end_is_done(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    async with forked() as context:
        await context.run_sync(template_jobs.leave_debts, str(tmp_path / "file"), str(tmp_path / "thread"))
    assert (tmp_path / "file").read_text() == "written"
    assert (tmp_path / "thread").read_text() == "joined"
    assert capfd.readouterr().out == "at exit\n"


# --- what the template hands on ------------------------------------------------------------------


async def test_modules_are_imported_once(modules: Any, tmp_path: Path) -> None:
    log = tmp_path / "log"
    modules("counted", f"open({str(log)!r}, 'a').write('x')")
    async with forked(forkserver_preload=["counted", "json.tool"], retire=object) as context:
        for _ in range(3):
            assert {"counted", "json.tool"} <= set(await context.run_sync(jobs.modules))
    assert log.read_text() == "x"


async def test_what_a_module_prints_while_it_is_imported_comes_once(modules: Any, capfd: pytest.CaptureFixture[str]) -> None:
    modules("talkative", "import sys; sys.stdout.write('imported ')")
    async with forked(forkserver_preload=["talkative"], retire=object) as context:
        for _ in range(3):
            await context.run_sync(bool)
    assert capfd.readouterr().out == "imported "


async def test_init_runs_in_each_worker_and_not_in_the_template(line: Lifeline) -> None:
    async with forked(init=functools.partial(template_jobs.say_pid, line.path), retire=object) as context:
        workers = [await context.run_sync(os.getpid) for _ in range(3)]
        assert [await line.pid() for _ in range(3)] == workers


@pytest.mark.parametrize("preload", [(), ("random",), ("numpy.random",)], ids=str)
async def test_random_numbers_differ(preload: tuple[str, ...]) -> None:
    if "numpy.random" in preload:
        pytest.importorskip("numpy")
    async with forked(forkserver_preload=preload, retire=object) as context:
        numbers = [await context.run_sync(template_jobs.random_numbers) for _ in range(4)]
    for kind in numbers[0]:
        assert len({number[kind] for number in numbers}) == 4, kind


async def test_fork_hooks_run_on_both_sides(modules: Any, line: Lifeline) -> None:
    modules("hooked", f"import os, template_jobs; template_jobs.hook_forks({line.path!r})")
    async with forked(forkserver_preload=["hooked"]) as context:
        worker = await context.run_sync(os.getpid)
        template = template_of(context).process.pid
        reserve = (await reserve_of(context)).process.pid
    expected = [f"before {template}", f"parent {template}"] * 2 + [f"child {worker}", f"child {reserve}"]
    assert sorted(await line.ended()) == sorted(expected)


async def test_handlers_of_pthread_atfork_run(modules: Any, line: Lifeline) -> None:
    modules("hooked_in_c", "import template_jobs; counts = template_jobs.hook_forks_in_c()")
    async with forked(forkserver_preload=["hooked_in_c"], retire=object) as context:
        assert await context.run_sync(template_jobs.counts_in_c) == [1, 0, 1]
        assert await context.run_sync(template_jobs.counts_in_c) == [2, 1, 1]


async def test_numpy_can_be_preloaded_though_it_starts_threads() -> None:
    pytest.importorskip("numpy")
    async with forked(forkserver_preload=["numpy"]) as context:
        assert "numpy" in await context.run_sync(jobs.modules)
        assert await context.run_sync(template_jobs.multiply_matrices, 300) == 300.0


# --- what the parent has when the worker starts --------------------------------------------------


async def test_what_has_changed_since_the_template_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: Lifeline, gate: Gate
) -> None:
    monkeypatch.setenv("TEMPLATE_KEPT", "kept")
    monkeypatch.setenv("TEMPLATE_CHANGED", "before")
    monkeypatch.setenv("TEMPLATE_GONE", "before")
    async with forked() as context:
        first = await context.run_sync(template_jobs.surroundings)
        assert first["environment"] == dict(os.environb)
        assert first["directory"] == os.getcwd()
        monkeypatch.setenv("TEMPLATE_CHANGED", "\udc80 after")
        monkeypatch.setenv("TEMPLATE_NEW", "")
        monkeypatch.delenv("TEMPLATE_GONE")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(sys, "argv", ["other", "arguments"])
        monkeypatch.chdir(tmp_path)
        async with trio.open_nursery() as nursery:
            # The first worker is busy, so another one is forked.
            nursery.start_soon(context.run_sync, jobs.pass_gate, line.path, gate.path)
            await line.pid()
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "only in here", UserWarning)
                second = await context.run_sync(template_jobs.surroundings)
            gate.open()
    assert second["pid"] != first["pid"]
    assert second["environment"] == second["environment_in_c"] == dict(os.environb)
    assert second["directory"] == str(tmp_path)
    assert second["path"][0] == str(tmp_path)
    assert second["argv"] == ["other", "arguments"]
    assert "only in here" in second["filters"]


@pytest.mark.parametrize("behind", [True, False])
def test_the_environment_is_the_one_that_python_shows(behind: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEMPLATE_NEW", "\udc80")
    expected = dict(os.environb)
    if not behind:
        monkeypatch.setattr(os, "environb", types.MappingProxyType(expected))
    found = _hello.environment()
    assert found == expected
    assert found[b"TEMPLATE_NEW"] == b"\x80"
    found.clear()
    assert b"TEMPLATE_NEW" in os.environb


async def test_what_a_module_does_to_sys_is_not_the_workers(modules: Any) -> None:
    modules(
        "meddles",
        "import sys\nsys.path.append('/nowhere')\nsys.argv[:] = ['other']\nsys.orig_argv.clear()\n"
        "sys.warnoptions.append('error')\nsys.pycache_prefix = '/nowhere'\n",
    )
    names = ("path", "argv", "orig_argv", "warnoptions", "pycache_prefix")
    async with forked(forkserver_preload=["meddles"]) as context:
        assert "meddles" in await context.run_sync(jobs.modules)
        assert await context.run_sync(template_jobs.attributes_of_sys, *names) == {
            name: getattr(sys, name) for name in names
        }


async def test_a_working_directory_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with forked(retire=object) as context:
        await context.run_sync(bool)
        (tmp_path / "gone").mkdir()
        monkeypatch.chdir(tmp_path / "gone")
        (tmp_path / "gone").rmdir()
        assert await context.run_sync(os.readlink, "/proc/self/cwd") == f"{tmp_path}/gone (deleted)"


async def test_standard_streams_are_those_of_the_moment(tmp_path: Path) -> None:
    async with forked(retire=object) as context:
        await context.run_sync(bool)
        kept = os.dup(1)
        file = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
        try:
            os.dup2(file, 1)
            await context.run_sync(print, "into the file")
        finally:
            os.dup2(kept, 1)
            os.close(kept)
            os.close(file)
    assert (tmp_path / "out").read_text() == "into the file\n"


def test_a_stream_that_is_closed_leads_nowhere(tmp_path: Path) -> None:
    text = """
    import os, trio, trio_offload, template_jobs

    async def main():
        async with trio_offload.open_worker_context(worker_type="forkserver", retire=object) as context:
            await context.run_sync(bool)
            os.close(0)
            print(await context.run_sync(os.readlink, "/proc/self/fd/0"))

    trio.run(main)
    """
    assert run_script(tmp_path, text, environment=ENVIRONMENT).lines() == ["/dev/null"]


def test_the_main_script_is_loaded_on_demand(tmp_path: Path) -> None:
    text = """
    import os, sys, trio, trio_offload
    print("loaded as", __name__, flush=True)

    def job():
        return __name__

    async def main():
        async with trio_offload.open_worker_context(worker_type="forkserver", retire=object) as context:
            print(await context.run_sync(int, "5"), flush=True)
            print(await context.run_sync(job))

    if __name__ == "__main__":
        trio.run(main)
    """
    assert run_script(tmp_path, text).lines() == ["loaded as __main__", "5", "loaded as __mp_main__", "__main__"]


# --- the death of a template ---------------------------------------------------------------------


async def test_a_template_that_is_killed_is_replaced(line: Lifeline, gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    async with forked() as context:
        results = []

        async def run_job() -> None:
            results.append(await context.run_sync(jobs.pass_gate, line.path, gate.path))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_job)
            worker = await line.pid()
            template = template_of(context)
            os.kill(template.process.pid, signal.SIGKILL)
            with trio.fail_after(PATIENCE):
                await template.process.wait()
            # Another one is forked off another template, while the first goes on.
            assert await context.run_sync(os.getpid) != worker
            assert template_of(context) is not template
            gate.open()
        assert results == [worker]
        assert "died of SIGKILL" in caplog.text


async def test_template_that_dies_with_request_is_replaced(no_reserve: None, caplog: pytest.LogCaptureFixture) -> None:
    async with forked() as context:
        await context.run_sync(bool)
        template = template_of(context).process
        os.kill(template.pid, signal.SIGSTOP)
        await until_stopped(template.pid)
        async with trio.open_nursery() as nursery:
            with trio.fail_after(PATIENCE):
                (idle,) = context._cache._idle
                context._cache._idle.clear()
                nursery.start_soon(context.run_sync, bool)
                await wait_all_tasks_blocked()
                # The request is in the socket, and nobody has read it.
                os.kill(template.pid, signal.SIGKILL)
        context._cache._idle.appendleft(idle)
        assert context.statistics().idle_workers == 2
        assert template_of(context).process.pid != template.pid


async def test_a_template_that_dies_each_time_is_told(modules: Any, caplog: pytest.LogCaptureFixture) -> None:
    modules("deadly", "import os, signal; os.register_at_fork(before=lambda: os.kill(os.getpid(), signal.SIGKILL))")
    async with forked(forkserver_preload=["deadly"]) as context:
        with trio.fail_after(PATIENCE), pytest.raises(WorkerStartError, match=r"while it forked a worker.*SIGKILL"):
            await context.run_sync(bool)
        assert context.statistics().running_workers == 0


async def test_a_template_that_does_not_answer_is_given_up(no_reserve: None, caplog: pytest.LogCaptureFixture) -> None:
    async with forked(retire=object) as context:
        await context.run_sync(bool)
        template = template_of(context).process
        os.kill(template.pid, signal.SIGSTOP)
        await until_stopped(template.pid)
        with trio.fail_after(PATIENCE), trio.move_on_after(0.01) as scope:
            await context.run_sync(jobs.never, kill_on_cancel=True)
        assert scope.cancelled_caught
        # It has closed what it had open, which comes before its end.
        with trio.fail_after(PATIENCE):
            await template.wait()
        assert template.signal is signal.SIGKILL
        assert await context.run_sync(int, "5") == 5


@pytest.mark.parametrize("job", ["idle", "spin", "hold_the_gil", "loop_in_c", "preload"])
async def test_a_killed_program_takes_all_along(tmp_path: Path, line: Lifeline, job: str) -> None:
    text = """
    import functools, sys
    import trio, trio_offload, jobs, template_jobs

    async def main():
        modules = ["template_jobs"] if sys.argv[1] != "preload" else ["endless"]
        async with trio_offload.open_worker_context(worker_type="forkserver", forkserver_preload=modules) as context:
            await context.run_sync(jobs.hold, sys.argv[2])
            print("idle", flush=True)
            if sys.argv[1] != "idle":
                await context.run_sync(getattr(jobs, sys.argv[1]), sys.argv[2])
            await trio.sleep_forever()

    trio.run(main)
    """
    write(tmp_path / "endless.py", f"import jobs\njobs.hold_the_gil({line.path!r})")
    script = write(tmp_path / "program.py", text)
    # The block's end is the proof that nobody is left in the program's session, the template included.
    with started([sys.executable, script, job, line.path], environment=ENVIRONMENT, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        await line.pid()
        if job != "preload":
            assert parent.stdout.readline() == b"idle\n"
        if job not in ("idle", "preload"):
            await line.pid()
        parent.kill()
        with trio.fail_after(PATIENCE):
            await line.ended()


@pytest.mark.parametrize("late", [False, True], ids=["forked ahead before its end", "after it"])
async def test_living_fork_of_program_keeps_no_template(tmp_path: Path, line: Lifeline, late: bool) -> None:
    text = f"""
    import ctypes, os, signal, sys
    import trio, trio.testing, trio_offload

    async def main():
        async with trio_offload.open_worker_context(worker_type="forkserver", forkserver_preload=["holding"]) as context:
            await context.run_sync(bool)
            template = context._launcher.current().process.pid
            if {late}:
                # Now it is asked for the next worker, and cannot answer yet.
                os.kill(template, signal.SIGSTOP)
            # So that a worker has been forked ahead.
            await trio.testing.wait_all_tasks_blocked()
            # A fork in C that runs none of Python's hooks: the copy holds our ends of all sockets.
            copy = ctypes.CDLL(None).fork()
            if copy == 0:
                while True:
                    ctypes.CDLL(None).pause()
            print(copy, template, flush=True)
            await trio.sleep_forever()

    trio.run(main)
    """
    write(tmp_path / "holding.py", f"import jobs\njobs.hold({line.path!r})")
    script = write(tmp_path / "program.py", text)
    with started([sys.executable, script], environment=ENVIRONMENT, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        copy, template = map(int, parent.stdout.readline().split())
        parent.kill()
        parent.wait()
        if late:
            os.kill(template, signal.SIGCONT)
        with trio.fail_after(PATIENCE):
            await line.ended()
        assert process_state(copy) is not None
        os.kill(copy, signal.SIGKILL)


def test_the_default_context_ends_its_template_at_exit(tmp_path: Path) -> None:
    text = """
    import trio, trio_offload

    trio_offload.configure_default_context(worker_type=trio_offload.WorkerType.FORKSERVER, forkserver_preload=["json"])
    for _ in range(2):
        print(trio.run(trio_offload.run_sync, int, "5"))
    """
    # That nobody is left is seen to by `run`.
    ended = run_script(tmp_path, text)
    assert ended.lines() == ["5", "5"]
    assert ended.stderr == ""


def test_a_fork_of_the_program_has_a_template_of_its_own(tmp_path: Path) -> None:
    text = """
    import os, sys, trio, trio_offload

    async def parent_of_job():
        return await trio_offload.run_sync(os.getppid)

    trio_offload.configure_default_context(worker_type="forkserver")
    assert trio.run(parent_of_job) == os.getpid()
    child = os.fork()
    if child == 0:
        print(trio.run(parent_of_job) == os.getpid(), flush=True)
        trio_offload._default.default_context.shutdown()
        os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
    print(trio.run(parent_of_job) == os.getpid())
    """
    assert run_script(tmp_path, text).lines() == ["True", "0", "True"]


def test_the_default_context_in_several_threads_at_once(tmp_path: Path) -> None:
    text = """
    import os, threading, trio, trio_offload
    from trio_offload._launch.template import Template

    begun = []
    begin = Template.begin

    def counted(template):
        begin(template)
        begun.append(template)

    Template.begin = counted
    trio_offload.configure_default_context(worker_type="forkserver")
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(trio.run(trio_offload.run_sync, int, "5"))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(results == [5] * 8, len(begun))
    """
    assert run_script(tmp_path, text).lines() == ["True 1"]


# --- its start -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "cause", "said"),
    [
        ("import no_such_module", ModuleNotFoundError, "no_such_module"),
        ("1 / 0", ZeroDivisionError, "division by zero"),
        ("raise SystemExit(3)", SystemExit, "3"),
        ("def :", SyntaxError, "invalid syntax"),
    ],
)
async def test_a_module_that_cannot_be_imported(modules: Any, text: str, cause: type[BaseException], said: str) -> None:
    modules("broken", text)
    async with forked(forkserver_preload=["json", "broken"]) as context:
        for _ in range(2):
            with pytest.raises(WorkerStartError, match=f"importing broken, of forkserver_preload, raised.*{said}") as told:
                await context.run_sync(bool)
            assert isinstance(told.value.__cause__, cause)


async def test_a_module_that_is_not_there() -> None:
    async with forked(forkserver_preload=["no.such.module"]) as context:
        with pytest.raises(WorkerStartError, match=r"importing no\.such\.module") as told:
            await context.run_sync(bool)
        assert isinstance(told.value.__cause__, ModuleNotFoundError)


async def test_a_module_that_ends_the_process(modules: Any) -> None:
    modules("deadly", "import jobs; jobs.segfault()")
    async with forked(forkserver_preload=["deadly"]) as context:
        with pytest.raises(WorkerStartError, match=r"(?s)SIGSEGV before it was ready.*deadly\.py") as told:
            await context.run_sync(bool)
        assert told.value.signal is signal.SIGSEGV


async def test_a_module_that_leaves_a_thread(modules: Any) -> None:
    modules("threaded", "import threading, time; threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()")
    async with forked(forkserver_preload=["json", "threaded"]) as context:
        with pytest.raises(
            WorkerStartError, match=r"after threaded, of forkserver_preload=.*thread.*Import it in init.*forkserver_threads"
        ):
            await context.run_sync(bool)


async def test_a_thread_that_comes_later_is_told_by_the_worker(modules: Any) -> None:
    modules("late", "import os, template_jobs; os.register_at_fork(before=template_jobs.start_thread)")
    async with forked(forkserver_preload=["late"]) as context:
        with pytest.raises(WorkerStartError, match=r"1 thread beside the one that forks \(.+\)"):
            await context.run_sync(bool)


@pytest.mark.parametrize(
    ("preload", "error", "said"),
    [
        ("json", TypeError, "an iterable of module names, got the single string 'json'"),
        (b"json", TypeError, "an iterable of module names, got b'json'"),
        (5, TypeError, "an iterable of module names, got 5"),
        ([5], TypeError, "must contain module names, got 5"),
        (["json", ""], ValueError, "full module names like 'package.module', got ''"),
        ([".json"], ValueError, "full module names like 'package.module', got '.json'"),
        (["js on"], ValueError, "full module names like 'package.module', got 'js on'"),
        (["__main__"], ValueError, "must not contain '__main__'. Workers load the main script when a job needs it"),
    ],
)
async def test_what_is_no_list_of_modules(preload: Any, error: type[Exception], said: str) -> None:
    for opener in (open_worker_context, cache_scope):
        with pytest.raises(error, match=said):
            async with opener(worker_type=WorkerType.FORKSERVER, forkserver_preload=preload):
                pass
    with pytest.raises(error, match=said):
        trio_offload.configure_default_context(worker_type=WorkerType.FORKSERVER, forkserver_preload=preload)


@pytest.mark.parametrize(
    ("threads", "error", "said"),
    [
        ("io", TypeError, "an iterable of thread names, got the single string 'io'"),
        (5, TypeError, "an iterable of thread names, got 5"),
        ([b"io"], TypeError, "must contain thread names, got b'io'"),
        (["io", ""], ValueError, r"must contain thread names, got the empty string in \('io', ''\)"),
    ],
)
async def test_what_is_no_list_of_threads(threads: Any, error: type[Exception], said: str) -> None:
    for opener in (open_worker_context, cache_scope):
        with pytest.raises(error, match=said):
            async with opener(worker_type=WorkerType.FORKSERVER, forkserver_threads=threads):
                pass
    with pytest.raises(error, match=said):
        trio_offload.configure_default_context(worker_type=WorkerType.FORKSERVER, forkserver_threads=threads)


@pytest.mark.parametrize("option", ["forkserver_preload", "forkserver_threads"])
async def test_the_options_are_for_this_type_only(option: str) -> None:
    with pytest.raises(ValueError, match=rf"{option} must be empty unless worker_type=WorkerType\.FORKSERVER, got"):
        async with open_worker_context(**{option: ["json"]}):  # type: ignore[arg-type]
            pass
    async with open_worker_context(forkserver_preload=iter(())):
        pass


async def test_without_the_executable_it_says_what_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_locate, "runtime", lambda: _locate.WorkerRuntime("", "", "there is no shared libpython"))
    async with forked() as context:
        with pytest.raises(WorkerStartError, match=r"there is no shared libpython\. Use WorkerType\.SPAWN, or"):
            await context.run_sync(bool)


async def test_many_at_once_share_one_template(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Template] = []
    begin = Template.begin

    def counted(template: Template) -> None:
        begin(template)
        begun.append(template)

    monkeypatch.setattr(Template, "begin", counted)
    async with forked() as context:
        assert await context.prewarm(5) == 5
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(functools.partial(context.run_sync, bool, limiter=trio.CapacityLimiter(1)))
    assert len(begun) == 1


async def test_all_who_wait_are_told_of_a_failed_start(modules: Any) -> None:
    modules("broken", "1 / 0")
    failures = []

    async def fail(context: WorkerContext) -> None:
        try:
            await context.run_sync(bool, limiter=trio.CapacityLimiter(1))
        except WorkerStartError as error:
            failures.append(error)

    async with forked(forkserver_preload=["broken"]) as context, trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(fail, context)
    assert len(set(map(id, failures))) == 4
    assert all(isinstance(failure.__cause__, ZeroDivisionError) for failure in failures)


async def test_a_cancelled_start_goes_on_for_the_others(modules: Any, line: Lifeline, gate: Gate) -> None:
    modules("slow", f"import jobs; jobs.pass_gate({line.path!r}, {gate.path!r})")
    results = []

    async def run_job(context: WorkerContext, scope: trio.CancelScope) -> None:
        with scope:
            results.append(await context.run_sync(int, "5", kill_on_cancel=True, limiter=trio.CapacityLimiter(1)))

    scopes = [trio.CancelScope() for _ in range(3)]
    async with forked(forkserver_preload=["slow"]) as context:
        async with trio.open_nursery() as nursery:
            for scope in scopes[:2]:
                nursery.start_soon(run_job, context, scope)
            template = await line.pid()
            # Whoever sees to the start, it is one of these.
            for scope in scopes[:2]:
                scope.cancel()
        assert results == []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_job, context, scopes[2])
            await wait_all_tasks_blocked()
            gate.open()
        assert results == [5]
        assert template_of(context).process.pid == template


async def test_closing_context_ends_starting_template(modules: Any, line: Lifeline) -> None:
    modules("endless", f"import jobs; jobs.hold_for_ever({line.path!r})")
    async with forked(forkserver_preload=["endless"]) as context:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(functools.partial(context.run_sync, bool, kill_on_cancel=True))
            template = await line.pid()
            nursery.cancel_scope.cancel()
        assert process_state(template) is not None
    with trio.fail_after(PATIENCE):
        await line.ended()


# --- many of them --------------------------------------------------------------------------------


async def test_one_job_workers() -> None:
    async with forked(retire=object) as context:
        pids = set()

        async def run_jobs() -> None:
            for _ in range(50):
                pids.add(await context.run_sync(os.getpid))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_jobs)
            nursery.start_soon(run_jobs)
        assert len(pids) == 100


@pytest.mark.parametrize("template_too", [False, True], ids=["alone", "with its template"])
async def test_a_worker_that_is_killed_before_it_has_told_its_number(
    template_too: bool, no_reserve: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is reaped like any other: the end of the test finds no zombie."""
    full, stuck = os.pipe()
    os.set_blocking(stuck, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(stuck, bytes(4096))
    os.set_blocking(stuck, True)
    asked: list[tuple[PendingFork, int]] = []

    def ask(lines: PendingFork, send: Callable[[list[int]], bool]) -> bool:
        # The pipe that the number goes to takes nothing, and the right one does not end before the process has.
        asked.append((lines, os.dup(lines.written)))
        return ask_for(lines, lambda descriptors: send([*descriptors[:2], stuck]))

    ask_for = PendingFork.ask
    async with forked(retire=object) as context:
        await context.run_sync(bool)
        template = template_of(context)
        with monkeypatch.context() as patch, trio.fail_after(PATIENCE):
            patch.setattr(PendingFork, "ask", ask)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_expect_start_error, context)
                while not asked:
                    await trio.lowlevel.checkpoint()
                lines, written = asked[0]
                while (pid := lines.record.pid_of_fork()) == 0:
                    await trio.lowlevel.checkpoint()
                if template_too:
                    os.kill(template.process.pid, signal.SIGKILL)
                    wait_for_end(template.process.pid)
                os.kill(pid, signal.SIGKILL)
                wait_for_end(pid)
                os.close(written)
        assert (lines.process.pid, lines.process.exitcode) == (pid, -signal.SIGKILL)
        assert await context.run_sync(int, "5") == 5
        assert (template_of(context) is template) is not template_too
    os.close(full)
    os.close(stuck)


async def _expect_start_error(context: WorkerContext) -> None:
    with pytest.raises(WorkerStartError, match="SIGKILL before it was ready"):
        await context.run_sync(bool)


async def test_the_record_of_a_worker_has_no_number_in_it(no_reserve: None) -> None:
    async with forked() as context:
        await context.run_sync(bool)
        (worker,) = context._cache._idle
        assert worker._record is not None
        assert worker._record.pid_of_fork() == 0


def how_many_a_copy_has(descriptors: set[int]) -> int:
    return in_fork(lambda: len(descriptors & template_jobs.open_descriptors().keys()))


# --- the one that is forked ahead ----------------------------------------------------------------


async def test_the_next_worker_is_there_already() -> None:
    async with forked(retire=object) as context:
        for _ in range(3):
            await context.run_sync(bool)
            reserve = await reserve_of(context)
            assert await context.run_sync(os.getpid) == reserve.process.pid
        last = await reserve_of(context)
    assert last.process.exitcode == 0


async def test_a_reserve_is_not_in_a_copy_of_the_program() -> None:
    async with forked() as context:
        await context.run_sync(bool)
        reserve = await reserve_of(context)
        mine = {reserve.ours.fileno(), reserve.record.fileno(), reserve.process._pidfd}
        assert mine <= template_jobs.open_descriptors().keys()
        assert how_many_a_copy_has(mine) == 0
        assert not reserve.process.ended


async def test_a_reserve_that_nobody_wants_runs_nothing(modules: Any, line: Lifeline) -> None:
    modules("owes", f"import atexit, template_jobs; atexit.register(template_jobs.say_pid, {line.path!r})")
    async with forked(forkserver_preload=["owes"]) as context:
        worker = await context.run_sync(os.getpid)
        await reserve_of(context)
        template = template_of(context).process.pid
    assert sorted(map(int, await line.ended())) == sorted([worker, template])


async def test_a_reserve_that_was_killed_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    async with forked(retire=object) as context:
        await context.run_sync(bool)
        reserve = await reserve_of(context)
        os.kill(reserve.process.pid, signal.SIGKILL)
        wait_for_end(reserve.process.pid)
        assert await context.run_sync(os.getpid) != reserve.process.pid
        await reserve_of(context)
        assert await context.run_sync(int, "5") == 5
    assert f"standby worker {reserve.process.pid} died of SIGKILL" in caplog.text
    assert reserve.process.ended


async def test_a_reserve_outlives_its_template(caplog: pytest.LogCaptureFixture) -> None:
    async with forked(retire=object) as context:
        await context.run_sync(bool)
        reserve, template = await reserve_of(context), template_of(context)
        os.kill(template.process.pid, signal.SIGKILL)
        wait_for_end(template.process.pid)
        # Nobody has noticed that yet.
        assert await context.run_sync(os.getpid) == reserve.process.pid
        await wait_all_tasks_blocked()
        assert await context.run_sync(int, "5") == 5
        assert template_of(context) is not template
    assert "the template of the workers ended" in caplog.text


async def test_a_reserve_goes_with_a_template_that_has_proved_dead(caplog: pytest.LogCaptureFixture) -> None:
    async with forked() as context:
        await context.run_sync(bool)
        reserve, template = await reserve_of(context), template_of(context)
        os.kill(template.process.pid, signal.SIGKILL)
        with trio.fail_after(PATIENCE):
            await template.process.wait()
        assert await context.prewarm(2) == 1
        with trio.fail_after(PATIENCE):
            await reserve.process.wait()
        assert reserve.process.exitcode == 0
        assert template_of(context) is not template


async def test_a_reserve_that_is_not_forked_yet_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    async with forked(retire=object) as context:
        await context.run_sync(bool)
        reserve, template = await reserve_of(context), template_of(context).process
        os.kill(template.pid, signal.SIGSTOP)
        await until_stopped(template.pid)
        assert await context.run_sync(os.getpid) == reserve.process.pid
        # The request for the next one is in the socket.
        await wait_all_tasks_blocked()
        results = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: _append(results, context.run_sync(int, "5")))
            await wait_all_tasks_blocked()
            assert results == []
            os.kill(template.pid, signal.SIGCONT)
        assert results == [5]


async def test_there_is_one_after_a_call_without_a_result_too(line: Lifeline) -> None:
    async with forked() as context:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(functools.partial(context.run_sync, jobs.hold_for_ever, line.path, kill_on_cancel=True))
            await line.pid()
            nursery.cancel_scope.cancel()
        reserve = await reserve_of(context)
        assert await context.run_sync(os.getpid) == reserve.process.pid


async def test_worker_keeps_directory_without_free_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async with forked(retire=object) as context:
        await context.run_sync(bool)
        reserve = await reserve_of(context)
        with monkeypatch.context() as patch:
            patch.setattr(inherited, "_open_directory", fail)
            with pytest.raises(WorkerStartError, match=r"Too many open files.*ulimit -n"):
                await context.run_sync(bool)
        assert reserve.process.ended
        assert await context.run_sync(int, "5") == 5


async def _append(results: list[Any], awaitable: Any) -> None:
    results.append(await awaitable)


@pytest.mark.parametrize("ahead", [True, False], ids=["forked ahead", "forked when it is wanted"])
async def test_greeting_waits_for_descriptors_in_flight(ahead: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not ahead:
        monkeypatch.setattr(Template, "fork_standby", lambda template: None)
    async with forked(retire=object) as context:
        await context.run_sync(bool)
        if ahead:
            await reserve_of(context)
        send = Channel.send_with_descriptors
        refused = []

        def send_sometimes(channel: Channel, parts: Any, descriptors: Any) -> Any:
            # Three go with a request.
            if len(descriptors) > 3 and len(refused) < 3:
                refused.append(len(descriptors))
                return None
            return send(channel, parts, descriptors)

        monkeypatch.setattr(Channel, "send_with_descriptors", send_sometimes)
        assert await context.run_sync(int, "5") == 5
        assert len(refused) == 3


@pytest.mark.parametrize("ahead", [True, False], ids=["forked ahead", "forked when it is wanted"])
@pytest.mark.parametrize("waits", [True, False], ids=["later", "at once"])
async def test_privileges_change_while_the_worker_reads_hello(
    ahead: bool, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker gets neither SETUP nor the call. Another template forks one that does."""
    if not ahead:
        monkeypatch.setattr(Template, "fork_standby", lambda template: None)
    async with forked(retire=object) as context:
        await context.run_sync(bool)
        if ahead:
            await reserve_of(context)
        template = context._launcher.current()
        send = Channel.send_with_descriptors
        greeted = []

        def change_behind_hello(channel: Channel, parts: Any, descriptors: Any) -> Any:
            if len(descriptors) > 3:
                greeted.append(channel)
                if len(greeted) == 1 and waits:
                    return None
                monkeypatch.setattr(Template, "keeps_privileges", lambda peer: peer is not template)
            return send(channel, parts, descriptors)

        monkeypatch.setattr(Channel, "send_with_descriptors", change_behind_hello)
        assert await context.run_sync(os.getpid) not in (os.getpid(), template.process.pid)
        assert len(greeted) == 2 + waits
        assert context._launcher.current() is not template
        assert template.given_up


@pytest.mark.parametrize("options", [{}, {"retire": object}, {"idle_timeout": 0.0}], ids=["closed", "retired", "idle"])
async def test_forked_worker_imports_nothing(modules: Any, tmp_path: Path, options: dict[str, Any]) -> None:
    """Each import in one copies some ninety pages of memory, a quarter of what a whole worker costs."""
    journal = tmp_path / "journal"
    text = f"""
    import os, sys

    template = os.getpid()

    class Watch:
        def find_spec(self, name, path=None, target=None):
            if os.getpid() != template:
                with open({str(journal)!r}, "a") as file:
                    print(name, file=file)

    sys.meta_path.insert(0, Watch())
    """
    modules("watching_imports", text)
    journal.touch()
    async with forked(forkserver_preload=["watching_imports"], **options) as context:
        for _ in range(2):
            await context.run_sync(bool)
    assert journal.read_text() == ""


# --- the first call, which goes with the greeting ------------------------------------------------


KINDS = pytest.mark.parametrize("kind", [WorkerType.FORKSERVER, WorkerType.SPAWN])
"""It need not wait for READY in a worker that is spawned either."""


@KINDS
@pytest.mark.parametrize("options", [{}, {"retire": object}, {"idle_timeout": 0.0}, {"init": functools.partial(int, 1)}])
async def test_the_first_call_is_run_once(tmp_path: Path, options: dict[str, Any], kind: WorkerType) -> None:
    journal = tmp_path / "journal"
    async with open_worker_context(worker_type=kind, **options) as context:
        for text in ("first", "second"):
            assert await context.run_sync(jobs.append, str(journal), text) == text
    assert journal.read_text() == "first\nsecond\n"


@KINDS
@pytest.mark.parametrize("size", [10_000, 16_000, 17_000, 100_000, 10_000_000])
async def test_a_first_call_of_any_size(size: int, kind: WorkerType) -> None:
    async with open_worker_context(worker_type=kind, retire=object) as context:
        for _ in range(2):
            assert await context.run_sync(len, bytes(size)) == size


@KINDS
async def test_the_first_call_is_not_run_if_the_start_fails(tmp_path: Path, kind: WorkerType) -> None:
    opened = functools.partial(open_worker_context, worker_type=kind)
    journal = tmp_path / "journal"
    async with opened(init=functools.partial(int, "no number")) as context:
        with pytest.raises(WorkerStartError, match="raised ValueError"):
            await context.run_sync(jobs.append, str(journal), "first")
    async with opened(init=functools.partial(os._exit, 7)) as context:
        with pytest.raises(WorkerStartError, match="exited with status 7 before it was ready"):
            await context.run_sync(jobs.append, str(journal), "first")
    async with opened(memory_limit=1_000_000) as context:
        with pytest.raises(WorkerStartError, match="is below the baseline"):
            await context.run_sync(jobs.append, str(journal), "first")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        async with opened(retire=trio_offload.retire_when(rss=1_000_000)) as context:
            with pytest.raises(UserWarning, match="below the baseline"):
                await context.run_sync(jobs.append, str(journal), "first")
    assert not journal.exists()


@pytest.mark.parametrize(
    ("settings", "argument", "goes_along"),
    [
        ({}, b"", True),
        ({"retire": object, "init": bool, "idle_timeout": 0.0}, b"", True),
        ({}, bytes(20_000), False),
        ({"memory_limit": 10**12}, b"", False),
        ({"retire": trio_offload.retire_when(rss=10**12)}, b"", False),
    ],
)
def test_which_first_call_goes_along(settings: dict[str, Any], argument: bytes, goes_along: bool) -> None:
    launcher = make_launcher(**settings)
    worker = Worker(launcher.options)
    call = dump_call(len, (argument,))
    assert WorkerHandshake(worker, launcher, call)._call_ahead() is (call if goes_along else None)
    if goes_along:
        assert worker.send_ahead(call)[1:] == [*call.parts]
        assert (worker._calls, worker._sent) == (1, 1)


@pytest.mark.parametrize("retire", [bool, object])
async def test_first_call_ends_worker_unobserved(retire: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker has begun with it, so it is not run again."""
    async with forked(retire=retire) as context:
        await context.run_sync(bool)
        for worker in context._cache._idle:
            await worker.end()
        note_started = WorkerCache.note_started

        def note_late(cache: WorkerCache, worker: Worker) -> None:
            wait_for_end(worker.process.pid)
            note_started(cache, worker)

        monkeypatch.setattr(WorkerCache, "note_started", note_late)
        with pytest.raises(BrokenWorkerError, match="while it ran"):
            await context.run_sync(os._exit, 9)


async def test_a_first_call_that_ends_its_worker() -> None:
    async with forked() as context:
        with pytest.raises(BrokenWorkerError, match=r"while it ran posix\._exit"):
            await context.run_sync(os._exit, 9)
        assert await context.run_sync(int, "5") == 5


async def test_a_first_call_that_is_cancelled(line: Lifeline, gate: Gate) -> None:
    async with forked() as context, trio.open_nursery() as nursery:
        nursery.start_soon(functools.partial(context.run_sync, jobs.pass_gate, line.path, gate.path, kill_on_cancel=True))
        pid = await line.pid()
        nursery.cancel_scope.cancel()
    assert process_state(pid) is None


async def test_a_hundred_at_once() -> None:
    async with forked() as context:
        assert await context.prewarm(100) == 100
        assert len({worker.pid for worker in context.statistics().workers}) == 100


async def test_spares_are_forked_too() -> None:
    async with forked(retire=trio_offload.retire_when(jobs=1)) as context:
        for _ in range(5):
            await context.run_sync(bool)
            (spare,) = context._cache._spares
            pid = await context.run_sync(os.getpid)
            assert spare.process.pid == pid

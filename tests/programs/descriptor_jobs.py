"""Jobs that look at descriptors, use the standard streams, and start programs in every way that a job can."""

import os
import signal
import subprocess
import sys

LISTING = "import os, sys; sys.path.insert(0, %r); import descriptor_jobs; print(descriptor_jobs.listed())"


def listed():
    """Each open descriptor: what it is open on, and whether a program that is started would get it."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        number = int(name)
        try:
            found[number] = (os.readlink(f"/proc/self/fd/{number}"), os.get_inheritable(number))
        except OSError:  # the one that the listing itself needed
            continue
    return found


def flags():
    import fcntl

    return [fcntl.fcntl(number, fcntl.F_GETFL) for number in (0, 1, 2)]


def listing_command():
    return [sys.executable, "-c", LISTING % os.path.dirname(os.path.abspath(__file__))]


def with_subprocess(close_fds):
    return eval(subprocess.run(listing_command(), close_fds=close_fds, stdout=subprocess.PIPE, check=True).stdout)


def with_popen():
    import shlex

    with os.popen(shlex.join(listing_command())) as file:
        return eval(file.read())


def with_posix_spawn():
    ours, theirs = os.pipe()
    command = listing_command()
    pid = os.posix_spawn(command[0], command, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, theirs, 1)])
    os.close(theirs)
    with os.fdopen(ours) as file:
        found = eval(file.read())
    os.waitpid(pid, 0)
    return found


def with_fork():
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ours)
        os.write(theirs, repr(listed()).encode())
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as file:
        found = eval(file.read())
    os.waitpid(pid, 0)
    return found


def with_fork_and_exec():
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(theirs, 1)
        os.execv(sys.executable, listing_command())
    os.close(theirs)
    with os.fdopen(ours) as file:
        found = eval(file.read())
    os.waitpid(pid, 0)
    return found


def with_multiprocessing(method):
    import multiprocessing

    context = multiprocessing.get_context(method)
    with context.Pool(1) as pool:
        return pool.apply(listed)


def print_both(text):
    print(text)
    print(text, file=sys.stderr)


def write_in_every_way():
    import ctypes

    print("print")
    sys.stdout.flush()
    sys.stdout.buffer.write(b"buffer\n")
    sys.stdout.flush()
    os.write(1, b"os.write\n")
    subprocess.run(["echo", "subprocess"], check=True)
    os.system("echo system")
    libc = ctypes.CDLL(None)
    libc.puts(b"C")
    libc.fflush(None)
    print("left to be flushed")
    return "result"


def write_much(size):
    for stream in (sys.stdout, sys.stderr):
        stream.write("x" * size)
    os.write(1, b"y" * size)
    os.write(2, b"y" * size)
    return "result"


def write_to_every_descriptor(data):
    """Everything that was inherited or opened by the user; what a program does that confuses its streams."""
    os.write(1, data)
    os.write(2, data)


def write_to_the_socket(data):
    for number, (target, _) in listed().items():
        if number > 2 and target.startswith("socket:"):
            os.write(number, data)
    return "result"


def close_all(first):
    os.closerange(first, 256)
    return "result"


def read_line():
    return sys.stdin.readline()


def read_by_descriptor(size):
    return os.read(0, size)


def read_in_subprocess():
    return subprocess.run(["cat"], stdout=subprocess.PIPE, check=True).stdout


def is_terminal():
    return [stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)]


def start_sleeper_and_die(path, close_fds):
    sleeper = subprocess.Popen(["sleep", "infinity"], close_fds=close_fds)
    with open(path, "w") as file:
        file.write(str(sleeper.pid))
    os._exit(7)


def fork_sleeper_and_die(path):
    sleeper = os.fork()
    if sleeper == 0:
        signal.pause()
    with open(path, "w") as file:
        file.write(str(sleeper))
    os._exit(7)


def close_stdout():
    sys.stdout.close()


def break_stdout():
    """As it is when the reader of a pipe has gone: ``program | head -1``."""
    ours, theirs = os.pipe()
    os.close(ours)
    os.dup2(theirs, 1)
    os.close(theirs)
    print("nobody reads this")


def replace_record(folder):
    """Close each descriptor of the worker's record. Let files with unwritten data have the numbers."""
    from trio_offload_worker import from_worker

    from_worker.cancelled()
    numbers = [number for number, (target, _) in listed().items() if "trio-offload-record" in target]
    # Python clears this module after those of the package.
    os.kept = []
    for number in numbers:
        os.close(number)
        assert os.open(os.path.join(folder, str(number)), os.O_CREAT | os.O_WRONLY) == number
        os.kept.append(os.fdopen(number, "w"))
        os.kept[-1].write("data")
    return numbers

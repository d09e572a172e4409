"""Jobs that wait for signals, get them, and start programs that get them."""

import os
import signal
import subprocess
import sys
import time


def say(text):
    os.write(1, text.encode() + b"\n")


def sleep(seconds, text="sleeping"):
    """Sleeps all of it, whatever interrupts the system call."""
    say(text)
    start = time.monotonic()
    time.sleep(seconds)
    return time.monotonic() - start >= seconds


def sleep_and_say(seconds):
    sleep(seconds)
    say("slept")


def spin():
    say("spinning")
    while True:
        pass


def read_line():
    say("reading")
    return sys.stdin.readline()


def run_program(how):
    """The exit status of a program that sleeps, as subprocess tells it."""
    command = ["sleep", "1000"]
    say("running")
    if how == "subprocess":
        return subprocess.run(command).returncode
    if how == "shell":
        return subprocess.run("sleep 1000", shell=True).returncode
    if how == "system":
        return os.waitstatus_to_exitcode(os.system("sleep 1000"))
    if how == "posix_spawn":
        pid = os.posix_spawn("/bin/sleep", command, os.environ)
    else:
        pid = os.fork()
        if pid == 0:
            os.execvp("sleep", command)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run_python():
    """A Python that a job starts raises KeyboardInterrupt, as ever."""
    # In pieces: Python learns of a signal that comes right before a system call only when that returns.
    program = (
        "import time\n"
        "try:\n"
        "    print('running', flush=True)\n"
        "    while True: time.sleep(0.1)\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted', flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        say(process.stdout.readline().decode().strip())
        return process.stdout.read()


def with_pool():
    """Processes that multiprocessing forks off a worker are copies of it, so they swallow Ctrl+C too."""
    import multiprocessing

    with multiprocessing.get_context("fork").Pool(2) as pool:
        say("running")
        return pool.map(sleep_quietly, [0.5] * 4)


def sleep_quietly(seconds):
    time.sleep(seconds)
    return seconds


def alarm():
    class Alarmed(Exception):
        pass

    def handler(number, frame):
        raise Alarmed

    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        while True:
            pass
    except Alarmed:
        return "alarmed"


handled = []


def install_handler():
    signal.signal(signal.SIGUSR1, lambda number, frame: handled.append(number))
    return os.getpid()


def get_handled():
    return handled


def take_interrupts_back():
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(1000)


def masks():
    """What a program that is started here is started with: blocked and ignored signals."""
    lines = subprocess.run(["cat", "/proc/self/status"], stdout=subprocess.PIPE, check=True).stdout.decode().splitlines()
    return [line for line in lines if line.startswith(("SigBlk", "SigIgn"))]


def masks_unrestored():
    lines = (
        subprocess.run(["cat", "/proc/self/status"], stdout=subprocess.PIPE, check=True, restore_signals=False)
        .stdout.decode()
        .splitlines()
    )
    return [line for line in lines if line.startswith(("SigBlk", "SigIgn"))]


def at_exit_say(text):
    import atexit

    atexit.register(say, text)
    return os.getpid()


def at_exit_sleep():
    import atexit

    atexit.register(time.sleep, 1000)


def dispositions():
    """What Python knows of each signal's handler; SIGINT's is the worker's own."""
    found = {number: signal.getsignal(number) for number in sorted(signal.valid_signals())}
    return {int(number): repr(handler) for number, handler in found.items() if number != signal.SIGINT}


def save_and_put_back():
    """As a critical section does it, for each signal that may have a handler. How often the handlers ran."""
    ran = []
    for number in sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}):
        if signal.getsignal(number) is None:  # A handler that is not Python's, of a program of which this is a fork.
            ran.append(number)
            continue
        before = signal.signal(number, lambda number, frame: ran.append(number))
        if number < 32:
            signal.raise_signal(number)
        signal.signal(number, before)
        assert signal.getsignal(number) == before
    return len(ran)


def leave_everything():
    import socket

    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    kept.extend((ours, theirs))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    signal.set_wakeup_fd(theirs.fileno())
    signal.setitimer(signal.ITIMER_REAL, 1000)
    signal.setitimer(signal.ITIMER_VIRTUAL, 1000)
    signal.setitimer(signal.ITIMER_PROF, 1000)


kept = []


def what_is_left():
    timers = [signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF]
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    running = [signal.getitimer(timer)[0] > 0 for timer in timers]
    signal.raise_signal(signal.SIGINT)
    return sorted(blocked), running, signal.set_wakeup_fd(-1)


def block_and_set_in_init():
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    signal.setitimer(signal.ITIMER_PROF, 1000)


def handle_into(path):
    """Each SIGUSR1 adds a byte to the file."""

    def handler(number, frame):
        with open(path, "ab") as file:
            file.write(b"x")

    signal.signal(signal.SIGUSR1, handler)
    return os.getpid()

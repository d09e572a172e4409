"""Jobs of everything.py."""

import os
import subprocess
import sys
import time


class Unpicklable(Exception):
    def __init__(self, one, two):
        super().__init__(one)


def fail():
    try:
        raise ValueError("inner")
    except ValueError as error:
        raise KeyError("outer") from error


def fail_strangely():
    raise Unpicklable(1, 2)


def die():
    os._exit(7)


def sleep(seconds):
    time.sleep(seconds)


def start_child():
    return subprocess.run([sys.executable, "-c", "print(5)"], capture_output=True, check=True).stdout


def large(data):
    return data


def import_multiprocessing():
    import multiprocessing

    return multiprocessing.parent_process() is not None


def true():
    return True

"""Jobs of predecessor_contract.py. In a module of their own, as trio-parallel sends what is in __main__ by value."""

import atexit
import os
import time


def sleep_at_exit():
    atexit.register(time.sleep, 1000)


def exit_hard():
    os._exit(7)


def raise_value_error():
    raise ValueError("a message", os.getpid())


state = []


def initialise():
    state.append("ready")


def get_state():
    return list(state)


def true():
    return True


def after_two():
    state.append("used")
    return state.count("used") >= 2

"""A main script with every kind of thing that travels to a worker and back. It runs in whatever form it is started.

Each time it is loaded it adds a line to the file that LOADS names: the process, and the name that it was loaded under.
"""

import dataclasses
import enum
import functools
import os
import sys
from typing import NamedTuple

with open(os.environ["LOADS"], "a") as _file:
    _file.write(f"{os.getpid()} {__name__}\n")

FOLDER = os.getcwd()
counter = 0


@dataclasses.dataclass
class Point:
    x: int
    y: "int" = 0

    def moved(self, by):
        return type(self)(self.x + by, self.y)

    class Inner:
        value = 5

    @classmethod
    def origin(cls):
        return cls(0, 0)


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Pair(NamedTuple):
    one: int
    two: str


class Trouble(Exception):
    def __init__(self, what, number):
        super().__init__(what, number)
        self.number = number


class Thing:
    def __init__(self, value):
        self.value = value

    def __call__(self, add):
        return Thing(self.value + add)


class Singleton:
    def __reduce__(self):
        return "THE_ONE"


THE_ONE = Singleton()


def double(point):
    return Point(point.x * 2, point.y * 2)


def is_one(value, kind):
    return isinstance(value, kind), type(value) is kind


def get(name):
    return globals()[name]


def fail(number):
    try:
        raise Trouble("inner", number)
    except Trouble as error:
        raise KeyError("outer") from error


def count():
    global counter
    counter += 1
    return counter, globals()["counter"], sys.modules[count.__module__].counter


def pickled():
    import pickle

    return pickle.dumps([Point(1, 2), double])


def unpickled(data):
    import pickle

    point, function = pickle.loads(data)
    return type(point) is Point and function is double


def names():
    return Point.__module__, double.__module__, Trouble.__module__


def nested(depth):
    if depth == 0:
        return Point(7, 7)
    import trio

    import trio_offload

    return trio.run(trio_offload.run_sync, nested, depth - 1)


def loads():
    with open(os.environ["LOADS"]) as file:
        return len(file.readlines())


async def main():

    import trio_offload

    if "--chdir" in sys.argv:
        os.chdir("/")
    async with trio_offload.open_worker_context() as context:
        run = context.run_sync
        # What names nothing of this script does not load it.
        assert await run(divmod, 7, 2) == (3, 1)
        assert await run(os.path.join, "a", "b") == "a/b"
        assert loads() == 1
        point = await run(double, Point(1, 2))
        assert type(point) is Point
        assert point == Point(2, 4)
        assert type(await run(get, "Point")) is type
        assert await run(get, "Point") is Point
        assert await run(get, "double") is double
        assert await run(is_one, point, Point) == (True, True)
        assert await run(is_one, Thing(1), Thing) == (True, True)
        assert await run(get, "THE_ONE") is THE_ONE
        assert await run(is_one, THE_ONE, Singleton) == (True, True)
        assert (await run(Thing(3), 4)).value == 7
        assert await run(Point(1).moved, 5) == Point(6)
        assert await run(Point.origin) == Point(0)
        assert type(await run(Point.Inner)) is Point.Inner
        assert await run(get, "Colour") is Colour
        assert await run(Colour, 2) is Colour.BLUE
        assert await run(Pair, 1, "b") == Pair(1, "b")
        assert type(await run(Pair, 1, "b")) is Pair
        assert await run(functools.partial(Point, y=9), 8) == Point(8, 9)
        assert await run(list, map(double, [Point(1), Point(2)])) == [Point(2), Point(4)]
        cause = None
        try:
            await run(fail, 5)
        except KeyError as error:
            cause = error.__cause__
        assert type(cause) is Trouble
        assert cause.number == 5
        assert [await run(count) for _ in range(3)] == [(1, 1, 1), (2, 2, 2), (3, 3, 3)]
        assert counter == 0
        import pickle

        assert unpickled(await run(pickled))
        assert await run(unpickled, await run(pickled))
        assert await run(unpickled, pickle.dumps([Point(3), double]))
        assert set(await run(names)) == {"__main__"}
        assert b"__mp_main__" not in await run(pickled)
        assert type(await run(nested, 1)) is Point
    # An argument's class is enough to need the script, in a worker that has not loaded it: as __main__ and as __mp_main__.
    async with trio_offload.open_worker_context() as context:
        assert await context.run_sync(len, [Point(1), Point(2)]) == 2
    async with trio_offload.open_worker_context() as context:
        assert len(await context.run_sync(pickle.loads, pickle.dumps([Point(3), double]))) == 2
    async with trio_offload.open_worker_context() as context:
        data = pickle.dumps([Point(3), double], 2).replace(b"__main__", b"__mp_main__")
        assert len(await context.run_sync(pickle.loads, data)) == 2
    async with trio_offload.open_worker_context(init=get_ready, retire=never) as context:
        assert await context.run_sync(get, "ready") is True
    print("all held")


ready = False


def get_ready():
    global ready
    ready = True


def never():
    return False


if __name__ == "__main__":
    import trio

    trio.run(main)

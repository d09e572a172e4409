"""``from_worker.job()``: the job of a thread, to which other threads can be bound."""

from __future__ import annotations

from .. import PublicType, publish
from .line import is_worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn


class Job(metaclass=PublicType):
    """The running job. Made by :func:`job`.

    ::

        def upload(job, path):
            job.adopt()
            from_worker.run_sync(print, path, "is uploaded")

        def work(path):
            thread = threading.Thread(target=upload, args=(from_worker.job(), path))
            thread.start()
            thread.join()
    """

    _is_constructible = False

    def __init__(self, call: int, token: Any) -> None:
        self._call = call
        self._token = token

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("a Job cannot be pickled or copied: it works in its own process only")

    def adopt(self) -> None:
        """Bind this thread to the job.

        A thread belongs to the job in which it first talked to the parent. A thread that serves one
        job after the other needs this for each.

        Raises:
            JobEndedError: The job has ended.
        """
        if is_worker():
            from .requests import bind_thread

            bind_thread(self._call)
        else:
            from .trio_threads import adopt

            adopt(self._token)


def job() -> Job:
    """Return the job that runs in this thread.

    ::

        def convert_all(paths):
            adopt = from_worker.job().adopt
            with ThreadPoolExecutor(initializer=adopt) as pool:
                return list(pool.map(convert, paths))

    Raises:
        JobEndedError: The job of this thread has ended.
        RuntimeError: This is not a job.
    """
    if is_worker():
        from .requests import running_call

        return Job(running_call(), None)
    from .trio_threads import current_token

    return Job(0, current_token())


publish("trio_offload_worker.from_worker", Job, job)

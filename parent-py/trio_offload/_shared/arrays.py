"""``SharedArray``: an array in memory that this program and its jobs share."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, cast

import trio

from trio_offload_worker._system.shared_memory import import_numpy

from .._pickling.payload import Grant
from .._sync.descriptors import DescriptorHandle
from .dtypes import Layout, layout_of
from .files import SharedFile

if TYPE_CHECKING:
    from typing_extensions import Self

    import trio_offload_worker.handles as JobHandles  # noqa: N812


class SharedArray(DescriptorHandle):
    """An array in memory that this program and its jobs share, without a copy.

    ::

        with trio_offload.SharedArray.allocate((1000, 1000), "float64") as shared:
            await trio_offload.run_sync(fill, shared)  # in the job: `shared.array[:] = 1`
            print(shared.array[0, 0])

    Make one by :meth:`allocate` or :meth:`copy_of`, pass it to jobs as an argument, and use
    :attr:`array` on both sides. It does not synchronize: pass a :class:`Lock` too where jobs write
    to the same items. The memory has no name. It is freed with its last user, however that ends.
    """

    _is_constructible = False

    kind: ClassVar[str] = "shared_array"

    @property
    def handle(self) -> JobHandles.SharedArray:
        """This object with the type that a job sees. Its methods work in every thread."""
        return cast("JobHandles.SharedArray", self)

    def __init__(self, file: SharedFile | None = None, layout: Layout | None = None) -> None:
        if not isinstance(file, SharedFile) or not isinstance(layout, Layout):
            raise TypeError("make one by SharedArray.allocate(shape, dtype) or SharedArray.copy_of(array)")
        super().__init__()
        self._file = file
        self._layout = layout
        self._read_only: SharedArray | None = None

    @classmethod
    def allocate(cls, shape: int | Iterable[int], dtype: Any = "uint8", *, order: str = "C") -> SharedArray:
        """Return a new array of zeros. The system takes pages for it once they are written to.

        Args:
            shape: The length, or the dimensions.
            dtype: As for NumPy. Without NumPy: a name such as ``"float64"``, a code of the module
                ``struct``, or ``float``, ``int`` or ``bool``.
            order: ``"F"`` for Fortran's order.

        Raises:
            MemoryError: The system refuses that much.
            TypeError: Items of this dtype are objects.
        """
        shared = cls._create(layout_of(shape, dtype, order))
        shared._file.seal()
        return shared

    @classmethod
    def _create(cls, layout: Layout) -> SharedArray:
        return cls(SharedFile.create(layout.size), layout)

    @classmethod
    def copy_of(cls, array: Any, *, read_only: bool = False) -> SharedArray:
        """Return a new array with the items of another, in the same order of memory.

        Args:
            array: A NumPy array, or an object with a buffer such as ``bytes``. With NumPy, anything
                that ``numpy.asarray`` takes.
            read_only: True for a copy that the system keeps constant, also in this program.

        Raises:
            MemoryError, TypeError: As :meth:`allocate`.
        """
        numpy = import_numpy()
        if numpy is None or isinstance(array, bytes):  # NumPy has one item for all bytes
            shared = cls._copy_of_buffer(_buffer_of(array))
        else:
            shared = cls._copy_of_array(numpy.asarray(array))
        if read_only:
            shared._file.freeze()
        else:
            shared._file.seal()
        return shared

    @classmethod
    def _copy_of_array(cls, source: Any) -> SharedArray:
        order = "F" if source.flags.f_contiguous and not source.flags.c_contiguous else "C"
        shared = cls._create(layout_of(source.shape, source.dtype, order))
        shared.array[...] = source
        return shared

    @classmethod
    def _copy_of_buffer(cls, source: Any) -> SharedArray:
        shared = cls._create(layout_of(source.shape, source.format.lstrip("@"), "C"))
        if shared.nbytes:
            contents = source if source.c_contiguous else memoryview(source.tobytes())
            memoryview(shared._file.mapping.memory)[: shared.nbytes] = contents.cast("B")
        return shared

    @property
    def array(self) -> Any:
        """A new view, as a NumPy array, or as a memoryview if NumPy is not installed.

        The memory stays mapped as long as a view is in use.

        Raises:
            ClosedResourceError: It is closed.
        """
        self.fileno()
        return self._file.mapping.view(self._layout.shape, self._layout.dtype, self._layout.order)

    @property
    def read_only(self) -> SharedArray:
        """The same memory for reading only. Jobs that get this cannot map it for writing.

        Raises:
            ClosedResourceError: It is closed.
        """
        self.fileno()
        if self._file.is_read_only:
            return self
        if self._read_only is None or self._read_only._file.fileno() < 0:
            self._read_only = SharedArray(self._file.reopened(), self._layout)
        return self._read_only

    @property
    def is_read_only(self) -> bool:
        """True if it can be mapped for reading only."""
        return self._file.is_read_only

    @property
    def shape(self) -> tuple[int, ...]:
        """The dimensions."""
        return self._layout.shape

    @property
    def nbytes(self) -> int:
        """Size of the items in bytes."""
        return self._layout.size

    def close(self) -> None:
        """Unmap the memory in this program. Jobs that have mapped it keep it.

        Raises:
            BufferError: A view is in use. Nothing is closed then.
        """
        try:
            self._file.close()
        except BufferError:
            raise BufferError("a view of this shared array is still in use; drop the view first") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.close()
        except BufferError:
            # The frames of an exception may hold views. It is the one to be seen.
            if exc_type is None:
                raise

    def __repr__(self) -> str:
        dtype = "structured items" if isinstance(self._layout.dtype, bytes) else self._layout.dtype
        state = "closed" if self._file.fileno() < 0 else "read-only" if self.is_read_only else "writable"
        return f"<trio_offload.SharedArray of {self._layout.shape}, {dtype}, {state}>"

    def fileno(self) -> int:
        """Return the number of the memory's descriptor.

        Raises:
            ClosedResourceError: It is closed.
        """
        number = self._file.fileno()
        if number < 0:
            raise trio.ClosedResourceError("this shared array is closed")
        return number

    def details(self, grant: Grant | None) -> tuple[Any, ...]:
        """As :meth:`Handle.details`: layout, size of the file, is it read-only?"""
        layout = self._layout
        return layout.shape, layout.dtype, layout.order, self._file.size, self._file.is_read_only


def _buffer_of(array: Any) -> memoryview:
    try:
        return memoryview(array)
    except TypeError:
        raise TypeError(
            f"array must be an object with a buffer such as an array.array, because NumPy is not installed, got {array!r}"
        ) from None

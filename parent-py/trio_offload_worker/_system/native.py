"""Functions that only ctypes reaches. All are optional; they make large payloads faster."""

from __future__ import annotations

import mmap
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

    Target = tuple[memoryview, Callable[[], Any]]
    """A view to fill, and a function that returns the object once it is filled."""

MADV_HUGEPAGE: Final[int | None] = getattr(mmap, "MADV_HUGEPAGE", None)
_PAGE: Final = os.sysconf("SC_PAGESIZE")
_SPLICE_F_NONBLOCK: Final = 2
_PYBUF_WRITE: Final = 0x200  # Include/cpython/pybuffer.h (Include/cpython/object.h before 3.11)


class Native:
    """The functions, with fallbacks where ctypes or the function is missing."""

    def __init__(self) -> None:
        try:
            import ctypes
        except ImportError:
            self._ctypes: Any = None
            return
        self._ctypes = ctypes
        self._view_type = _view_type()
        library = ctypes.CDLL(None, use_errno=True)
        self._madvise = _function(library, "madvise", ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        self._vmsplice = _function(
            library, "vmsplice", ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint
        )
        self._new_bytes = _function(
            ctypes.pythonapi, "PyBytes_FromStringAndSize", ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t
        )
        self._address_of_bytes = _function(ctypes.pythonapi, "PyBytes_AsString", ctypes.c_void_p, ctypes.py_object)
        self._view_of = _function(
            ctypes.pythonapi, "PyMemoryView_FromMemory", ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int
        )
        self._new_bytearray = _function(
            ctypes.pythonapi, "PyByteArray_FromStringAndSize", ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t
        )

    def advise_huge_pages(self, memory: memoryview) -> None:
        """Ask for huge pages for memory that has not been written yet (madvise(2))."""
        if self._ctypes is None or self._madvise is None or MADV_HUGEPAGE is None:
            return
        address = self._ctypes.addressof(self._ctypes.c_char.from_buffer(memory))
        begin = -(-address // _PAGE) * _PAGE
        end = (address + memory.nbytes) // _PAGE * _PAGE
        if begin < end:
            # A failure only costs speed.
            self._madvise(begin, end - begin, MADV_HUGEPAGE)

    def new_bytes(self, size: int) -> Target | None:
        """Return an uninitialized ``bytes`` object with a view to fill it (Doc/c-api/bytes.rst).

        None means that this Python cannot. The view does not keep the object alive; the function
        that returns the object does.

        Raises:
            MemoryError, OverflowError: too little memory is left.
        """
        if self._ctypes is None or None in (self._new_bytes, self._address_of_bytes, self._view_of):
            return None
        made: bytes = self._new_bytes(None, size)
        view: memoryview = self._view_of(self._address_of_bytes(made), size, _PYBUF_WRITE)
        self.advise_huge_pages(view)

        def take() -> bytes:
            view.release()
            return made

        return view, take

    def new_bytearray(self, size: int) -> bytearray:
        """Return an uninitialized bytearray. ``bytearray(size)`` would write zeros.

        Its source is Objects/bytearrayobject.c.

        Raises:
            MemoryError, OverflowError, OSError: too little memory is left.
        """
        if self._ctypes is None or self._new_bytearray is None:
            return bytearray(size)
        # Map the memory once before. If it is missing, Python 3.11 crashes:
        # Objects/bytearrayobject.c frees an object that it has not initialized.
        mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
        made: bytearray = self._new_bytearray(None, size)
        with memoryview(made) as view:
            self.advise_huge_pages(view)
        return made

    def can_splice(self) -> bool:
        """Return True if :meth:`vmsplice` may work."""
        return self._ctypes is not None and self._vmsplice is not None and hasattr(os, "splice")

    def address_of(self, memory: memoryview) -> int:
        """Return the address of memory, also of read-only memory."""
        ctypes = self._ctypes
        view = self._view_type()
        get = ctypes.pythonapi.PyObject_GetBuffer
        get.argtypes, get.restype = [ctypes.py_object, ctypes.c_void_p, ctypes.c_int], ctypes.c_int
        get(memory, ctypes.byref(view), 0)
        address: int = view.buf
        release = ctypes.pythonapi.PyBuffer_Release
        release.argtypes, release.restype = [ctypes.c_void_p], None
        release(ctypes.byref(view))
        return address

    def vmsplice(self, pipe: int, address: int, size: int) -> int:
        """Move pages at ``address`` into a pipe. Return the number of bytes taken (vmsplice(2)).

        Raises:
            OSError: the system call failed.
        """
        ctypes = self._ctypes
        part = (ctypes.c_size_t * 2)(address, size)
        count: int = self._vmsplice(pipe, ctypes.byref(part), 1, _SPLICE_F_NONBLOCK)
        if count < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return count


def native() -> Native:
    """Return the functions. The first call imports ctypes."""
    if not _found:
        # Two threads may both create one; either serves.

        _found.append(Native())
    return _found[0]


_found: Final[list[Native]] = []


def _function(library: Any, name: str, result: Any, *arguments: Any) -> Any:
    try:
        function = library[name]
    except (AttributeError, TypeError):
        return None
    function.restype, function.argtypes = result, list(arguments)
    return function


def _view_type() -> Any:
    """Return ``Py_buffer`` (Include/cpython/pybuffer.h), stable ABI since 3.11, equal before."""
    import ctypes

    class View(ctypes.Structure):
        _fields_ = (
            ("buf", ctypes.c_void_p),
            ("obj", ctypes.c_void_p),
            ("len", ctypes.c_ssize_t),
            ("itemsize", ctypes.c_ssize_t),
            ("readonly", ctypes.c_int),
            ("ndim", ctypes.c_int),
            ("format", ctypes.c_void_p),
            ("shape", ctypes.c_void_p),
            ("strides", ctypes.c_void_p),
            ("suboffsets", ctypes.c_void_p),
            ("internal", ctypes.c_void_p),
        )

    return View

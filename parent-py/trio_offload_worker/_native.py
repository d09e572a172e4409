"""What is to be had through ctypes only. Each of it makes large payloads faster, and nothing else: all may be missing."""

from __future__ import annotations

import mmap
import os

from ._memory import MADV_HUGEPAGE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from ._memory import Target


class Native:
    """The functions, or what stands in for them where there is no ctypes, or no such function."""

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
        """Ask for huge pages behind memory that is about to be written for the first time (madvise(2))."""
        if self._ctypes is None or self._madvise is None or MADV_HUGEPAGE is None:
            return
        address = self._ctypes.addressof(self._ctypes.c_char.from_buffer(memory))
        begin = -(-address // _PAGE) * _PAGE
        end = (address + memory.nbytes) // _PAGE * _PAGE
        if begin < end:
            # Where it fails the memory is as good, only slower.
            self._madvise(begin, end - begin, MADV_HUGEPAGE)

    def new_bytes(self, size: int) -> Target | None:
        """A bytes object that holds anything, and a view to fill it by before anybody sees it (Doc/c-api/bytes.rst).

        None: not to be had. The view does not keep the object, what takes it does.

        Raises:
            MemoryError, OverflowError: there is not so much memory.
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
        """A bytearray that holds anything: Python's own way would write zeros first (Objects/bytearrayobject.c).

        Raises:
            MemoryError, OverflowError, OSError: there is not so much memory.
        """
        if self._ctypes is None or self._new_bytearray is None:
            return bytearray(size)
        # Where there is not so much memory Python itself stumbles (3.11's Objects/bytearrayobject.c lets go of an object that it
        # has not filled in), so that is found out before.
        mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
        made: bytearray = self._new_bytearray(None, size)
        with memoryview(made) as view:
            self.advise_huge_pages(view)
        return made

    def can_splice(self) -> bool:
        """Whether :meth:`vmsplice` may work."""
        return self._ctypes is not None and self._vmsplice is not None and hasattr(os, "splice")

    def address_of(self, memory: memoryview) -> int:
        """Where it lies, also if it cannot be written to."""
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
        """Put the pages at ``address`` into a pipe, as many of ``size`` bytes as it takes (vmsplice(2)).

        Raises:
            OSError: as the system says.
        """
        ctypes = self._ctypes
        part = (ctypes.c_size_t * 2)(address, size)
        count: int = self._vmsplice(pipe, ctypes.byref(part), 1, _SPLICE_F_NONBLOCK)
        if count < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return count


def native() -> Native:
    """The functions; ctypes is imported when they are asked for first."""
    if not _found:
        # Two threads may both come here: then either is as good.
        _found.append(Native())
    return _found[0]


_found: Final[list[Native]] = []


_PAGE: Final = os.sysconf("SC_PAGESIZE")
_SPLICE_F_NONBLOCK: Final = 2
_PYBUF_WRITE: Final = 0x200  # Include/cpython/pybuffer.h (Include/cpython/object.h before 3.11)


def _function(library: Any, name: str, result: Any, *arguments: Any) -> Any:
    try:
        function = library[name]
    except (AttributeError, TypeError):
        return None
    function.restype, function.argtypes = result, list(arguments)
    return function


def _view_type() -> Any:
    """``Py_buffer`` (Include/cpython/pybuffer.h; part of the stable ABI since 3.11, and the same before)."""
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

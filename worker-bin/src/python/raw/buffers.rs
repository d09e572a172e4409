//! Memory that is read and written without the GIL.

use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

use pyo3::buffer::PyUntypedBuffer;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyMemoryView;
use trio_offload_worker::os;
use trio_offload_worker::protocol::segments::SegmentType;
use trio_offload_worker::transport::Storage;
use trio_offload_worker::transport::buffer_pool::{Region, Regions};

/// Memory of an object that nobody else has seen yet, so that it can be written without the GIL.
pub(crate) enum NewBytes {
    /// A `bytes` or a `bytearray`.
    Object { object: Py<PyAny>, memory: NonNull<MaybeUninit<u8>>, length: usize },
    /// What becomes a `memoryview`.
    Region(Region),
}

/// From this size on the memory is asked for in huge pages.
const HUGE: usize = 1 << 20;

impl NewBytes {
    /// `None`: there is not so much memory.
    pub(crate) fn allocate(py: Python<'_>, length: usize, kind: SegmentType, regions: &Regions) -> Option<Self> {
        let size = ffi::Py_ssize_t::try_from(length).ok()?;
        let (pointer, place): (_, unsafe extern "C" fn(*mut ffi::PyObject) -> *mut std::ffi::c_char) = match kind {
            SegmentType::Memory if length >= HUGE => return regions.take(length).map(Self::Region),
            // Where there is not so much memory Python itself stumbles: it lets go of a bytearray that it has not filled in
            // (Objects/bytearrayobject.c, PyByteArray_FromStringAndSize). So that is found out before.
            SegmentType::ByteArray if length >= HUGE && os::memory::Mapping::new(length).is_none() => return None,
            // SAFETY: the thread is attached; a null pointer asks for memory that is not written, and an object that was made so
            // may be written to as long as nobody else has it (Doc/c-api/bytes.rst, PyBytes_AsString).
            SegmentType::Bytes => (unsafe { ffi::PyBytes_FromStringAndSize(std::ptr::null(), size) }, ffi::PyBytes_AsString),
            SegmentType::Memory | SegmentType::ByteArray => {
                // SAFETY: as above (Objects/bytearrayobject.c).
                (unsafe { ffi::PyByteArray_FromStringAndSize(std::ptr::null(), size) }, ffi::PyByteArray_AsString)
            }
        };
        // SAFETY: a new reference, or null with a MemoryError set, which `from_owned_ptr_or_err` takes.
        let object = unsafe { Bound::from_owned_ptr_or_err(py, pointer) }.ok()?;
        // SAFETY: the object is of the type whose function this is.
        let memory = NonNull::new(unsafe { place(object.as_ptr()) })?.cast();
        let mut new = Self::Object { object: object.unbind(), memory, length };
        if length >= HUGE {
            os::memory::advise_huge_pages(new.memory());
        }
        Some(new)
    }

    pub(crate) fn into_object(self, py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
        match self {
            Self::Object { object, .. } => Ok(object.into_bound(py)),
            Self::Region(mut region) => {
                let memory = region.memory();
                let address = NonNull::from(memory).cast();
                let exporter = Bound::new(py, Exporter { address: Address(address), region })?;
                Ok(PyMemoryView::from(exporter.as_any())?.into_any())
            }
        }
    }
}

impl Storage for NewBytes {
    fn memory(&mut self) -> &mut [MaybeUninit<u8>] {
        match self {
            // An empty `bytes` is one for all, which nobody writes to.
            Self::Object { length: 0, .. } => &mut [],
            // SAFETY: the object has this many bytes at this place. A bytearray keeps them there until somebody resizes it, which
            // nobody can: the only reference to it is in here, and neither type is tracked by the garbage collector.
            Self::Object { memory, length, .. } => unsafe { std::slice::from_raw_parts_mut(memory.as_ptr(), *length) },
            Self::Region(region) => region.memory(),
        }
    }
}

struct Address(NonNull<u8>);

// SAFETY: a number, as long as nobody follows it; who does says why that may be.
unsafe impl Send for Address {}

// SAFETY: as above.
unsafe impl Sync for Address {}

/// A region as an object with the buffer protocol.
#[pyclass(frozen, module = "trio_offload_worker")]
struct Exporter {
    address: Address,
    region: Region,
}

#[pymethods]
impl Exporter {
    /// # Safety
    /// `view` is what Python gives to `bf_getbuffer`.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let exporter = slf.get();
        let length = ffi::Py_ssize_t::try_from(exporter.region.length())?;
        // SAFETY: the region stays at its address as long as this object lives, and the view holds a reference to the object. Its
        // bytes have all been received by now, and from now on only those reach them who have a view. `view` is Python's own.
        let status = unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), exporter.address.0.as_ptr().cast(), length, 0, flags) };
        if status == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }
}

/// Memory of a Python object that is held in place, so that it can be sent without the GIL.
pub(crate) struct HeldBytes(PyUntypedBuffer);

impl HeldBytes {
    /// Any contiguous object with the buffer protocol.
    pub(crate) fn hold(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let buffer = PyUntypedBuffer::get(object)?;
        if buffer.is_c_contiguous() || buffer.is_fortran_contiguous() {
            Ok(Self(buffer))
        } else {
            Err(pyo3::exceptions::PyBufferError::new_err("the buffer is not contiguous"))
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        let pointer = self.0.buf_ptr().cast::<u8>();
        if pointer.is_null() || self.0.len_bytes() == 0 {
            return &[];
        }
        // SAFETY: the exporter keeps the memory in place and at its size while the buffer is held. That another thread of
        // the user's may write to it meanwhile is the same for every `socket.send` of Python's own; the bytes are only
        // handed to the kernel.
        unsafe { std::slice::from_raw_parts(pointer, self.0.len_bytes()) }
    }
}

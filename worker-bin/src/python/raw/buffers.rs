//! Memory of Python objects that is read and written without the GIL.

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
use trio_offload_worker::transport::buffer_pool::{BufferPool, PooledBuffer};

/// Size from which huge pages are requested.
const HUGE: usize = 1 << 20;

/// Memory of an object that no other code has seen, so that it can be written without the GIL.
pub(crate) enum NewBytes {
    /// A `bytes` or a `bytearray`.
    Object { object: Py<PyAny>, memory: Address, length: usize },
    /// Becomes a `memoryview`.
    Pooled(PooledBuffer),
}

impl NewBytes {
    /// Return `None` if out of memory.
    pub(crate) fn allocate(py: Python<'_>, length: usize, kind: SegmentType, pool: &BufferPool) -> Option<Self> {
        let size = ffi::Py_ssize_t::try_from(length).ok()?;
        let (pointer, place): (_, unsafe extern "C" fn(*mut ffi::PyObject) -> *mut std::ffi::c_char) = match kind {
            SegmentType::Memory if length >= HUGE => return pool.take(length).map(Self::Pooled),
            // Out of memory, Python drops a `bytearray` that it has not initialised
            // (Objects/bytearrayobject.c, PyByteArray_FromStringAndSize). So try the allocation
            // first.
            SegmentType::ByteArray if length >= HUGE && os::memory::Mapping::new(length).is_none() => return None,
            // SAFETY: the thread is attached; a null pointer asks for memory that is not written,
            // and an object that was made so may be written to as long as nobody else has it
            // (Doc/c-api/bytes.rst, PyBytes_AsString).
            SegmentType::Bytes => (unsafe { ffi::PyBytes_FromStringAndSize(std::ptr::null(), size) }, ffi::PyBytes_AsString),
            SegmentType::Memory | SegmentType::ByteArray => {
                // SAFETY: as above (Objects/bytearrayobject.c).
                (unsafe { ffi::PyByteArray_FromStringAndSize(std::ptr::null(), size) }, ffi::PyByteArray_AsString)
            }
        };
        // SAFETY: a new reference, or null with a MemoryError set, which `from_owned_ptr_or_err`
        // takes.
        let object = unsafe { Bound::from_owned_ptr_or_err(py, pointer) }.ok()?;
        // SAFETY: the object is of the type whose function this is.
        let memory = Address(NonNull::new(unsafe { place(object.as_ptr()) })?.cast());
        let mut new = Self::Object { object: object.unbind(), memory, length };
        if length >= HUGE {
            os::memory::advise_huge_pages(new.memory());
        }
        Some(new)
    }

    pub(crate) fn into_object(self, py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
        match self {
            Self::Object { object, .. } => Ok(object.into_bound(py)),
            Self::Pooled(mut buffer) => {
                let memory = buffer.memory();
                let address = NonNull::from(memory).cast();
                let exporter = Bound::new(py, Exporter { address: Address(address), buffer })?;
                Ok(PyMemoryView::from(exporter.as_any())?.into_any())
            }
        }
    }
}

impl Storage for NewBytes {
    fn memory(&mut self) -> &mut [MaybeUninit<u8>] {
        match self {
            // All empty `bytes` are one object, which must not be written to.
            Self::Object { length: 0, .. } => &mut [],
            // SAFETY: the object has this many bytes at this place. A bytearray keeps them there
            // until it is resized. The only reference to it is here, and the garbage collector
            // tracks neither type.
            Self::Object { memory, length, .. } => unsafe { std::slice::from_raw_parts_mut(memory.0.cast().as_ptr(), *length) },
            Self::Pooled(buffer) => buffer.memory(),
        }
    }
}

pub(crate) struct Address(NonNull<u8>);

// SAFETY: a number, unless it is dereferenced; that place has its own reason.
unsafe impl Send for Address {}

// SAFETY: as above.
unsafe impl Sync for Address {}

/// A pooled buffer as an object with the buffer protocol.
#[pyclass(frozen, module = "trio_offload_worker")]
struct Exporter {
    address: Address,
    buffer: PooledBuffer,
}

#[pymethods]
impl Exporter {
    /// # Safety
    /// `view` is an argument of `bf_getbuffer`.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let exporter = slf.get();
        let length = ffi::Py_ssize_t::try_from(exporter.buffer.length())?;
        // SAFETY: the buffer stays at its address as long as this object lives, and the view holds
        // a reference to the object. All bytes have been received, and from now on only views reach
        // them. `view` is Python's own.
        let status = unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), exporter.address.0.as_ptr().cast(), length, 0, flags) };
        if status == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }
}

/// Memory of a Python object, held in place so that it can be sent without the GIL.
pub(crate) struct HeldBytes(PyUntypedBuffer);

impl HeldBytes {
    /// Hold any contiguous object with the buffer protocol.
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
        // SAFETY: the exporter keeps the memory in place and at its size while the buffer is held.
        // Another thread of the user may write to it at the same time, as with any `socket.send` in
        // Python; the bytes are only passed to the kernel.
        unsafe { std::slice::from_raw_parts(pointer, self.0.len_bytes()) }
    }
}

//! Calls of Python's C interface that pyo3 lacks. All `unsafe` of the executable is in this folder.

pub(crate) mod buffers;
mod command_line;
pub(crate) mod fatal_errors;
pub(crate) mod fork;
pub(crate) mod py_config;
// The C libraries of other systems do not unwind, and newer versions of Python do not end threads.
#[cfg(all(target_os = "linux", target_env = "gnu", not(Py_3_14)))]
mod thread_exit;
pub(crate) mod version;

use std::ffi::{CStr, CString};

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyCode, PyDict, PyString, PyType};

/// Decode a string as `os.fsdecode` does: with the file system encoding, which depends on the
/// locale.
pub(crate) fn decode<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyString>> {
    let length = ffi::Py_ssize_t::try_from(bytes.len())?;
    // SAFETY: the thread is attached; the pointer and the length are a slice's, which outlives the
    // call.
    let pointer = unsafe { ffi::PyUnicode_DecodeFSDefaultAndSize(bytes.as_ptr().cast(), length) };
    // SAFETY: a new reference, or null with an exception set.
    let string = unsafe { Bound::from_owned_ptr_or_err(py, pointer) }?;
    Ok(string.cast_into()?)
}

unsafe extern "C" {
    // Include/cpython/classobject.h; pyo3 does not declare it.
    fn PyInstanceMethod_New(function: *mut ffi::PyObject) -> *mut ffi::PyObject;
}

/// Turn a callable into a method: in a class it gets the instance as its first argument.
pub(crate) fn new_method<'py>(function: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: the thread is attached, and the object is alive; it gives a new reference, or null
    // with an exception set.
    unsafe { Bound::from_owned_ptr_or_err(function.py(), PyInstanceMethod_New(function.as_ptr())) }
}

/// The dictionary behind a class of an extension module. Call [`forget_methods`] after a change.
pub(crate) fn attributes_of<'py>(class: &Bound<'py, PyType>) -> PyResult<Bound<'py, PyDict>> {
    // SAFETY: the class is alive, and it has been made ready, so it has a dictionary; only classes
    // of the interpreter itself keep theirs elsewhere (Python 3.12 and newer), which is null here
    // and an error then.
    let attributes = unsafe { Bound::from_borrowed_ptr_or_err(class.py(), (*class.as_type_ptr()).tp_dict) }?;
    Ok(attributes.cast_into()?)
}

/// Invalidate Python's method cache after a change of [`attributes_of`] a class.
pub(crate) fn forget_methods(class: &Bound<'_, PyType>) {
    // SAFETY: the thread is attached, and it is a class (Doc/c-api/type.rst: to be called after any
    // manual modification).
    unsafe { ffi::PyType_Modified(class.as_type_ptr()) }
}

/// Compile an expression.
pub(crate) fn compile_expression<'py>(py: Python<'py>, source: &CStr, file: &CStr) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: the thread is attached, and both are C strings.
    let code = unsafe { ffi::Py_CompileString(source.as_ptr(), file.as_ptr(), ffi::Py_eval_input) };
    // SAFETY: a new reference, or null with an exception set.
    unsafe { Bound::from_owned_ptr_or_err(py, code) }
}

/// Execute code as the body of a module, which is added to `sys.modules` with a `__spec__`.
pub(crate) fn execute_as_module(py: Python<'_>, name: &str, code: &Bound<'_, PyCode>) -> PyResult<()> {
    let name = CString::new(name)?;
    // SAFETY: the thread is attached, the name is a C string, and the object is a code object.
    let module = unsafe { ffi::PyImport_ExecCodeModule(name.as_ptr(), code.as_ptr()) };
    // SAFETY: a new reference, or null with an exception set.
    unsafe { Bound::from_owned_ptr_or_err(py, module) }.map(drop)
}

/// The context variables of a job, until the end of the scope: a copy of the thread's.
pub(crate) struct JobContext<'py>(Bound<'py, PyAny>);

impl<'py> JobContext<'py> {
    /// Copy the context and enter it. `part` is called with a copy that is not empty.
    pub(crate) fn enter(py: Python<'py>, part: impl FnOnce(&Bound<'py, PyAny>) -> PyResult<()>) -> PyResult<Self> {
        // SAFETY: the thread is attached; a new reference, or null with an exception set.
        let context = unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyContext_CopyCurrent()) }?;
        if context.len()? > 0 {
            part(&context)?;
        }
        // SAFETY: a context that nobody has entered.
        if unsafe { ffi::PyContext_Enter(context.as_ptr()) } == 0 { Ok(Self(context)) } else { Err(PyErr::fetch(py)) }
    }
}

impl Drop for JobContext<'_> {
    fn drop(&mut self) {
        // SAFETY: `enter` has entered it, in this thread, which is attached as long as this lives.
        if unsafe { ffi::PyContext_Exit(self.0.as_ptr()) } != 0 {
            // The job's C code has left the context already.
            let _ = PyErr::take(self.0.py());
        }
    }
}

/// True for a coroutine or an asynchronous generator, which needs an event loop.
pub(crate) fn is_asynchronous(object: &Bound<'_, PyAny>) -> bool {
    // SAFETY: both look at the type of a live object only.
    unsafe { ffi::PyCoro_CheckExact(object.as_ptr()) != 0 || ffi::PyAsyncGen_CheckExact(object.as_ptr()) != 0 }
}

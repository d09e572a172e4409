//! The Python that this executable is linked with. These work before the interpreter starts.

use std::ffi::CStr;

use pyo3::ffi;

/// True if the executable is built for a Python without a GIL (PEP 703), whose objects differ.
pub(crate) const FREE_THREADED: bool = cfg!(Py_GIL_DISABLED);

/// `sys.version`.
pub(crate) fn version() -> String {
    // SAFETY: Py_GetVersion works without an interpreter and gives a static C string
    // (Python/getversion.c).
    text(unsafe { ffi::Py_GetVersion() })
}

pub(crate) fn build() -> String {
    // SAFETY: as Py_GetVersion (Modules/getbuildinfo.c).
    text(unsafe { ffi::Py_GetBuildInfo() })
}

pub(crate) fn compiler() -> String {
    // SAFETY: as Py_GetVersion (Python/getcompiler.c).
    text(unsafe { ffi::Py_GetCompiler() })
}

pub(super) fn text(pointer: *const std::ffi::c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: the callers give C strings of Python's that stay as long as the library is loaded.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}

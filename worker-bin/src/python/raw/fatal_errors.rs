//! The stacks of all threads at a fatal error of Python.

use std::os::fd::RawFd;
use std::sync::OnceLock;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use trio_offload_worker::os;
use trio_offload_worker::protocol::front::FRONT_SIZE;

/// The function that writes Python's stacks, and the place for them.
struct Reporter {
    record: RawFd,
    /// `(record, True)`, created in advance: a dying process should not allocate.
    arguments: Py<PyTuple>,
    dump_traceback: Py<PyAny>,
}

static REPORTER: OnceLock<Reporter> = OnceLock::new();

/// Write the stacks at a fatal error of Python (`Py_FatalError`). Python disables its
/// `faulthandler` before it aborts, because it has written to standard error already
/// (Python/pylifecycle.c, fatal_error). That restores the handler which `faulthandler` had
/// replaced, and this is it.
///
/// Call this before `faulthandler` is enabled.
pub(crate) fn report_fatal_errors(record: RawFd, dump_traceback: Bound<'_, PyAny>) -> PyResult<()> {
    let arguments = (record, true).into_pyobject(dump_traceback.py())?.unbind();
    let reporter = Reporter { record, arguments, dump_traceback: dump_traceback.unbind() };
    if REPORTER.set(reporter).is_ok() {
        let handler: extern "C" fn(libc::c_int) = on_abort;
        // SAFETY: the handler lives as long as the program; see its own comments.
        unsafe { libc::signal(libc::SIGABRT, handler as libc::sighandler_t) };
    }
    Ok(())
}

extern "C" fn on_abort(signal: libc::c_int) {
    if let Some(reporter) = REPORTER.get() {
        // A library's destructor may abort when Python has ended, and then PyGILState_Check returns
        // true regardless.
        // SAFETY: Py_IsInitialized reads a number, and PyGILState_Check only compares two pointers
        // of the thread's (Python/pystate.c).
        let holds_gil = unsafe { ffi::Py_IsInitialized() != 0 && ffi::PyGILState_Check() == 1 };
        // `faulthandler` may have written first, and then called this handler.
        if holds_gil && os::descriptors::size_of(reporter.record) <= FRONT_SIZE {
            // SAFETY: this thread holds the GIL, and it is in an `abort` that Python itself has
            // called: not in the middle of an allocation, whose lock it might hold. The called C
            // code writes to a descriptor without creating objects.
            unsafe { ffi::PyObject_CallObject(reporter.dump_traceback.as_ptr(), reporter.arguments.as_ptr()) };
        }
    }
    // The signal is blocked until this handler returns; then it has its default effect.
    // SAFETY: both take integers, and may be called in a handler (signal-safety(7)).
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}

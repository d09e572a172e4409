//! The stacks of all threads when Python gives itself up.

use std::os::fd::RawFd;
use std::sync::OnceLock;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use trio_offload_worker::os;
use trio_offload_worker::process::record::PROGRESS_SIZE;

/// Where Python's stacks are written, and the function that writes them.
struct Reporter {
    record: RawFd,
    /// `(record, True)`, made beforehand: a process that dies should not have to allocate.
    arguments: Py<PyTuple>,
    dump_traceback: Py<PyAny>,
}

static REPORTER: OnceLock<Reporter> = OnceLock::new();

/// Has the stacks written when Python gives itself up (`Py_FatalError`). Python turns its `faulthandler` off before it aborts
/// then, because it has told standard error already (Python/pylifecycle.c, fatal_error); what `faulthandler` had displaced
/// comes back with that, and that is this handler.
///
/// To be called before `faulthandler` is enabled.
pub(crate) fn report_fatal_errors(record: RawFd, dump_traceback: Bound<'_, PyAny>) -> PyResult<()> {
    let arguments = (record, true).into_pyobject(dump_traceback.py())?.unbind();
    let reporter = Reporter { record, arguments, dump_traceback: dump_traceback.unbind() };
    if REPORTER.set(reporter).is_ok() {
        let handler: extern "C" fn(libc::c_int) = on_abort;
        // SAFETY: the handler lives as long as the program; what it may do is said there.
        unsafe { libc::signal(libc::SIGABRT, handler as libc::sighandler_t) };
    }
    Ok(())
}

extern "C" fn on_abort(signal: libc::c_int) {
    if let Some(reporter) = REPORTER.get() {
        // A library's destructor may abort when Python has ended, and PyGILState_Check knows no better then than to say yes.
        // SAFETY: Py_IsInitialized reads a number, and PyGILState_Check only compares two pointers of the thread's (Python/pystate.c).
        let holds_gil = unsafe { ffi::Py_IsInitialized() != 0 && ffi::PyGILState_Check() == 1 };
        // Something is there already if `faulthandler` was asked first, and has handed on to us.
        if holds_gil && os::descriptors::size_of(reporter.record) <= PROGRESS_SIZE {
            // SAFETY: this thread holds the GIL, and it is in an `abort` that Python itself has called: not in the middle of an
            // allocation, whose lock it might hold. What is called is C code that writes to a descriptor and makes no objects.
            unsafe { ffi::PyObject_CallObject(reporter.dump_traceback.as_ptr(), reporter.arguments.as_ptr()) };
        }
    }
    // The signal is blocked until this handler returns; then it does what it does to any process.
    // SAFETY: both take integers, and may be called in a handler (signal-safety(7)).
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}

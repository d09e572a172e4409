//! Forks of a process in which Python runs.

use std::ffi::c_int;
use std::os::fd::BorrowedFd;

use pyo3::ffi;
use pyo3::prelude::*;
use trio_offload_worker::os::fork::front::Front;
use trio_offload_worker::os::fork::threads::AllowedThreads;
use trio_offload_worker::os::fork::{self, ForkError, Side};
use trio_offload_worker::process::family;

/// Forks a worker off this process as `os.fork` does it: with what Python does before and after, on both sides. In the worker
/// `born` is called before any of Python's own hooks.
pub(crate) fn fork(
    _py: Python<'_>,
    birth: BorrowedFd<'_>,
    front: Option<Front>,
    allowed: &AllowedThreads,
    born: impl FnOnce(),
) -> Result<Side, ForkError> {
    // SAFETY: the thread is attached, and each call is followed by its counterpart below (Modules/posixmodule.c, os_fork_impl).
    unsafe { ffi::PyOS_BeforeFork() };
    let side = fork::fork_sibling(birth, front, allowed, family::begin, born);
    match side {
        // SAFETY: the counterpart, in the worker, whose only thread holds the GIL as it did before.
        Ok(Side::Worker) => unsafe { ffi::PyOS_AfterFork_Child() },
        // SAFETY: the counterpart where this process has gone on as it was.
        Ok(Side::Template) | Err(_) => unsafe { ffi::PyOS_AfterFork_Parent() },
    }
    side
}

/// Whether this process could fork now: does all that [`fork`] does, but for the fork itself.
pub(crate) fn rehearse_fork(_py: Python<'_>, allowed: &AllowedThreads) -> Result<(), ForkError> {
    // SAFETY: the thread is attached; the counterpart follows.
    unsafe { ffi::PyOS_BeforeFork() };
    let outcome = fork::rehearse(allowed);
    // SAFETY: the counterpart.
    unsafe { ffi::PyOS_AfterFork_Parent() };
    outcome
}

/// The frame that Python is in; `None`: no Python code runs.
pub(crate) fn current_frame(py: Python<'_>) -> Option<Bound<'_, PyAny>> {
    // SAFETY: the thread is attached; the function gives a borrowed reference or null.
    unsafe { Bound::from_borrowed_ptr_or_opt(py, ffi::PyEval_GetFrame().cast()) }
}

/// Has Python's main thread call this between two instructions, with the GIL; false: too many calls wait already.
pub(crate) fn call_soon(_py: Python<'_>, function: extern "C" fn(*mut std::ffi::c_void) -> c_int) -> bool {
    // SAFETY: the function lives as long as the program and gets a null pointer.
    unsafe { ffi::Py_AddPendingCall(Some(function), std::ptr::null_mut()) == 0 }
}

//! Forks of a process in which Python runs.

use std::ffi::c_int;
use std::os::fd::BorrowedFd;

use pyo3::ffi;
use pyo3::prelude::*;
use trio_offload_worker::os::fork::pid_slot::PidSlot;
use trio_offload_worker::os::fork::threads::AllowedThreads;
use trio_offload_worker::os::fork::{self, ForkError, Side};
use trio_offload_worker::process::family;

/// Fork a worker as `os.fork` does, with Python's own preparation and cleanup on both sides. In the
/// worker `in_worker` is called before Python's hooks.
pub(crate) fn fork(
    _py: Python<'_>,
    pid_pipe: BorrowedFd<'_>,
    pid_slot: Option<PidSlot>,
    allowed: &AllowedThreads,
    in_worker: impl FnOnce(),
) -> Result<Side, ForkError> {
    // SAFETY: the thread is attached, and each call is followed by its counterpart below
    // (Modules/posixmodule.c, os_fork_impl).
    unsafe { ffi::PyOS_BeforeFork() };
    let side = fork::fork_sibling(pid_pipe, pid_slot, allowed, family::begin, in_worker);
    match side {
        // SAFETY: the counterpart, in the worker, whose only thread holds the GIL as it did before.
        Ok(Side::Worker) => unsafe { ffi::PyOS_AfterFork_Child() },
        // SAFETY: the counterpart where this process has gone on as it was.
        Ok(Side::Template) | Err(_) => unsafe { ffi::PyOS_AfterFork_Parent() },
    }
    side
}

/// Check whether this process could fork now: [`fork`] without the fork itself.
pub(crate) fn dry_run_fork(_py: Python<'_>, allowed: &AllowedThreads) -> Result<(), ForkError> {
    // SAFETY: the thread is attached; the counterpart follows.
    unsafe { ffi::PyOS_BeforeFork() };
    let outcome = fork::dry_run(allowed);
    // SAFETY: the counterpart.
    unsafe { ffi::PyOS_AfterFork_Parent() };
    outcome
}

/// The current Python frame. `None` means that no Python code runs.
pub(crate) fn current_frame(py: Python<'_>) -> Option<Bound<'_, PyAny>> {
    // SAFETY: the thread is attached; the function gives a borrowed reference or null.
    unsafe { Bound::from_borrowed_ptr_or_opt(py, ffi::PyEval_GetFrame().cast()) }
}

/// Have Python's main thread call a function between two instructions, with the GIL. Return false
/// if the queue is full.
pub(crate) fn call_soon(_py: Python<'_>, function: extern "C" fn(*mut std::ffi::c_void) -> c_int) -> bool {
    // SAFETY: the function lives as long as the program and gets a null pointer.
    unsafe { ffi::Py_AddPendingCall(Some(function), std::ptr::null_mut()) == 0 }
}

//! Forks in jobs. The native thread is suspended for them, so that a job forks a process with one
//! thread, as in any Python.
//!
//! Python 3.12 and newer count the system's threads after a fork (Modules/posixmodule.c,
//! `warn_about_fork_with_threads`), in some versions after the hooks of `os.register_at_fork`. So a
//! pending call resumes the thread: Python makes it when the frame that called `os.fork` continues.

use std::ffi::{c_int, c_void};
use std::sync::{Mutex, PoisonError};

use pyo3::prelude::*;
use pyo3::types::{PyCFunction, PyDict, PyTuple};
use trio_offload_worker::sentinel;

use crate::python::raw;

/// The frame that called `os.fork`, and its instruction.
static CALLER: Mutex<Option<(Py<PyAny>, Py<PyAny>)>> = Mutex::new(None);

/// Register the hooks. Call this before any user code: the first hook registered is the last one
/// called before a fork.
pub(crate) fn install(py: Python<'_>) -> PyResult<()> {
    let hooks = PyDict::new(py);
    let hook = |name, work: fn(Python<'_>) -> PyResult<()>| {
        let run = move |arguments: &Bound<'_, PyTuple>, _keywords: Option<&Bound<'_, PyDict>>| work(arguments.py());
        PyCFunction::new_closure(py, Some(name), None, run)
    };
    hooks.set_item("before", hook(c"suspend", suspend)?)?;
    hooks.set_item("after_in_parent", hook(c"resume", resume_soon)?)?;
    hooks.set_item("after_in_child", hook(c"forget", forget)?)?;
    py.import("posix")?.getattr("register_at_fork")?.call((), Some(&hooks)).map(drop)
}

fn suspend(py: Python<'_>) -> PyResult<()> {
    if sentinel::control::suspend()
        && let Some(frame) = raw::fork::current_frame(py)
    {
        let instruction = frame.getattr(pyo3::intern!(py, "f_lasti"))?.unbind();
        replace_caller(Some((frame.unbind(), instruction)));
    }
    Ok(())
}

fn resume_soon(py: Python<'_>) -> PyResult<()> {
    if sentinel::control::is_suspended() && !raw::fork::call_soon(py, resume) {
        resume_now();
    }
    Ok(())
}

fn forget(_py: Python<'_>) -> PyResult<()> {
    replace_caller(None);
    Ok(())
}

extern "C" fn resume(_: *mut c_void) -> c_int {
    Python::attach(|py| {
        // Other hooks may be Python code, which makes pending calls too.
        if !(is_in_fork(py).unwrap_or(false) && raw::fork::call_soon(py, resume)) {
            resume_now();
        }
    });
    0
}

fn resume_now() {
    replace_caller(None);
    // If this fails, it is tried again at the end of the job.
    let _ = sentinel::control::resume();
}

/// True if the frame that called `os.fork` is still at the same instruction.
fn is_in_fork(py: Python<'_>) -> PyResult<bool> {
    let caller = CALLER.lock().unwrap_or_else(PoisonError::into_inner);
    let Some((caller, instruction)) = caller.as_ref() else { return Ok(false) };
    let mut frame = raw::fork::current_frame(py).map(|frame| frame.getattr(pyo3::intern!(py, "f_back"))).transpose()?;
    while let Some(found) = frame.filter(|frame| !frame.is_none()) {
        if found.is(caller) {
            return found.getattr(pyo3::intern!(py, "f_lasti"))?.eq(instruction);
        }
        frame = Some(found.getattr(pyo3::intern!(py, "f_back"))?);
    }
    Ok(false)
}

fn replace_caller(caller: Option<(Py<PyAny>, Py<PyAny>)>) {
    // Drop the old frame after the lock is released: that may run user code.
    let before = std::mem::replace(&mut *CALLER.lock().unwrap_or_else(PoisonError::into_inner), caller);
    drop(before);
}

//! Forks in jobs: the native thread steps aside for them, so that a job forks off a process with one thread, as it would anywhere.
//!
//! Python 3.12 and newer count the threads that the system sees when a fork is over (Modules/posixmodule.c,
//! `warn_about_fork_with_threads`), in some versions after the hooks of `os.register_at_fork` have run. So the thread comes back
//! by a pending call: Python makes it when it goes on in the frame that has called `os.fork`.

use std::ffi::{c_int, c_void};
use std::sync::{Mutex, PoisonError};

use pyo3::prelude::*;
use pyo3::types::{PyCFunction, PyDict, PyTuple};
use trio_offload_worker::sentinel;

use crate::python::raw;

/// The frame that has called `os.fork`, and the instruction it was at.
static CALLER: Mutex<Option<(Py<PyAny>, Py<PyAny>)>> = Mutex::new(None);

/// To be called before there is any code of the user's: what was registered first is called last before a fork.
pub(crate) fn install(py: Python<'_>) -> PyResult<()> {
    let hooks = PyDict::new(py);
    let hook = |name, work: fn(Python<'_>) -> PyResult<()>| {
        let run = move |arguments: &Bound<'_, PyTuple>, _keywords: Option<&Bound<'_, PyDict>>| work(arguments.py());
        PyCFunction::new_closure(py, Some(name), None, run)
    };
    hooks.set_item("before", hook(c"step_aside", step_aside)?)?;
    hooks.set_item("after_in_parent", hook(c"come_back", come_back_soon)?)?;
    hooks.set_item("after_in_child", hook(c"forget", forget)?)?;
    py.import("posix")?.getattr("register_at_fork")?.call((), Some(&hooks)).map(drop)
}

fn step_aside(py: Python<'_>) -> PyResult<()> {
    if sentinel::post::step_aside()
        && let Some(frame) = raw::fork::current_frame(py)
    {
        let instruction = frame.getattr(pyo3::intern!(py, "f_lasti"))?.unbind();
        replace_caller(Some((frame.unbind(), instruction)));
    }
    Ok(())
}

fn come_back_soon(py: Python<'_>) -> PyResult<()> {
    if sentinel::post::is_away() && !raw::fork::call_soon(py, come_back) {
        come_back_now();
    }
    Ok(())
}

fn forget(_py: Python<'_>) -> PyResult<()> {
    replace_caller(None);
    Ok(())
}

extern "C" fn come_back(_: *mut c_void) -> c_int {
    Python::attach(|py| {
        // Other hooks of a fork may be Python code, in which pending calls are made too.
        if !(is_in_fork(py).unwrap_or(false) && raw::fork::call_soon(py, come_back)) {
            come_back_now();
        }
    });
    0
}

fn come_back_now() {
    replace_caller(None);
    // Where that fails it is tried again at the end of the job.
    let _ = sentinel::post::come_back();
}

/// Whether the frame that has called `os.fork` still waits for that in the same instruction.
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
    // The old one is let go of when the lock is free again: that may run code of the user's.
    let before = std::mem::replace(&mut *CALLER.lock().unwrap_or_else(PoisonError::into_inner), caller);
    drop(before);
}

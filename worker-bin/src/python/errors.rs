//! Exceptions of user code as the parent receives them, and the exit of a copy that a job forked.

#![forbid(unsafe_code)]

use pyo3::exceptions::PySystemExit;
use pyo3::prelude::*;
use trio_offload_worker::os;
use trio_offload_worker::protocol::message::{Failure, clip};
use trio_offload_worker::session::executor::Raised;

use crate::python::pickling::sink::Pickled;

/// Describe an exception for the parent. This must not fail, whatever the exception's class does.
///
/// `into_value` rather than `value`: before Python 3.12 a caught exception lacks its traceback.
pub(super) fn describe(py: Python<'_>, error: PyErr, stage: &'static str) -> Raised<Pickled> {
    let described = py.import("trio_offload_worker._jobs.exceptions").and_then(|module| {
        let (segments, type_name, message, traceback): (Bound<'_, PyAny>, String, String, String) =
            module.call_method1("dump", (error.clone_ref(py).into_value(py), stage))?.extract()?;
        let failure = failure(stage, type_name, message, traceback);
        Ok(Raised { failure, exception: Pickled::from_list(&segments)? })
    });
    described.unwrap_or_else(|problem| {
        let value = error.value(py);
        let type_name =
            error.get_type(py).qualname().map_or_else(|_| "BaseException".to_owned(), |name| name.to_string_lossy().into_owned());
        let message = value.str().map_or_else(|_| String::new(), |text| text.to_string_lossy().into_owned());
        let traceback = format!("{type_name}: {message}\n(the worker could not describe it further: {problem})\n");
        Raised { failure: failure(stage, type_name, message, traceback), exception: None }
    })
}

fn failure(stage: &str, type_name: String, message: String, traceback: String) -> Failure {
    Failure {
        stage: stage.to_owned(),
        type_name: clip(type_name),
        message: clip(message),
        traceback: clip(traceback),
        module: None,
    }
}

/// The session reaches SETUP and CALL only after a start, so the parent should not receive this.
pub(super) fn raised_without_python() -> Raised<Pickled> {
    let message = "the worker has no running Python; this is an error in trio-offload".to_owned();
    Raised { failure: failure("call", "RuntimeError".to_owned(), message, String::new()), exception: None }
}

/// Flush standard output and error. Python itself reports a closed or broken stream at its exit.
pub(super) fn flush(py: Python<'_>, sys: &Py<PyModule>) {
    for name in [pyo3::intern!(py, "stdout"), pyo3::intern!(py, "stderr")] {
        if let Ok(stream) = sys.bind(py).getattr(name)
            && !stream.is_none()
        {
            let _ = stream.call_method0(pyo3::intern!(py, "flush"));
        }
    }
}

/// Exit a copy that a job forked and whose function has returned: it is without a socket and a
/// caller. It exits as a forked Python does, without the original's exit handlers.
pub(super) fn exit_forked_copy<T>(py: Python<'_>, sys: &Py<PyModule>, outcome: PyResult<T>) -> ! {
    let code = match outcome {
        Ok(_) => 0,
        Err(error) if error.is_instance_of::<PySystemExit>(py) => {
            let code = error.value(py).getattr("code").ok();
            match code {
                Some(code) if code.is_none() => 0,
                Some(code) => code.extract::<i32>().unwrap_or(1),
                None => 1,
            }
        }
        Err(error) => {
            error.display(py);
            1
        }
    };
    flush(py, sys);
    os::process::exit_now(code)
}

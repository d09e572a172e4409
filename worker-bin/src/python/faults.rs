//! The stacks of all Python threads, written to the record at a fault and when the native thread
//! asks.
//!
//! Python's `faulthandler` writes them, and a process has only one. So a job that enables or
//! disables it gets the usual return value, without an effect: `trio_offload_worker._jobs.faults`
//! replaces these functions when one is first called.

use std::ffi::CStr;
use std::os::fd::RawFd;

use pyo3::prelude::*;
use pyo3::types::{PyCFunction, PyDict, PyTuple};
use trio_offload_worker::os;

use crate::python::raw;

const SHIELDED: [&CStr; 5] = [c"enable", c"disable", c"is_enabled", c"register", c"unregister"];

pub(crate) struct Faults {
    record: RawFd,
    /// The original functions of the module.
    functions: Py<PyDict>,
}

impl Faults {
    pub(crate) fn install(py: Python<'_>, record: RawFd) -> PyResult<Self> {
        let module = py.import("faulthandler")?;
        // After Python's start, which notes the present handlers: a job would see this one.
        os::signals::disarm_stacks_signal();
        // Before `enable`, so that it lies beneath.
        raw::fatal_errors::report_fatal_errors(record, module.getattr("dump_traceback")?)?;
        let functions = PyDict::new(py);
        for name in SHIELDED {
            let text = name.to_string_lossy();
            functions.set_item(&text, module.getattr(&*text)?)?;
            let functions = functions.clone().unbind();
            let stand_in = move |arguments: &Bound<'_, PyTuple>, keywords: Option<&Bound<'_, PyDict>>| -> PyResult<Py<PyAny>> {
                let py = arguments.py();
                let shield = if os::copies::is_forked_copy() {
                    // A forked copy uses `faulthandler` as usual.
                    functions.bind(py).clone().into_any()
                } else {
                    py.import("trio_offload_worker._jobs.faults")?.call_method1("shield", (&functions,))?
                };
                Ok(shield.get_item(name.to_string_lossy())?.call(arguments, keywords)?.unbind())
            };
            module.setattr(&*text, PyCFunction::new_closure(py, Some(name), None, stand_in)?)?;
        }
        // A worker that a job forks finds them here.
        module.setattr("_functions_of_trio_offload", &functions)?;
        let faults = Self { record, functions: functions.unbind() };
        faults.arm(py)?;
        Ok(faults)
    }

    /// Restore the fault handlers after a job that changed them.
    pub(crate) fn rearm(&self, py: Python<'_>) -> PyResult<()> {
        self.function(py, "disable")?.call0()?;
        self.function(py, "unregister")?.call1((os::signals::STACKS,))?;
        os::signals::disarm_stacks_signal();
        self.arm(py)
    }

    fn arm(&self, py: Python<'_>) -> PyResult<()> {
        let keywords = PyDict::new(py);
        keywords.set_item("file", self.record)?;
        keywords.set_item("all_threads", true)?;
        self.function(py, "enable")?.call((), Some(&keywords))?;
        self.function(py, "register")?.call((os::signals::STACKS,), Some(&keywords)).map(drop)
    }

    fn function<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
        self.functions.bind(py).as_any().get_item(name)
    }
}

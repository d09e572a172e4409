//! One job: unpickle, call, pickle. Also `init` and settings.

#![forbid(unsafe_code)]

use std::ffi::CStr;
use std::sync::Arc;

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyCFunction, PyTuple};
use trio_offload_worker::os;
use trio_offload_worker::protocol::message::Setup;
use trio_offload_worker::transport::Segment;

use crate::python::errors::exit_forked_copy;
use crate::python::faults::Faults;
use crate::python::hooks::{self, Settings};
use crate::python::pickling::Pickling;
use crate::python::pickling::sink::Pickled;
use crate::python::raw;
use crate::python::raw::buffers::{HeldBytes, NewBytes};
use crate::python::signals::Signals;
use crate::python::template::TemplateState;

/// `trio_offload_worker._jobs.exceptions` knows the file name and removes it from tracebacks.
const TRAMPOLINE: &CStr = c"lambda function, arguments: function(*arguments)";

/// The Python objects that live from the start to the end.
pub(super) struct PythonSide {
    pub(super) pickling: Pickling,
    pub(super) sys: Py<PyModule>,
    pub(super) signals: Signals,
    pub(super) faults: Faults,
    pub(super) settings: Option<Arc<Settings>>,
    pub(super) retire: Option<Py<PyAny>>,
    /// For functions such as `eval`, which look at the calling frame. Compiled on first use.
    pub(super) trampoline: PyOnceLock<Py<PyAny>>,
    /// `trio_offload_worker._jobs.settings`, while some settings are pending.
    pub(super) pending_settings: Option<Py<PyModule>>,
    /// Set in a template, and in its workers.
    pub(super) template_state: Option<TemplateState>,
}

impl PythonSide {
    pub(super) fn new(py: Python<'_>, signals: Signals, faults: Faults) -> PyResult<Self> {
        Ok(Self {
            faults,
            pickling: Pickling::new(py)?,
            sys: py.import("sys")?.unbind(),
            signals,
            settings: None,
            retire: None,
            trampoline: PyOnceLock::new(),
            pending_settings: None,
            template_state: None,
        })
    }

    pub(super) fn set_up(&mut self, py: Python<'_>, setup: &Setup, segments: Vec<Segment<NewBytes>>) -> PyResult<()> {
        let mut pickles = segments.into_iter().map(|segment| into_bytes(py, segment));
        let mut next = || pickles.next().unwrap_or_else(|| Ok(PyBytes::new(py, b"")));
        let (settings, init, retire) = (next()?, next()?, next()?);
        self.take_settings(py, setup.eager, settings)?;
        if let Some(init) = self.callable(&init)? {
            let outcome = init.call0()?;
            refuse_asynchronous(&init, &outcome)?;
        }
        // Last: unpickling a `retire` may measure the memory use before the first job.
        self.retire = self.callable(&retire)?.map(Bound::unbind);
        Ok(())
    }

    pub(super) fn take_settings(&mut self, py: Python<'_>, eager: bool, pickled: Bound<'_, PyBytes>) -> PyResult<()> {
        let settings = if let Some(settings) = &self.settings {
            // The template's hooks are in place.
            if settings.replace(pickled) {
                hooks::renew_main(py, settings)?;
            }
            if self.template_state.as_ref().is_none_or(|template| template.has_multiprocessing) {
                hooks::adopt_imported(self.sys.bind(py), settings)?;
            }
            Arc::clone(settings)
        } else {
            let settings = Settings::new(pickled.unbind(), self.pickling.loads_function(py));
            self.settings = Some(Arc::clone(&settings));
            hooks::install(py, &settings)?;
            settings
        };
        if eager { self.apply(py, &settings) } else { Ok(()) }
    }

    pub(super) fn replace_settings(&mut self, py: Python<'_>, eager: bool, segments: Vec<Segment<NewBytes>>) -> PyResult<()> {
        let Some(settings) = self.settings.clone() else { return Ok(()) };
        let Some(segment) = segments.into_iter().next() else { return Ok(()) };
        settings.replace(into_bytes(py, segment)?);
        hooks::adopt_imported(self.sys.bind(py), &settings)?;
        if eager {
            self.apply(py, &settings)?;
        }
        // Last: `adopt` may have dropped a script that the parent has replaced.
        hooks::renew_main(py, &settings)
    }

    pub(super) fn apply(&mut self, py: Python<'_>, settings: &Arc<Settings>) -> PyResult<()> {
        let module = py.import("trio_offload_worker._jobs.settings")?;
        module.call_method1("apply", (settings.get(py)?,))?;
        self.pending_settings = Some(module.unbind());
        Ok(())
    }

    /// Unpickle a callable. Return `None` for an empty pickle and for one of `None`.
    pub(super) fn callable<'py>(&self, pickle: &Bound<'py, PyBytes>) -> PyResult<Option<Bound<'py, PyAny>>> {
        if pickle.as_bytes().is_empty() {
            return Ok(None);
        }
        Ok(Some(self.pickling.loads(pickle)?).filter(|object| !object.is_none()))
    }

    pub(super) fn call(&self, py: Python<'_>, segments: Vec<Segment<NewBytes>>) -> Result<Pickled, (PyErr, &'static str)> {
        let job = self.pickling.load(py, segments).map_err(|error| (error, "unpickle"))?;
        let (function, arguments) = split_call(job).map_err(|error| (error, "unpickle"))?;
        // After unpickling: context variables that an import sets are for all jobs.
        let _context = raw::JobContext::enter(py, isolate_context).map_err(|error| (error, "call"))?;
        let outcome = self.resolve_settings(py).and_then(|()| self.call_function(&function, arguments));
        if os::copies::is_forked_copy() {
            exit_forked_copy(py, &self.sys, outcome);
        }
        let value =
            outcome.and_then(|value| refuse_asynchronous(&function, &value).map(|()| value)).map_err(|error| (error, "call"))?;
        drop(function);
        self.dump(&value).map_err(|error| (error, "pickle"))
    }

    pub(super) fn call_function<'py>(
        &self,
        function: &Bound<'py, PyAny>,
        arguments: Bound<'py, PyTuple>,
    ) -> PyResult<Bound<'py, PyAny>> {
        if !function.is_exact_instance_of::<PyCFunction>() {
            return function.call1(arguments);
        }
        let py = function.py();
        self.trampoline(py)?.call1((function, arguments))
    }

    pub(super) fn trampoline<'py>(&self, py: Python<'py>) -> PyResult<&Bound<'py, PyAny>> {
        let trampoline = self.trampoline.get_or_try_init(py, || {
            // The function `compile` would first create the hundred classes of the module `ast`.
            let code = raw::compile_expression(py, TRAMPOLINE, c"<trio-offload>")?;
            PyResult::Ok(py.import("builtins")?.call_method1("eval", (code, py.import("__main__")?.dict()))?.unbind())
        })?;
        Ok(trampoline.bind(py))
    }

    pub(super) fn dump(&self, value: &Bound<'_, PyAny>) -> PyResult<Pickled> {
        let error = match self.pickling.dump(value) {
            Ok(pickled) => return Ok(pickled),
            Err(error) => error,
        };
        let py = value.py();
        if !error.is_instance_of::<pyo3::exceptions::PyException>(py) {
            return Err(error);
        }
        let segments = py
            .import("trio_offload_worker._jobs.pickling")?
            .call_method1("dumps", (value, error.clone_ref(py).into_value(py)))?;
        Pickled::from_list(&segments)?.ok_or(error)
    }

    pub(super) fn resolve_settings(&self, py: Python<'_>) -> PyResult<()> {
        if let Some(module) = &self.pending_settings
            && module.bind(py).getattr(pyo3::intern!(py, "pending"))?.is_truthy()?
        {
            module.bind(py).call_method0(pyo3::intern!(py, "resolve_pending"))?;
        }
        Ok(())
    }
}

/// Copy the mutable values in a job's context variables, so that jobs do not share them.
pub(super) fn isolate_context(context: &Bound<'_, PyAny>) -> PyResult<()> {
    context.py().import("trio_offload_worker._jobs.contexts")?.call_method1("copy_mutable_values", (context,)).map(drop)
}

/// Copy a segment into a `bytes` object.
pub(super) fn into_bytes<'py>(py: Python<'py>, segment: Segment<NewBytes>) -> PyResult<Bound<'py, PyBytes>> {
    match segment {
        Segment::Shared(bytes) => Ok(PyBytes::new(py, &bytes)),
        Segment::Owned(bytes) => Ok(PyBytes::new(py, HeldBytes::hold(&bytes.into_object(py)?)?.bytes())),
    }
}

fn split_call(job: Bound<'_, PyAny>) -> PyResult<(Bound<'_, PyAny>, Bound<'_, PyTuple>)> {
    if let Ok(pair) = job.cast::<PyTuple>()
        && pair.len() == 2
        && let Ok(arguments) = pair.get_item(1)?.cast_into::<PyTuple>()
    {
        return Ok((pair.get_item(0)?, arguments));
    }
    Err(PyTypeError::new_err("the parent sent no function with its arguments; this is an error in trio-offload"))
}

/// Refuse a coroutine or an asynchronous generator. It is closed first, because Python warns of one
/// that was never awaited.
pub(super) fn refuse_asynchronous(function: &Bound<'_, PyAny>, value: &Bound<'_, PyAny>) -> PyResult<()> {
    if !raw::is_asynchronous(value) {
        return Ok(());
    }
    let kind = value.get_type().name()?;
    if value.hasattr("close")? {
        value.call_method0("close")?;
    }
    let name = function.repr().map_or_else(|_| "it".to_owned(), |text| text.to_string_lossy().into_owned());
    Err(PyTypeError::new_err(format!(
        "a worker runs synchronous functions, but {name} is asynchronous: calling it gave {kind}, which only an event loop could run. \
         Await it in your own task, or pass a synchronous function (one that calls trio.run, if it must)"
    )))
}

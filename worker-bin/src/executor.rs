//! The executor that has a Python: attach, unpickle, call, pickle, detach.
//!
//! Rules that the code below keeps:
//! * whatever the user's code raises, a `BaseException` of any kind, becomes the answer to the call;
//! * the function, its arguments and the result are dropped before the next frame is waited for;
//! * what a job printed is out before its caller goes on;
//! * a copy of the process that a job forked off never comes back into the session.

use std::ffi::CStr;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;

use pyo3::exceptions::{PySystemExit, PyTypeError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyCFunction, PyTuple};
use trio_offload_worker::exit::{self, Ending};
use trio_offload_worker::launch::Surroundings;
use trio_offload_worker::memory::{Figures, Meter};
use trio_offload_worker::message::{Explanation, Failure, Hello, PROTOCOL_VERSION, Setup, Welcome, clip};
use trio_offload_worker::sentinel::{Activity, Parent};
use trio_offload_worker::session::{Answer, Executor, Raised, Settled};
use trio_offload_worker::transport::{Allocator, Segment};
use trio_offload_worker::{family, os};

use crate::hooks::{self, Settings};
use crate::interpreter::Interpreter;
use crate::interpreter::ffi::{self, NewBytes};
use crate::pickling::{Pickled, Pickling};

pub(crate) struct Worker {
    activity: &'static Activity,
    surroundings: Option<Surroundings>,
    parent: Option<&'static Parent>,
    interpreter: Option<Interpreter>,
    python: Option<PythonSide>,
    meter: Meter,
}

/// Its file's name is known to `trio_offload_worker._exceptions`, which takes it out of tracebacks.
const TRAMPOLINE: &CStr = c"lambda function, arguments: function(*arguments)";

/// The objects that live from the start to the end.
struct PythonSide {
    pickling: Pickling,
    sys: Py<PyModule>,
    settings: Option<Arc<Settings>>,
    retire: Option<Py<PyAny>>,
    /// `eval` and its like look at the frame that calls them; made when the first of them is called.
    trampoline: PyOnceLock<Py<PyAny>>,
    /// `trio_offload_worker._settings`, while it may still have something to do.
    pending_settings: Option<Py<PyModule>>,
}

impl Worker {
    pub(crate) fn new(surroundings: Surroundings, activity: &'static Activity) -> Self {
        Self {
            activity,
            surroundings: Some(surroundings),
            parent: None,
            interpreter: None,
            python: None,
            meter: Meter::default(),
        }
    }

    /// Ends Python in order and gives the exit code.
    pub(crate) fn finish(mut self, ending: Ending) -> i32 {
        if let Some(python) = self.python.take() {
            Python::attach(|_| drop(python));
        }
        let flushed = self.interpreter.take().is_none_or(Interpreter::finish);
        if self.parent.is_some_and(Parent::is_dead) {
            family::end_descendants();
        }
        match ending.code() {
            0 if !flushed => exit::FLUSH_FAILED,
            code => code,
        }
    }
}

impl Allocator for Worker {
    type Buffer = NewBytes;

    fn allocate(&mut self, length: usize) -> Option<NewBytes> {
        Python::attach(|py| NewBytes::allocate(py, length))
    }
}

impl Executor for Worker {
    type Payload = Pickled;

    fn start(&mut self, hello: &Hello) -> Result<Welcome, Explanation> {
        let Some(surroundings) = self.surroundings.take() else {
            return Err(Explanation::new("interpreter", "the worker has been started already"));
        };
        let record = surroundings.record();
        self.parent = Some(surroundings.settle(hello, self.activity)?);
        let interpreter = Interpreter::start(hello)?;
        let libpython = interpreter.libpython.as_os_str().as_bytes().to_vec();
        self.interpreter = Some(interpreter);
        Interpreter::boot(hello)?;
        let prefixes = Interpreter::furnish(hello)?;
        Interpreter::report_faults(record)?;
        let python = Python::attach(PythonSide::new)
            .map_err(|error| Explanation::new("interpreter", format!("Python started, but the pickler is missing: {error}")))?;
        self.python = Some(python);
        Ok(Welcome {
            protocol: PROTOCOL_VERSION,
            worker: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id().into(),
            version: ffi::version(),
            libpython,
            prefix: prefixes.prefix,
            exec_prefix: prefixes.exec_prefix,
        })
    }

    fn set_up(&mut self, setup: &Setup, segments: Vec<Segment<'_, NewBytes>>) -> Result<(), Box<Raised<Pickled>>> {
        let Some(python) = &mut self.python else { return Err(Box::new(raised_without_python())) };
        Python::attach(|py| {
            let outcome = python.set_up(py, setup, segments);
            if os::is_forked_copy() {
                leave_forked_copy(py, &python.sys, outcome);
            }
            let outcome = outcome.map_err(|error| Box::new(describe(py, error, "setup")));
            flush(py, &python.sys);
            outcome
        })
    }

    fn replace_settings(&mut self, eager: bool, segments: Vec<Segment<'_, NewBytes>>) {
        let Some(python) = &mut self.python else { return };
        Python::attach(|py| {
            if let Err(error) = python.replace_settings(py, eager, segments) {
                // Nobody waits for an answer; Python has a place for such errors.
                error.write_unraisable(py, None);
            }
        });
    }

    fn call(&mut self, segments: Vec<Segment<'_, NewBytes>>) -> Answer<Pickled> {
        let Some(python) = &self.python else { return Answer::Raised(raised_without_python()) };
        Python::attach(|py| {
            let answer = match python.call(py, segments) {
                Ok(pickled) => Answer::Returned(pickled),
                Err((error, stage)) => Answer::Raised(describe(py, error, stage)),
            };
            flush(py, &python.sys);
            answer
        })
    }

    fn settle(&mut self, answer: Option<Pickled>) -> Settled {
        let Some(python) = &self.python else { return Settled::Stay };
        if python.retire.is_none() && answer.as_ref().is_none_or(Pickled::is_plain) {
            return Settled::Stay;
        }
        Python::attach(|py| {
            drop(answer);
            let Some(retire) = &python.retire else { return Settled::Stay };
            let retire = retire.bind(py);
            let outcome = retire.call0().and_then(|verdict| {
                refuse_asynchronous(retire, &verdict)?;
                verdict.is_truthy()
            });
            if os::is_forked_copy() {
                leave_forked_copy(py, &python.sys, outcome);
            }
            let settled = match outcome {
                Ok(false) => Settled::Stay,
                Ok(true) => Settled::Retire,
                Err(error) => {
                    let failure = describe(py, error, "retire").failure;
                    let text = if failure.traceback.is_empty() {
                        format!("{}: {}", failure.type_name, failure.message)
                    } else {
                        failure.traceback
                    };
                    Settled::RetireRaised(format!("the context's retire function raised {text}"))
                }
            };
            flush(py, &python.sys);
            settled
        })
    }

    fn measure(&mut self, at_once: bool) -> Option<Figures> {
        if at_once { self.meter.read() } else { self.meter.read_if_due() }
    }

    fn interrupted(&mut self) {
        if self.python.is_some() {
            // A handler that the user's code installed with Python's `signal` module; nobody awaits what it raises.
            Python::attach(|py| {
                if let Err(error) = py.check_signals() {
                    error.write_unraisable(py, None);
                }
            });
        }
    }
}

impl PythonSide {
    fn new(py: Python<'_>) -> PyResult<Self> {
        Ok(Self {
            pickling: Pickling::new(py)?,
            sys: py.import("sys")?.unbind(),
            settings: None,
            retire: None,
            trampoline: PyOnceLock::new(),
            pending_settings: None,
        })
    }

    fn set_up(&mut self, py: Python<'_>, setup: &Setup, segments: Vec<Segment<'_, NewBytes>>) -> PyResult<()> {
        let mut pickles = segments.into_iter().map(|segment| whole(py, segment));
        let mut next = || pickles.next().unwrap_or_else(|| PyBytes::new(py, b""));
        let (settings, init, retire) = (next(), next(), next());
        let settings = Settings::new(settings.unbind(), self.pickling.loads_function(py));
        self.settings = Some(Arc::clone(&settings));
        hooks::install(py, &settings)?;
        if setup.eager {
            self.apply(py, &settings)?;
        }
        if let Some(init) = self.callable(&init)? {
            let outcome = init.call0()?;
            refuse_asynchronous(&init, &outcome)?;
        }
        // Afterwards: a `retire` may look, while it is unpickled, at what the worker holds before its first job.
        self.retire = self.callable(&retire)?.map(Bound::unbind);
        Ok(())
    }

    fn replace_settings(&mut self, py: Python<'_>, eager: bool, segments: Vec<Segment<'_, NewBytes>>) -> PyResult<()> {
        let Some(settings) = self.settings.clone() else { return Ok(()) };
        let Some(segment) = segments.into_iter().next() else { return Ok(()) };
        settings.replace(whole(py, segment).unbind());
        hooks::adopt_imported(py, &settings)?;
        if eager { self.apply(py, &settings) } else { Ok(()) }
    }

    fn apply(&mut self, py: Python<'_>, settings: &Arc<Settings>) -> PyResult<()> {
        let module = py.import("trio_offload_worker._settings")?;
        module.call_method1("apply", (settings.get(py)?,))?;
        self.pending_settings = Some(module.unbind());
        Ok(())
    }

    /// An empty pickle, and one of `None`, stand for nothing to call.
    fn callable<'py>(&self, pickle: &Bound<'py, PyBytes>) -> PyResult<Option<Bound<'py, PyAny>>> {
        if pickle.as_bytes().is_empty() {
            return Ok(None);
        }
        Ok(Some(self.pickling.loads(pickle)?).filter(|object| !object.is_none()))
    }

    fn call(&self, py: Python<'_>, segments: Vec<Segment<'_, NewBytes>>) -> Result<Pickled, (PyErr, &'static str)> {
        let job = self.pickling.load(py, segments).map_err(|error| (error, "unpickle"))?;
        let (function, arguments) = take_apart(job).map_err(|error| (error, "unpickle"))?;
        let outcome = self.resolve_settings(py).and_then(|()| self.call_function(&function, arguments));
        if os::is_forked_copy() {
            leave_forked_copy(py, &self.sys, outcome);
        }
        let value =
            outcome.and_then(|value| refuse_asynchronous(&function, &value).map(|()| value)).map_err(|error| (error, "call"))?;
        drop(function);
        self.dump(&value).map_err(|error| (error, "pickle"))
    }

    fn call_function<'py>(&self, function: &Bound<'py, PyAny>, arguments: Bound<'py, PyTuple>) -> PyResult<Bound<'py, PyAny>> {
        if !function.is_exact_instance_of::<PyCFunction>() {
            return function.call1(arguments);
        }
        let py = function.py();
        let trampoline = self.trampoline.get_or_try_init(py, || {
            // Not the function `compile`, which makes the hundred classes of the module `ast` first.
            let code = ffi::compile_expression(py, TRAMPOLINE, c"<trio-offload>")?;
            PyResult::Ok(py.import("builtins")?.call_method1("eval", (code, py.import("__main__")?.dict()))?.unbind())
        })?;
        trampoline.bind(py).call1((function, arguments))
    }

    fn dump(&self, value: &Bound<'_, PyAny>) -> PyResult<Pickled> {
        let _alone = hooks::MainLeftAlone::now();
        let error = match self.pickling.dump(value) {
            Ok(pickled) => return Ok(pickled),
            Err(error) => error,
        };
        let py = value.py();
        if !error.is_instance_of::<pyo3::exceptions::PyException>(py) {
            return Err(error);
        }
        let segments =
            py.import("trio_offload_worker._pickling")?.call_method1("dumps", (value, error.clone_ref(py).into_value(py)))?;
        Pickled::from_list(&segments)?.ok_or(error)
    }

    fn resolve_settings(&self, py: Python<'_>) -> PyResult<()> {
        if let Some(module) = &self.pending_settings
            && module.bind(py).getattr(pyo3::intern!(py, "pending"))?.is_truthy()?
        {
            module.bind(py).call_method0(pyo3::intern!(py, "resolve_pending"))?;
        }
        Ok(())
    }
}

/// A segment as `bytes` of its own.
fn whole<'py>(py: Python<'py>, segment: Segment<'_, NewBytes>) -> Bound<'py, PyBytes> {
    match segment {
        Segment::Passing(bytes) => PyBytes::new(py, bytes),
        Segment::Owned(bytes) => PyBytes::new(py, bytes.into_object().bind(py).to_vec().as_slice()),
    }
}

fn take_apart(job: Bound<'_, PyAny>) -> PyResult<(Bound<'_, PyAny>, Bound<'_, PyTuple>)> {
    if let Ok(pair) = job.cast::<PyTuple>()
        && pair.len() == 2
        && let Ok(arguments) = pair.get_item(1)?.cast_into::<PyTuple>()
    {
        return Ok((pair.get_item(0)?, arguments));
    }
    Err(PyTypeError::new_err("what the parent sent is not a function with its arguments; this is an error in trio-offload"))
}

/// A coroutine or an asynchronous generator is closed, so that Python does not complain of its never having been awaited.
fn refuse_asynchronous(function: &Bound<'_, PyAny>, value: &Bound<'_, PyAny>) -> PyResult<()> {
    if !ffi::is_asynchronous(value) {
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

/// The exception as the parent gets it. Nothing in here may fail, whatever the exception's class does.
///
/// `into_value` and not `value`: before Python 3.12 the traceback of a caught exception is not yet in the exception itself.
fn describe(py: Python<'_>, error: PyErr, stage: &'static str) -> Raised<Pickled> {
    let _alone = hooks::MainLeftAlone::now();
    let described = py.import("trio_offload_worker._exceptions").and_then(|module| {
        let (segments, type_name, message, traceback): (Bound<'_, PyAny>, String, String, String) =
            module.call_method1("dump", (error.clone_ref(py).into_value(py), stage))?.extract()?;
        let failure =
            Failure { stage: stage.to_owned(), type_name: clip(type_name), message: clip(message), traceback: clip(traceback) };
        Ok(Raised { failure, exception: Pickled::from_list(&segments)? })
    });
    described.unwrap_or_else(|problem| {
        let value = error.value(py);
        let type_name =
            error.get_type(py).qualname().map_or_else(|_| "BaseException".to_owned(), |name| name.to_string_lossy().into_owned());
        let message = value.str().map_or_else(|_| String::new(), |text| text.to_string_lossy().into_owned());
        let traceback = format!("{type_name}: {message}\n(the worker could not describe it further: {problem})\n");
        let failure =
            Failure { stage: stage.to_owned(), type_name: clip(type_name), message: clip(message), traceback: clip(traceback) };
        Raised { failure, exception: None }
    })
}

/// The session reaches SETUP and CALL only after a start; this is what it would get otherwise.
fn raised_without_python() -> Raised<Pickled> {
    let message = "the worker has no running Python; this is an error in trio-offload".to_owned();
    Raised {
        failure: Failure { stage: "call".to_owned(), type_name: "RuntimeError".to_owned(), message, traceback: String::new() },
        exception: None,
    }
}

/// Writes out what has been printed. A closed or broken stream is the user's affair, and Python says so at its end.
fn flush(py: Python<'_>, sys: &Py<PyModule>) {
    for name in [pyo3::intern!(py, "stdout"), pyo3::intern!(py, "stderr")] {
        if let Ok(stream) = sys.bind(py).getattr(name)
            && !stream.is_none()
        {
            let _ = stream.call_method0(pyo3::intern!(py, "flush"));
        }
    }
}

/// A job has forked and its function has come to its end in the copy too: that copy has no socket and no caller. It ends as
/// a forked Python does, without the exit handlers, which are the original's.
fn leave_forked_copy<T>(py: Python<'_>, sys: &Py<PyModule>, outcome: PyResult<T>) -> ! {
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
    os::exit_now(code)
}

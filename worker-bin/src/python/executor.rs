//! The executor that has a Python: attach, unpickle, call, pickle, detach.
//!
//! Rules:
//! * Every exception of user code, a `BaseException` too, becomes the answer to the call.
//! * The function, its arguments and the result are dropped before the next frame is read.
//! * The output of a job is flushed before its caller continues.
//! * Each job has its own context variables, a copy of those that `init` and imports have set.
//! * A copy of the process that a job forked exits outside the session.

#![forbid(unsafe_code)]

use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;

use pyo3::prelude::*;
use trio_offload_worker::exit::{self, Ending};
use trio_offload_worker::launch::{self, ProcessSetup, Watch};
use trio_offload_worker::os;
use trio_offload_worker::os::fork::Side;
use trio_offload_worker::os::fork::threads::AllowedThreads;
use trio_offload_worker::process::family;
use trio_offload_worker::process::meter::Meter;
use trio_offload_worker::protocol::figures::Figures;
use trio_offload_worker::protocol::hello::{Hello, Welcome};
use trio_offload_worker::protocol::message::{Explanation, PROTOCOL_VERSION, Setup, Template};
use trio_offload_worker::protocol::segments::SegmentType;
use trio_offload_worker::sentinel;
use trio_offload_worker::sentinel::activity::ActivityCell;
use trio_offload_worker::sentinel::control::StandbyThread;
use trio_offload_worker::sentinel::guard::Guard;
use trio_offload_worker::sentinel::parent::Parent;
use trio_offload_worker::session::executor::{Answer, Executor, Raised, Verdict};
use trio_offload_worker::transport::buffer_pool::BufferPool;
use trio_offload_worker::transport::connection::Connection;
use trio_offload_worker::transport::socket::Socket;
use trio_offload_worker::transport::{Allocator, Segment};

use crate::python::errors::{describe, exit_forked_copy, flush, raised_without_python};
use crate::python::faults::Faults;
use crate::python::forks;
use crate::python::interpreter::{Interpreter, Prefixes};
use crate::python::jobs::{PythonSide, isolate_context, refuse_asynchronous};
use crate::python::line::{self, LINE};
use crate::python::pickling::sink::Pickled;
use crate::python::raw;
use crate::python::raw::buffers::NewBytes;
use crate::python::signals::{self, Signals};

pub(crate) struct Worker {
    pub(super) activity: &'static ActivityCell,
    pub(super) process_setup: Option<ProcessSetup>,
    pub(super) parent: Option<&'static Parent>,
    pub(super) watch: Option<Watch>,
    pub(super) standby: Option<StandbyThread>,
    pub(super) interpreter: Option<Interpreter>,
    pub(super) python: Option<PythonSide>,
    pub(super) meter: Meter,
    /// Descriptor to which Python writes the stacks when it dies; taken at the start.
    pub(super) record: Option<RawFd>,
    /// Watches the parent while a template does not fork.
    pub(super) guard: Option<Guard>,
    /// The HELLO of a template, until the template is ready.
    pub(super) hello: Option<Hello>,
    pub(super) is_template: bool,
    /// Native threads that may run while the template forks.
    pub(super) allowed: AllowedThreads,
    pub(super) is_forked: bool,
    /// The connection of a freshly forked worker.
    pub(super) forked_connection: Option<Connection<Socket>>,
    pub(super) pool: BufferPool,
    /// True if the native thread was suspended and could not be resumed.
    pub(super) is_unwatched: bool,
}

impl Worker {
    pub(crate) fn new(process_setup: ProcessSetup, activity: &'static ActivityCell) -> Self {
        Self {
            activity,
            process_setup: Some(process_setup),
            parent: None,
            watch: None,
            standby: None,
            interpreter: None,
            python: None,
            meter: Meter::default(),
            record: None,
            guard: None,
            hello: None,
            is_template: false,
            allowed: AllowedThreads::default(),
            is_forked: false,
            forked_connection: None,
            pool: BufferPool::default(),
            is_unwatched: false,
        }
    }

    /// Resume the native thread if user code has left it suspended.
    fn resume_sentinel(&mut self) {
        if sentinel::control::is_suspended() {
            self.is_unwatched = sentinel::control::resume().is_err();
        }
    }

    /// Return the connection of a freshly forked worker.
    pub(crate) fn take_forked(&mut self) -> Option<Connection<Socket>> {
        self.forked_connection.take()
    }

    /// End Python in order and return the exit code.
    pub(crate) fn finish(mut self, ending: Ending) -> i32 {
        if let Some(guard) = self.guard.take() {
            guard.dismiss();
        }
        if let Some(parent) = self.parent.filter(|_| self.is_template) {
            sentinel::guard::end_with_parent(parent);
        }
        if self.is_forked && self.parent.is_none() {
            // A forked worker without a HELLO can exit at once.
            std::mem::forget((self.python.take(), self.interpreter.take()));
            return ending.code();
        }
        let flushed = if self.is_forked {
            // Leak the Python objects: the process is about to exit.
            std::mem::forget((self.python.take(), self.interpreter.take()));
            Interpreter::exit_forked()
        } else {
            if let Some(python) = self.python.take() {
                Python::attach(|_| drop(python));
            }
            self.interpreter.take().is_none_or(Interpreter::finish)
        };
        if self.parent.is_some_and(Parent::is_ending) {
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

    fn allocate(&mut self, length: usize, kind: SegmentType) -> Option<NewBytes> {
        Python::attach(|py| NewBytes::allocate(py, length, kind, &self.pool))
    }
}

impl Executor for Worker {
    type Payload = Pickled;

    fn start(&mut self, hello: &Hello, descriptors: Vec<OwnedFd>) -> Result<Option<Welcome>, Explanation> {
        let Some(mut process_setup) = self.process_setup.take() else {
            return Err(Explanation::new("interpreter", "the worker has been started already"));
        };
        process_setup.connect(&LINE);
        if let Some(python) = &self.python {
            // A forked worker has the rest from its template.
            launch::install_streams(hello, descriptors).map_err(|error| Explanation::new("environment", error.to_string()))?;
            python.refresh(hello)?;
            let (parent, watch) = process_setup.prepare_watch(hello, self.standby.take(), self.activity)?;
            (self.parent, self.watch) = (Some(parent), Some(watch));
            return Ok(None);
        }
        self.record = Some(process_setup.record());
        if hello.template {
            let (parent, guard) = process_setup.apply_hello_for_template(hello)?;
            (self.parent, self.guard, self.is_template) = (Some(parent), Some(guard), true);
            self.hello = Some(hello.clone());
        } else {
            self.parent = Some(process_setup.apply_hello(hello, self.activity)?);
        }
        let interpreter = Interpreter::start(hello)?;
        let interpreter = self.interpreter.insert(interpreter);
        Interpreter::boot(hello)?;
        let prefixes = Python::attach(|py| Interpreter::configure_sys(&py.import("sys")?, hello)).map_err(|error: PyErr| {
            Explanation::new("interpreter", format!("Python started, but its sys module could not be set up: {error}"))
        })?;
        Ok(Some(welcome(interpreter, prefixes)))
    }

    fn init_pickling(&mut self) -> Result<(), Explanation> {
        // A forked worker has everything from its template.
        let Some(record) = self.record.take() else { return Ok(()) };
        let explain = |error: PyErr| {
            Explanation::new("interpreter", format!("Python started, but its signals could not be set up: {error}"))
        };
        // First: Python notes the present handlers when it creates its `signal` module, and the
        // fault handlers must not be among them.
        let signals = Python::attach(Signals::new).map_err(explain)?;
        let faults = Python::attach(|py| Faults::install(py, record)).map_err(explain)?;
        let python = Python::attach(|py| {
            forks::install(py)?;
            line::install(py)?;
            PythonSide::new(py, signals, faults)
        })
        .map_err(|error| Explanation::new("interpreter", format!("Python started, but the pickler is missing: {error}")))?;
        self.python = Some(python);
        Ok(())
    }

    fn watch(&mut self) {
        if let Some(watch) = self.watch.take() {
            watch.begin();
        }
    }

    fn set_up(
        &mut self,
        setup: &Setup,
        segments: Vec<Segment<NewBytes>>,
        runs_user_code: bool,
    ) -> Result<(), Box<Raised<Pickled>>> {
        let is_forked = self.is_forked;
        let Some(python) = &mut self.python else { return Err(Box::new(raised_without_python())) };
        let outcome = Python::attach(|py| {
            let outcome = python.set_up(py, setup, segments);
            if os::copies::is_forked_copy() {
                exit_forked_copy(py, &python.sys, outcome);
            }
            let outcome = outcome.map_err(|error| Box::new(describe(py, error, "setup")));
            python.signals.begin_jobs();
            // The output of `site` or `init`. A template has flushed before the fork.
            if runs_user_code || !is_forked {
                flush(py, &python.sys);
            }
            outcome
        });
        self.resume_sentinel();
        outcome
    }

    fn replace_settings(&mut self, eager: bool, segments: Vec<Segment<NewBytes>>) {
        let Some(python) = &mut self.python else { return };
        Python::attach(|py| {
            if let Err(error) = python.replace_settings(py, eager, segments) {
                // SETTINGS is unanswered, so Python reports the error.
                error.write_unraisable(py, None);
            }
        });
    }

    fn call(&mut self, segments: Vec<Segment<NewBytes>>) -> Answer<Pickled> {
        let Some(python) = &self.python else { return Answer::Raised(raised_without_python()) };
        let answer = Python::attach(|py| {
            let answer = match python.call(py, segments) {
                Ok(pickled) => Answer::Returned(pickled),
                Err((error, stage)) => Answer::Raised(describe(py, error, stage)),
            };
            python.signals.end_job(py, &python.faults);
            flush(py, &python.sys);
            answer
        });
        self.resume_sentinel();
        answer
    }

    fn after_answer(&mut self, answer: Option<Pickled>, was_job: bool) -> Verdict {
        let Some(python) = &self.python else { return Verdict::Stay };
        if self.is_unwatched {
            return Verdict::Retire;
        }
        let retire = if was_job { python.retire.as_ref() } else { None };
        if retire.is_none() && answer.as_ref().is_none_or(Pickled::is_plain) {
            return Verdict::Stay;
        }
        let verdict = Python::attach(|py| {
            drop(answer);
            let Some(retire) = retire else { return Verdict::Stay };
            // `retire` may measure the memory use.
            self.pool.release();
            let retire = retire.bind(py);
            let outcome = raw::JobContext::enter(py, isolate_context).and_then(|_context| {
                let outcome = retire.call0()?;
                refuse_asynchronous(retire, &outcome)?;
                outcome.is_truthy()
            });
            if os::copies::is_forked_copy() {
                exit_forked_copy(py, &python.sys, outcome);
            }
            let verdict = match outcome {
                Ok(false) => Verdict::Stay,
                Ok(true) => Verdict::Retire,
                Err(error) => {
                    let failure = describe(py, error, "retire").failure;
                    let text = if failure.traceback.is_empty() {
                        format!("{}: {}", failure.type_name, failure.message)
                    } else {
                        failure.traceback
                    };
                    Verdict::RetireRaised(format!("the context's retire function raised {text}"))
                }
            };
            python.signals.end_job(py, &python.faults);
            flush(py, &python.sys);
            verdict
        });
        self.resume_sentinel();
        verdict
    }

    fn become_template(&mut self, template: &Template, segments: Vec<Segment<NewBytes>>) -> Result<(), Box<Raised<Pickled>>> {
        self.turn_into_template(template, segments)
    }

    fn fork(&mut self, descriptors: Vec<OwnedFd>) -> Side {
        self.fork_worker(descriptors)
    }

    fn measure(&mut self, at_once: bool) -> Option<Figures> {
        let figures = if at_once { self.meter.read() } else { self.meter.read_if_due() };
        // Kept memory is about to be released, so it is not the job's.
        figures.map(|figures| Figures { rss: figures.rss.saturating_sub(self.pool.kept()), ..figures })
    }

    fn keeps_memory(&self) -> bool {
        self.pool.kept() > 0
    }

    fn release_memory(&mut self) {
        self.pool.release();
    }

    fn interrupted(&mut self) {
        if self.python.is_some() {
            // A handler that user code installed with Python's `signal` module.
            signals::run_handlers();
        }
    }

    fn handlers(&self) -> Option<fn()> {
        let is_used = self.python.as_ref().is_some_and(|python| python.signals.may_have_handlers());
        is_used.then_some(signals::run_handlers as fn())
    }
}

fn welcome(interpreter: &Interpreter, prefixes: Prefixes) -> Welcome {
    Welcome {
        protocol: PROTOCOL_VERSION,
        worker: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id().into(),
        version: interpreter.version.clone(),
        libpython: interpreter.libpython.as_os_str().as_bytes().to_vec(),
        prefix: prefixes.prefix,
        exec_prefix: prefixes.exec_prefix,
        free_threaded: raw::version::FREE_THREADED,
    }
}

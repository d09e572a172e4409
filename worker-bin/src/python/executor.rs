//! The executor that has a Python: attach, unpickle, call, pickle, detach.
//!
//! Rules that the code below keeps:
//! * whatever the user's code raises, a `BaseException` of any kind, becomes the answer to the call;
//! * the function, its arguments and the result are dropped before the next frame is waited for;
//! * what a job printed is out before its caller goes on;
//! * a job has context variables of its own, which begin as those that `init` and imports have set;
//! * a copy of the process that a job forked off never comes back into the session.

#![forbid(unsafe_code)]

use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;

use pyo3::prelude::*;
use trio_offload_worker::exit::{self, Ending};
use trio_offload_worker::launch::{self, Surroundings, Watch};
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
use trio_offload_worker::sentinel::activity::Activity;
use trio_offload_worker::sentinel::guard::Guard;
use trio_offload_worker::sentinel::parent::Parent;
use trio_offload_worker::sentinel::post::Standby;
use trio_offload_worker::session::executor::{Answer, Executor, Raised, Settled};
use trio_offload_worker::transport::buffer_pool::Regions;
use trio_offload_worker::transport::connection::Connection;
use trio_offload_worker::transport::socket::Socket;
use trio_offload_worker::transport::{Allocator, Segment};

use crate::python::errors::{describe, flush, leave_forked_copy, raised_without_python};
use crate::python::faults::Faults;
use crate::python::forks;
use crate::python::interpreter::{Interpreter, Prefixes};
use crate::python::jobs::{PythonSide, part_context, refuse_asynchronous};
use crate::python::pickling::sink::Pickled;
use crate::python::raw;
use crate::python::raw::buffers::NewBytes;
use crate::python::signals::{self, Signals};

pub(crate) struct Worker {
    pub(super) activity: &'static Activity,
    pub(super) surroundings: Option<Surroundings>,
    pub(super) parent: Option<&'static Parent>,
    pub(super) watch: Option<Watch>,
    pub(super) standby: Option<Standby>,
    pub(super) interpreter: Option<Interpreter>,
    pub(super) python: Option<PythonSide>,
    pub(super) meter: Meter,
    /// Where Python is to write the stacks when it dies, until it has been told.
    pub(super) record: Option<RawFd>,
    /// This process is a template, which is watched over by this as long as it does not fork.
    pub(super) guard: Option<Guard>,
    /// What a template was told, until it is one.
    pub(super) hello: Option<Hello>,
    pub(super) is_template: bool,
    /// Which threads the template may have when it forks.
    pub(super) allowed: AllowedThreads,
    pub(super) is_forked: bool,
    /// This process is a worker that a template has just forked.
    pub(super) newborn: Option<Connection<Socket>>,
    pub(super) regions: Regions,
    /// The native thread has stepped aside for a job and cannot be started again.
    pub(super) is_unwatched: bool,
}

impl Worker {
    pub(crate) fn new(surroundings: Surroundings, activity: &'static Activity) -> Self {
        Self {
            activity,
            surroundings: Some(surroundings),
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
            newborn: None,
            regions: Regions::default(),
            is_unwatched: false,
        }
    }

    /// The user's code has come to its end. If it has left the native thread away, that is on duty again now.
    fn take_post(&mut self) {
        if sentinel::post::is_away() {
            self.is_unwatched = sentinel::post::come_back().is_err();
        }
    }

    /// The connection of a worker that a template has just forked.
    pub(crate) fn take_newborn(&mut self) -> Option<Connection<Socket>> {
        self.newborn.take()
    }

    /// Ends Python in order and gives the exit code.
    pub(crate) fn finish(mut self, ending: Ending) -> i32 {
        if let Some(guard) = self.guard.take() {
            guard.dismiss();
        }
        if let Some(parent) = self.parent.filter(|_| self.is_template) {
            sentinel::guard::end_with_parent(parent);
        }
        if self.is_forked && self.parent.is_none() {
            // Nobody has said what it was forked for: there is nothing of a worker's in it that could be owed.
            std::mem::forget((self.python.take(), self.interpreter.take()));
            return ending.code();
        }
        let flushed = if self.is_forked {
            // Nothing of Python's is dropped: its end is the process's.
            std::mem::forget((self.python.take(), self.interpreter.take()));
            Interpreter::leave()
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
        Python::attach(|py| NewBytes::allocate(py, length, kind, &self.regions))
    }
}

impl Executor for Worker {
    type Payload = Pickled;

    fn start(&mut self, hello: &Hello, descriptors: Vec<OwnedFd>) -> Result<Option<Welcome>, Explanation> {
        let Some(surroundings) = self.surroundings.take() else {
            return Err(Explanation::new("interpreter", "the worker has been started already"));
        };
        if let Some(python) = &self.python {
            // Forked: all that is the same in every worker is there.
            launch::settle_in(hello, descriptors).map_err(|error| Explanation::new("environment", error.to_string()))?;
            python.catch_up(hello)?;
            let (parent, watch) = surroundings.meet(hello, self.standby.take(), self.activity)?;
            (self.parent, self.watch) = (Some(parent), Some(watch));
            return Ok(None);
        }
        self.record = Some(surroundings.record());
        if hello.template {
            let (parent, guard) = surroundings.settle_template(hello)?;
            (self.parent, self.guard, self.is_template) = (Some(parent), Some(guard), true);
            self.hello = Some(hello.clone());
        } else {
            self.parent = Some(surroundings.settle(hello, self.activity)?);
        }
        let interpreter = Interpreter::start(hello)?;
        let interpreter = self.interpreter.insert(interpreter);
        Interpreter::boot(hello)?;
        let prefixes = Python::attach(|py| Interpreter::furnish(&py.import("sys")?, hello)).map_err(|error: PyErr| {
            Explanation::new("interpreter", format!("Python started, but its sys module could not be set up: {error}"))
        })?;
        Ok(Some(welcome(interpreter, prefixes)))
    }

    fn equip(&mut self) -> Result<(), Explanation> {
        // A forked worker has everything from its template.
        let Some(record) = self.record.take() else { return Ok(()) };
        let explain = |error: PyErr| {
            Explanation::new("interpreter", format!("Python started, but its signals could not be set up: {error}"))
        };
        // Python notes what handlers there are when it makes its module: those of faults are none of the jobs' business.
        let signals = Python::attach(Signals::new).map_err(explain)?;
        let faults = Python::attach(|py| Faults::report(py, record)).map_err(explain)?;
        let python = Python::attach(|py| forks::install(py).and_then(|()| PythonSide::new(py, signals, faults)))
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
        segments: Vec<Segment<'_, NewBytes>>,
        runs_user_code: bool,
    ) -> Result<(), Box<Raised<Pickled>>> {
        let is_forked = self.is_forked;
        let Some(python) = &mut self.python else { return Err(Box::new(raised_without_python())) };
        let outcome = Python::attach(|py| {
            let outcome = python.set_up(py, setup, segments);
            if os::copies::is_forked_copy() {
                leave_forked_copy(py, &python.sys, outcome);
            }
            let outcome = outcome.map_err(|error| Box::new(describe(py, error, "setup")));
            python.signals.begin_jobs();
            // What `site` or `init` has printed. A template has flushed before it forked.
            if runs_user_code || !is_forked {
                flush(py, &python.sys);
            }
            outcome
        });
        self.take_post();
        outcome
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
        let answer = Python::attach(|py| {
            let answer = match python.call(py, segments) {
                Ok(pickled) => Answer::Returned(pickled),
                Err((error, stage)) => Answer::Raised(describe(py, error, stage)),
            };
            python.signals.end_job(py, &python.faults);
            flush(py, &python.sys);
            answer
        });
        self.take_post();
        answer
    }

    fn settle(&mut self, answer: Option<Pickled>, was_job: bool) -> Settled {
        let Some(python) = &self.python else { return Settled::Stay };
        if self.is_unwatched {
            return Settled::Retire;
        }
        let retire = if was_job { python.retire.as_ref() } else { None };
        if retire.is_none() && answer.as_ref().is_none_or(Pickled::is_plain) {
            return Settled::Stay;
        }
        let settled = Python::attach(|py| {
            drop(answer);
            let Some(retire) = retire else { return Settled::Stay };
            // It may look at how much this process holds.
            self.regions.release();
            let retire = retire.bind(py);
            let outcome = raw::JobContext::enter(py, part_context).and_then(|_context| {
                let verdict = retire.call0()?;
                refuse_asynchronous(retire, &verdict)?;
                verdict.is_truthy()
            });
            if os::copies::is_forked_copy() {
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
            python.signals.end_job(py, &python.faults);
            flush(py, &python.sys);
            settled
        });
        self.take_post();
        settled
    }

    fn become_template(&mut self, template: &Template, segments: Vec<Segment<'_, NewBytes>>) -> Result<(), Box<Raised<Pickled>>> {
        self.turn_into_template(template, segments)
    }

    fn fork(&mut self, descriptors: Vec<OwnedFd>) -> Side {
        self.fork_worker(descriptors)
    }

    fn measure(&mut self, at_once: bool) -> Option<Figures> {
        let figures = if at_once { self.meter.read() } else { self.meter.read_if_due() };
        // What is about to be given back is not the job's.
        figures.map(|figures| Figures { rss: figures.rss.saturating_sub(self.regions.kept()), ..figures })
    }

    fn keeps_memory(&self) -> bool {
        self.regions.kept() > 0
    }

    fn give_memory_back(&mut self) {
        self.regions.release();
    }

    fn interrupted(&mut self) {
        if self.python.is_some() {
            // A handler that the user's code installed with Python's `signal` module.
            signals::run_handlers();
        }
    }

    fn handlers(&self) -> Option<fn()> {
        let is_used = self.python.as_ref().is_some_and(|python| python.signals.are_used());
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

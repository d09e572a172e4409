//! Templates: what is imported for their workers, how one is forked, and how it catches up.

#![forbid(unsafe_code)]

use std::io::Write as _;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use trio_offload_worker::exit::{self};
use trio_offload_worker::launch::{self};
use trio_offload_worker::os;
use trio_offload_worker::os::fork::front::Front;
use trio_offload_worker::os::fork::threads::{self, AllowedThreads};
use trio_offload_worker::os::fork::{ForkError, Side};
use trio_offload_worker::process::meter::Meter;
use trio_offload_worker::protocol::frame::{self, Header, Progress};
use trio_offload_worker::protocol::hello::Hello;
use trio_offload_worker::protocol::message::{Explanation, Failure, Message, Template, clip};
use trio_offload_worker::sentinel::post::Standby;
use trio_offload_worker::session::executor::Raised;
use trio_offload_worker::transport::Segment;

use crate::python::errors::{describe, flush, leave_forked_copy, raised_without_python};
use crate::python::executor::Worker;
use crate::python::hooks::{self};
use crate::python::interpreter::{Interpreter, environment};
use crate::python::jobs::{PythonSide, whole};
use crate::python::pickling::sink::Pickled;
use crate::python::raw;
use crate::python::raw::buffers::NewBytes;

/// What a template is like when it forks, for its workers to compare with what they are to be like. Whatever they need not ask
/// Python for spares each of them pages of memory that it would have to copy.
pub(super) struct OfTemplate {
    pub(super) hello: Hello,
    /// What a worker calls that has something to catch up with.
    pub(super) catch_up: Py<PyAny>,
    /// Each worker needs random numbers of its own.
    pub(super) is_to_be_seeded: bool,
    pub(super) has_multiprocessing: bool,
}

impl Worker {
    /// Goes the way of a greeting and a job once, before there are any. A process that has just been forked shares all memory with its template, and
    /// finds or copies each page when it touches it first; what is touched here no caller waits for.
    pub(crate) fn rehearse(&mut self) {
        /// `(bool, ())`
        const NOTHING: &[u8] = b"\x80\x05cbuiltins\nbool\n)\x86.";
        if let Some(python) = &self.python {
            if let Some(template) = &python.of_template {
                let hello = Hello { bundle: None, ..template.hello.clone() };
                let _ = frame::encode(header_of(Message::Hello(Box::new(hello)))).and_then(|bytes| match frame::parse(&bytes)? {
                    Progress::Ready { header, .. } => Message::from_header(&header).map(drop),
                    Progress::Need(_) => Ok(()),
                });
            }
            Python::attach(|py| {
                drop(python.call(py, vec![Segment::Passing(NOTHING)]));
                flush(py, &python.sys);
            });
        }
        let _ = Meter::of_newborn().read();
        // Without one the start tries again, and says why it cannot.
        self.standby = Standby::start(self.activity).ok();
    }

    pub(super) fn turn_into_template(
        &mut self,
        template: &Template,
        segments: Vec<Segment<'_, NewBytes>>,
    ) -> Result<(), Box<Raised<Pickled>>> {
        let Some(python) = &mut self.python else { return Err(Box::new(raised_without_python())) };
        self.allowed = AllowedThreads::new(template.threads.clone());
        let with_thread = Python::attach(|py| {
            let outcome = python.preload(py, template, segments, &self.allowed);
            flush(py, &python.sys);
            outcome
        })?;
        if let Some(guard) = self.guard.take() {
            guard.dismiss();
        }
        let Some(hello) = self.hello.take() else { return Err(Box::new(raised_without_python())) };
        Python::attach(|py| {
            refuse_threads(py, with_thread, &self.allowed)?;
            let outcome = python.remember_template(py, hello).and_then(|()| freeze(py));
            outcome.map_err(|error| Box::new(describe(py, error, "preload")))
        })
    }

    pub(super) fn fork_worker(&mut self, mut descriptors: Vec<OwnedFd>) -> Side {
        let (Some(python), Some(parent)) = (&self.python, self.parent) else { return Side::Template };
        let birth = descriptors.remove(BIRTH);
        let front = descriptors.get(RECORD).and_then(|record| Front::of(record.as_fd()));
        let mut taken = None;
        let outcome = Python::attach(|py| {
            // What is still to be written would be written by each worker.
            flush(py, &python.sys);
            raw::fork::fork(py, birth.as_fd(), front, &self.allowed, || {
                taken = Some(launch::take_over(std::mem::take(&mut descriptors), parent));
            })
        });
        if let (Err(error), Some(socket)) = (&outcome, descriptors.first()) {
            refuse(socket, error);
        }
        match (outcome, taken) {
            (Ok(Side::Worker), Some(Ok((connection, surroundings)))) => {
                self.newborn = Some(connection);
                self.surroundings = Some(surroundings);
                self.parent = None;
                (self.is_template, self.is_forked) = (false, true);
                self.meter = Meter::of_newborn();
                Side::Worker
            }
            (Ok(Side::Worker), taken) => {
                let text = taken.and_then(Result::err).map_or_else(String::new, |error| error.to_string());
                let _ = writeln!(std::io::stderr(), "trio-offload-worker: {text}");
                os::process::exit_now(exit::WRONG_ARGUMENTS)
            }
            _ => Side::Template,
        }
    }
}

impl PythonSide {
    /// What has changed in the parent since the template was started from which this process was forked.
    pub(super) fn catch_up(&self, hello: &Hello) -> Result<(), Explanation> {
        let Some(template) = &self.of_template else {
            return Err(Explanation::new("interpreter", "a worker was forked off a process that is not a template"));
        };
        let lacks_nothing =
            hello.environment.is_empty() && hello.pycache_prefix == template.hello.pycache_prefix && !template.is_to_be_seeded;
        if lacks_nothing && Interpreter::is_furnished(hello, &template.hello) {
            return Ok(());
        }
        Python::attach(|py| {
            if !lacks_nothing {
                template.catch_up.call1(py, (environment(py, hello)?, hello.pycache_prefix.as_deref()))?;
            }
            Interpreter::furnish(self.sys.bind(py), hello).map(drop)
        })
        .map_err(|error: PyErr| {
            Explanation::new("interpreter", format!("a worker was forked, but it could not be made like its parent: {error}"))
        })
    }

    /// Imports what the workers are to find imported. The first module with which a thread has come, if one has.
    pub(super) fn preload(
        &mut self,
        py: Python<'_>,
        template: &Template,
        segments: Vec<Segment<'_, NewBytes>>,
        allowed: &AllowedThreads,
    ) -> Result<Option<String>, Box<Raised<Pickled>>> {
        let mut with_thread = None;
        let settings = segments.into_iter().next().map_or_else(|| Ok(PyBytes::new(py, b"")), |segment| whole(py, segment));
        settings
            .and_then(|settings| self.take_settings(py, template.eager, settings))
            .and_then(|()| Interpreter::prepare_workers(py).map(drop))
            .and_then(|()| self.trampoline(py).map(drop))
            .map_err(|error| Box::new(describe(py, error, "preload")))?;
        for name in &template.modules {
            let outcome = py.import(name.as_str()).map(drop).and_then(|()| self.resolve_settings(py));
            if os::copies::is_forked_copy() {
                leave_forked_copy(py, &self.sys, outcome);
            }
            if let Err(error) = outcome {
                let mut raised = describe(py, error, "preload");
                raised.failure.module = Some(name.clone());
                return Err(Box::new(raised));
            }
            // The guard is the second.
            if with_thread.is_none() && threads::thread_count() > 2 && allowed.strangers().len() > 1 {
                with_thread = Some(name.clone());
            }
        }
        Ok(with_thread)
    }

    /// Everything has been imported: what follows is the same for all workers.
    pub(super) fn remember_template(&mut self, py: Python<'_>, hello: Hello) -> PyResult<()> {
        let sys = self.sys.bind(py);
        let catch_up = Interpreter::prepare_workers(py)?;
        // Whatever the imports have done to it.
        catch_up.call1(py, (PyDict::new(py), hello.pycache_prefix.as_deref()))?;
        Interpreter::furnish(sys, &hello)?;
        let modules = sys.getattr("modules")?;
        self.of_template = Some(OfTemplate {
            hello,
            catch_up,
            is_to_be_seeded: modules.contains("numpy.random")?,
            has_multiprocessing: hooks::has_multiprocessing(sys)?,
        });
        Ok(())
    }
}

/// Which of a request's descriptors the worker's number is written to.
const BIRTH: usize = 2;

/// Which of them is its record.
const RECORD: usize = 1;

/// Tells the parent on the worker's own socket that there is none.
fn refuse(socket: &OwnedFd, error: &ForkError) {
    let message = Message::Refused(Explanation::new("fork", error.to_string()));
    if let Ok(bytes) = frame::encode(header_of(message)) {
        // A parent that does not read this finds the end of the stream.
        let _ = os::socket::send_at_once(socket.as_raw_fd(), &bytes);
    }
}

fn header_of(message: Message) -> Header {
    Header { kind: message.kind(), id: 0, lengths: Vec::new(), body: message.into_body() }
}

/// A thread whose module has it stopped before a fork, as OpenBLAS does, is none by the time that counts.
fn refuse_threads(py: Python<'_>, module: Option<String>, allowed: &AllowedThreads) -> Result<(), Box<Raised<Pickled>>> {
    if threads::refuse_threads(allowed).is_ok() {
        return Ok(());
    }
    let Err(error) = raw::fork::rehearse_fork(py, allowed) else { return Ok(()) };
    let failure = Failure {
        stage: "threads".to_owned(),
        type_name: "RuntimeError".to_owned(),
        message: clip(error.to_string()),
        traceback: String::new(),
        module,
    };
    Err(Box::new(Raised { failure, exception: None }))
}

/// What there is by now stays until the end of every worker: a collection in one of them has nothing to look for in it, and
/// would take a copy of each page.
fn freeze(py: Python<'_>) -> PyResult<()> {
    let collector = py.import("gc")?;
    collector.call_method0("collect")?;
    collector.call_method0("freeze")?;
    Ok(())
}

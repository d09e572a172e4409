//! Templates: preload modules, fork workers, and refresh a forked worker.

#![forbid(unsafe_code)]

use std::io::Write as _;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use trio_offload_worker::exit;
use trio_offload_worker::launch;
use trio_offload_worker::os;
use trio_offload_worker::os::fork::pid_slot::PidSlot;
use trio_offload_worker::os::fork::threads::{self, AllowedThreads};
use trio_offload_worker::os::fork::{ForkError, Side};
use trio_offload_worker::process::meter::Meter;
use trio_offload_worker::protocol::frame::{self, Header, Progress};
use trio_offload_worker::protocol::hello::Hello;
use trio_offload_worker::protocol::message::{Explanation, Failure, Message, Template, clip};
use trio_offload_worker::session::executor::Raised;
use trio_offload_worker::transport::Segment;

use crate::python::errors::{describe, exit_forked_copy, flush, raised_without_python};
use crate::python::executor::Worker;
use crate::python::hooks;
use crate::python::interpreter::{Interpreter, environment};
use crate::python::jobs::{PythonSide, into_bytes};
use crate::python::pickling::sink::Pickled;
use crate::python::raw;
use crate::python::raw::buffers::NewBytes;

/// Index of the pipe for the process ID, among the descriptors of a request.
const PID_PIPE: usize = 2;

/// Index of the record.
const RECORD: usize = 1;

/// The state of a template at a fork. Its workers compare with it instead of asking Python, which
/// would copy pages of memory.
pub(super) struct TemplateState {
    pub(super) hello: Hello,
    /// `trio_offload_worker._jobs.forked.refresh`, called if something has changed.
    pub(super) refresh: Py<PyAny>,
    /// True if each worker must seed random numbers.
    pub(super) is_to_be_seeded: bool,
    pub(super) has_multiprocessing: bool,
}

impl Worker {
    /// Warm up a freshly forked worker. Run a dummy handshake and job, so that the copy-on-write
    /// page faults happen before a caller is waiting.
    pub(crate) fn warm_up(&mut self) {
        /// `(bool, ())`
        const NOTHING: &[u8] = b"\x80\x05cbuiltins\nbool\n)\x86.";
        if let Some(python) = &self.python {
            if let Some(template) = &python.template_state {
                let hello = Hello { bundle: None, ..template.hello.clone() };
                let _ = frame::encode(header_of(Message::Hello(Box::new(hello)))).and_then(|bytes| match frame::parse(&bytes)? {
                    Progress::Ready { header, .. } => Message::from_header(&header).map(drop),
                    Progress::Need(_) => Ok(()),
                });
            }
            Python::attach(|py| {
                drop(python.call(py, vec![Segment::Shared(NOTHING.into())]));
                flush(py, &python.sys);
            });
        }
        let _ = Meter::of_forked().read();
        // If this fails, the start tries again and reports the error.
        self.standby = self.process_setup.as_ref().and_then(|setup| setup.start_standby(self.activity).ok());
    }

    pub(super) fn turn_into_template(
        &mut self,
        template: &Template,
        segments: Vec<Segment<NewBytes>>,
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
        let pid_pipe = descriptors.remove(PID_PIPE);
        let pid_slot = descriptors.get(RECORD).and_then(|record| PidSlot::of(record.as_fd()));
        let mut taken = None;
        let outcome = Python::attach(|py| {
            // Each worker would write the buffered output.
            flush(py, &python.sys);
            raw::fork::fork(py, pid_pipe.as_fd(), pid_slot, &self.allowed, || {
                taken = Some(launch::take_over(std::mem::take(&mut descriptors), parent));
            })
        });
        if let (Err(error), Some(socket)) = (&outcome, descriptors.first()) {
            refuse(socket, error);
        }
        match (outcome, taken) {
            (Ok(Side::Worker), Some(Ok((connection, process_setup)))) => {
                self.forked_connection = Some(connection);
                self.process_setup = Some(process_setup);
                self.parent = None;
                (self.is_template, self.is_forked) = (false, true);
                self.meter = Meter::of_forked();
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
    /// Apply the changes in the parent since the template's start.
    pub(super) fn refresh(&self, hello: &Hello) -> Result<(), Explanation> {
        let Some(template) = &self.template_state else {
            return Err(Explanation::new("interpreter", "a worker was forked off a process that is not a template"));
        };
        let lacks_nothing =
            hello.environment.is_empty() && hello.pycache_prefix == template.hello.pycache_prefix && !template.is_to_be_seeded;
        if lacks_nothing && Interpreter::is_configured_alike(hello, &template.hello) {
            return Ok(());
        }
        Python::attach(|py| {
            if !lacks_nothing {
                template.refresh.call1(py, (environment(py, hello)?, hello.pycache_prefix.as_deref()))?;
            }
            Interpreter::configure_sys(self.sys.bind(py), hello).map(drop)
        })
        .map_err(|error: PyErr| {
            Explanation::new("interpreter", format!("a forked worker could not apply the settings of the parent: {error}"))
        })
    }

    /// Import the modules for the workers. Return the first module that started a thread, if any.
    pub(super) fn preload(
        &mut self,
        py: Python<'_>,
        template: &Template,
        segments: Vec<Segment<NewBytes>>,
        allowed: &AllowedThreads,
    ) -> Result<Option<String>, Box<Raised<Pickled>>> {
        let mut with_thread = None;
        let settings = segments.into_iter().next().map_or_else(|| Ok(PyBytes::new(py, b"")), |segment| into_bytes(py, segment));
        settings
            .and_then(|settings| self.take_settings(py, template.eager, settings))
            .and_then(|()| Interpreter::prepare_forks(py).map(drop))
            .and_then(|()| self.trampoline(py).map(drop))
            .map_err(|error| Box::new(describe(py, error, "preload")))?;
        for name in &template.modules {
            let outcome = py.import(name.as_str()).map(drop).and_then(|()| self.resolve_settings(py));
            if os::copies::is_forked_copy() {
                exit_forked_copy(py, &self.sys, outcome);
            }
            if let Err(error) = outcome {
                let mut raised = describe(py, error, "preload");
                raised.failure.module = Some(clip(name.clone()));
                return Err(Box::new(raised));
            }
            // The guard is the second thread.
            if with_thread.is_none() && threads::thread_count() > 2 && allowed.unexpected().len() > 1 {
                with_thread = Some(clip(name.clone()));
            }
        }
        Ok(with_thread)
    }

    /// Save the state that is the same for all workers.
    pub(super) fn remember_template(&mut self, py: Python<'_>, hello: Hello) -> PyResult<()> {
        let sys = self.sys.bind(py);
        let refresh = Interpreter::prepare_forks(py)?;
        // Undo changes that the imports have made.
        refresh.call1(py, (PyDict::new(py), hello.pycache_prefix.as_deref()))?;
        Interpreter::configure_sys(sys, &hello)?;
        let modules = sys.getattr("modules")?;
        self.template_state = Some(TemplateState {
            hello,
            refresh,
            is_to_be_seeded: modules.contains("numpy.random")?,
            has_multiprocessing: hooks::has_multiprocessing(sys)?,
        });
        Ok(())
    }
}

/// Report a failed fork on the worker's own socket.
fn refuse(socket: &OwnedFd, error: &ForkError) {
    let message = Message::Refused(Explanation::new("fork", error.to_string()));
    if let Ok(bytes) = frame::encode(header_of(message)) {
        // Without it the parent sees an end of the stream.
        let _ = os::socket::send_at_once(socket.as_raw_fd(), &bytes);
    }
}

fn header_of(message: Message) -> Header {
    Header { kind: message.kind(), id: 0, lengths: Vec::new(), body: message.into_body() }
}

/// Refuse a template with threads. A thread that its module stops before a fork does not count, as
/// in OpenBLAS.
fn refuse_threads(py: Python<'_>, module: Option<String>, allowed: &AllowedThreads) -> Result<(), Box<Raised<Pickled>>> {
    if threads::refuse_threads(allowed).is_ok() {
        return Ok(());
    }
    let Err(error) = raw::fork::dry_run_fork(py, allowed) else { return Ok(()) };
    let failure = Failure {
        stage: "threads".to_owned(),
        type_name: "RuntimeError".to_owned(),
        message: clip(error.to_string()),
        traceback: String::new(),
        module,
    };
    Err(Box::new(Raised { failure, exception: None }))
}

/// Exclude all present objects from garbage collection: in a worker it would only copy their pages.
fn freeze(py: Python<'_>) -> PyResult<()> {
    let collector = py.import("gc")?;
    collector.call_method0("collect")?;
    collector.call_method0("freeze")?;
    Ok(())
}

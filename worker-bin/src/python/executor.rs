//! The executor that has a Python: attach, unpickle, call, pickle, detach.
//!
//! Rules that the code below keeps:
//! * whatever the user's code raises, a `BaseException` of any kind, becomes the answer to the call;
//! * the function, its arguments and the result are dropped before the next frame is waited for;
//! * what a job printed is out before its caller goes on;
//! * a job has context variables of its own, which begin as those that `init` and imports have set;
//! * a copy of the process that a job forked off never comes back into the session.

use std::ffi::CStr;
use std::io::Write as _;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;

use pyo3::exceptions::{PySystemExit, PyTypeError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyCFunction, PyDict, PyTuple};
use trio_offload_worker::exit::{self, Ending};
use trio_offload_worker::launch::{self, Surroundings, Watch};
use trio_offload_worker::os;
use trio_offload_worker::os::fork::{self, AllowedThreads, ForkError, Front, Side};
use trio_offload_worker::process::family;
use trio_offload_worker::process::meter::{Figures, Meter};
use trio_offload_worker::protocol::frame::{self, Header, Progress};
use trio_offload_worker::protocol::message::{
    Explanation, Failure, Hello, Message, PROTOCOL_VERSION, SegmentType, Setup, Template, Welcome, clip,
};
use trio_offload_worker::sentinel::{self, Activity, Guard, Parent, Standby};
use trio_offload_worker::session::{Answer, Executor, Raised, Settled};
use trio_offload_worker::transport::buffer_pool::Regions;
use trio_offload_worker::transport::connection::{Allocator, Connection, Segment, Socket};

use crate::python::faults::Faults;
use crate::python::forks;
use crate::python::hooks::{self, Settings};
use crate::python::interpreter::{Interpreter, Prefixes, environment};
use crate::python::pickling::{Pickled, Pickling};
use crate::python::raw::{self, HeldBytes, NewBytes};
use crate::python::signals::{self, Signals};

pub(crate) struct Worker {
    activity: &'static Activity,
    surroundings: Option<Surroundings>,
    parent: Option<&'static Parent>,
    watch: Option<Watch>,
    standby: Option<Standby>,
    interpreter: Option<Interpreter>,
    python: Option<PythonSide>,
    meter: Meter,
    /// Where Python is to write the stacks when it dies, until it has been told.
    record: Option<RawFd>,
    /// This process is a template, which is watched over by this as long as it does not fork.
    guard: Option<Guard>,
    /// What a template was told, until it is one.
    hello: Option<Hello>,
    is_template: bool,
    /// Which threads the template may have when it forks.
    allowed: AllowedThreads,
    is_forked: bool,
    /// This process is a worker that a template has just forked.
    newborn: Option<Connection<Socket>>,
    regions: Regions,
    /// The native thread has stepped aside for a job and cannot be started again.
    is_unwatched: bool,
}

/// Its file's name is known to `trio_offload_worker._exceptions`, which takes it out of tracebacks.
const TRAMPOLINE: &CStr = c"lambda function, arguments: function(*arguments)";

/// The objects that live from the start to the end.
struct PythonSide {
    pickling: Pickling,
    sys: Py<PyModule>,
    signals: Signals,
    faults: Faults,
    settings: Option<Arc<Settings>>,
    retire: Option<Py<PyAny>>,
    /// `eval` and its like look at the frame that calls them; made when the first of them is called.
    trampoline: PyOnceLock<Py<PyAny>>,
    /// `trio_offload_worker._settings`, while it may still have something to do.
    pending_settings: Option<Py<PyModule>>,
    /// Of a template, and in its workers.
    of_template: Option<OfTemplate>,
}

/// What a template is like when it forks, for its workers to compare with what they are to be like. Whatever they need not ask
/// Python for spares each of them pages of memory that it would have to copy.
struct OfTemplate {
    hello: Hello,
    /// What a worker calls that has something to catch up with.
    catch_up: Py<PyAny>,
    /// Each worker needs random numbers of its own.
    is_to_be_seeded: bool,
    has_multiprocessing: bool,
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
        if sentinel::is_away() {
            self.is_unwatched = sentinel::come_back().is_err();
        }
    }

    /// The connection of a worker that a template has just forked.
    pub(crate) fn take_newborn(&mut self) -> Option<Connection<Socket>> {
        self.newborn.take()
    }

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

    /// Ends Python in order and gives the exit code.
    pub(crate) fn finish(mut self, ending: Ending) -> i32 {
        if let Some(guard) = self.guard.take() {
            guard.dismiss();
        }
        if let Some(parent) = self.parent.filter(|_| self.is_template) {
            sentinel::end_with_parent(parent);
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
            if os::is_forked_copy() {
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
            python.signals.end_job(py, &python.faults);
            flush(py, &python.sys);
            settled
        });
        self.take_post();
        settled
    }

    fn become_template(&mut self, template: &Template, segments: Vec<Segment<'_, NewBytes>>) -> Result<(), Box<Raised<Pickled>>> {
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

    fn fork(&mut self, mut descriptors: Vec<OwnedFd>) -> Side {
        let (Some(python), Some(parent)) = (&self.python, self.parent) else { return Side::Template };
        let birth = descriptors.remove(BIRTH);
        let front = descriptors.get(RECORD).and_then(|record| Front::of(record.as_fd()));
        let mut taken = None;
        let outcome = Python::attach(|py| {
            // What is still to be written would be written by each worker.
            flush(py, &python.sys);
            raw::fork(py, birth.as_fd(), front, &self.allowed, || {
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
                os::exit_now(exit::WRONG_ARGUMENTS)
            }
            _ => Side::Template,
        }
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

impl PythonSide {
    fn new(py: Python<'_>, signals: Signals, faults: Faults) -> PyResult<Self> {
        Ok(Self {
            faults,
            pickling: Pickling::new(py)?,
            sys: py.import("sys")?.unbind(),
            signals,
            settings: None,
            retire: None,
            trampoline: PyOnceLock::new(),
            pending_settings: None,
            of_template: None,
        })
    }

    /// What has changed in the parent since the template was started from which this process was forked.
    fn catch_up(&self, hello: &Hello) -> Result<(), Explanation> {
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

    fn set_up(&mut self, py: Python<'_>, setup: &Setup, segments: Vec<Segment<'_, NewBytes>>) -> PyResult<()> {
        let mut pickles = segments.into_iter().map(|segment| whole(py, segment));
        let mut next = || pickles.next().unwrap_or_else(|| Ok(PyBytes::new(py, b"")));
        let (settings, init, retire) = (next()?, next()?, next()?);
        self.take_settings(py, setup.eager, settings)?;
        if let Some(init) = self.callable(&init)? {
            let outcome = init.call0()?;
            refuse_asynchronous(&init, &outcome)?;
        }
        // Afterwards: a `retire` may look, while it is unpickled, at what the worker holds before its first job.
        self.retire = self.callable(&retire)?.map(Bound::unbind);
        Ok(())
    }

    fn take_settings(&mut self, py: Python<'_>, eager: bool, pickled: Bound<'_, PyBytes>) -> PyResult<()> {
        let settings = if let Some(settings) = &self.settings {
            // Of the template from which this worker was forked, with everything in place.
            if settings.replace(pickled) {
                hooks::renew_main(py, settings)?;
            }
            if self.of_template.as_ref().is_none_or(|template| template.has_multiprocessing) {
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

    /// Imports what the workers are to find imported. The first module with which a thread has come, if one has.
    fn preload(
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
            if os::is_forked_copy() {
                leave_forked_copy(py, &self.sys, outcome);
            }
            if let Err(error) = outcome {
                let mut raised = describe(py, error, "preload");
                raised.failure.module = Some(name.clone());
                return Err(Box::new(raised));
            }
            // The guard is the second.
            if with_thread.is_none() && fork::thread_count() > 2 && allowed.strangers().len() > 1 {
                with_thread = Some(name.clone());
            }
        }
        Ok(with_thread)
    }

    /// Everything has been imported: what follows is the same for all workers.
    fn remember_template(&mut self, py: Python<'_>, hello: Hello) -> PyResult<()> {
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

    fn replace_settings(&mut self, py: Python<'_>, eager: bool, segments: Vec<Segment<'_, NewBytes>>) -> PyResult<()> {
        let Some(settings) = self.settings.clone() else { return Ok(()) };
        let Some(segment) = segments.into_iter().next() else { return Ok(()) };
        settings.replace(whole(py, segment)?);
        hooks::adopt_imported(self.sys.bind(py), &settings)?;
        if eager {
            self.apply(py, &settings)?;
        }
        // Afterwards: that may have let go of a script that is not the parent's any more.
        hooks::renew_main(py, &settings)
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
        // Behind the unpickling: what the import of a module sets is for all jobs.
        let _context = raw::JobContext::enter(py, part_context).map_err(|error| (error, "call"))?;
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
        self.trampoline(py)?.call1((function, arguments))
    }

    fn trampoline<'py>(&self, py: Python<'py>) -> PyResult<&Bound<'py, PyAny>> {
        let trampoline = self.trampoline.get_or_try_init(py, || {
            // Not the function `compile`, which makes the hundred classes of the module `ast` first.
            let code = raw::compile_expression(py, TRAMPOLINE, c"<trio-offload>")?;
            PyResult::Ok(py.import("builtins")?.call_method1("eval", (code, py.import("__main__")?.dict()))?.unbind())
        })?;
        Ok(trampoline.bind(py))
    }

    fn dump(&self, value: &Bound<'_, PyAny>) -> PyResult<Pickled> {
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

/// Which of a request's descriptors the worker's number is written to.
const BIRTH: usize = 2;
/// Which of them is its record.
const RECORD: usize = 1;

fn welcome(interpreter: &Interpreter, prefixes: Prefixes) -> Welcome {
    Welcome {
        protocol: PROTOCOL_VERSION,
        worker: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id().into(),
        version: interpreter.version.clone(),
        libpython: interpreter.libpython.as_os_str().as_bytes().to_vec(),
        prefix: prefixes.prefix,
        exec_prefix: prefixes.exec_prefix,
        free_threaded: raw::FREE_THREADED,
    }
}

/// Tells the parent on the worker's own socket that there is none.
fn refuse(socket: &OwnedFd, error: &ForkError) {
    let message = Message::Refused(Explanation::new("fork", error.to_string()));
    if let Ok(bytes) = frame::encode(header_of(message)) {
        // A parent that does not read this finds the end of the stream.
        let _ = os::send_at_once(socket.as_raw_fd(), &bytes);
    }
}

fn header_of(message: Message) -> Header {
    Header { kind: message.kind(), id: 0, lengths: Vec::new(), body: message.into_body() }
}

/// A thread whose module has it stopped before a fork, as OpenBLAS does, is none by the time that counts.
fn refuse_threads(py: Python<'_>, module: Option<String>, allowed: &AllowedThreads) -> Result<(), Box<Raised<Pickled>>> {
    if fork::refuse_threads(allowed).is_ok() {
        return Ok(());
    }
    let Err(error) = raw::rehearse_fork(py, allowed) else { return Ok(()) };
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

/// Keeps apart what jobs could change in each other's context variables.
fn part_context(context: &Bound<'_, PyAny>) -> PyResult<()> {
    context.py().import("trio_offload_worker._contexts")?.call_method1("part", (context,)).map(drop)
}

/// A segment as `bytes` of its own.
fn whole<'py>(py: Python<'py>, segment: Segment<'_, NewBytes>) -> PyResult<Bound<'py, PyBytes>> {
    match segment {
        Segment::Passing(bytes) => Ok(PyBytes::new(py, bytes)),
        Segment::Owned(bytes) => Ok(PyBytes::new(py, HeldBytes::hold(&bytes.into_object(py)?)?.bytes())),
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

/// The exception as the parent gets it. Nothing in here may fail, whatever the exception's class does.
///
/// `into_value` and not `value`: before Python 3.12 the traceback of a caught exception is not yet in the exception itself.
fn describe(py: Python<'_>, error: PyErr, stage: &'static str) -> Raised<Pickled> {
    let described = py.import("trio_offload_worker._exceptions").and_then(|module| {
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

/// The session reaches SETUP and CALL only after a start; this is what it would get otherwise.
fn raised_without_python() -> Raised<Pickled> {
    let message = "the worker has no running Python; this is an error in trio-offload".to_owned();
    Raised { failure: failure("call", "RuntimeError".to_owned(), message, String::new()), exception: None }
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

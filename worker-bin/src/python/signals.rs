//! Signals in jobs. They work as in any Python, except Ctrl+C: the parent cancels its jobs. It has
//! an empty Python handler, which a job can save and restore.
//!
//! After a job these are restored: the handlers of SIGINT and of faults (`faults.rs`), the mask,
//! interval timers, the wakeup descriptor. Other handlers stay, and run in jobs and while the
//! worker is idle. All of this starts once a job has imported `signal`.

use std::cell::{Cell, RefCell};

use pyo3::prelude::*;
use pyo3::types::{PyCFunction, PyDict, PyTuple};
use trio_offload_worker::os;

use crate::python::faults::Faults;

pub(crate) struct Signals {
    /// `sys.modules`, as the interpreter has it.
    modules: Py<PyDict>,
    /// `_signal`.
    module: Py<PyModule>,
    /// The handler of SIGINT.
    interrupt: Py<PyAny>,
    is_used: Cell<bool>,
    /// The number of modules when `signal` was last looked up.
    modules_seen: Cell<usize>,
    before_jobs: RefCell<State>,
}

/// The state before jobs.
#[derive(Debug, Default)]
struct State {
    interrupt: Option<os::signals::Disposition>,
    faults: [Option<os::signals::Disposition>; 6],
    mask: Option<os::signals::SignalMask>,
    timers: [bool; 3],
}

impl State {
    fn now() -> Self {
        Self {
            interrupt: os::signals::interrupt_disposition(),
            faults: os::signals::fault_dispositions(),
            mask: os::signals::SignalMask::now(),
            timers: os::signals::running_timers(),
        }
    }
}

impl Signals {
    pub(crate) fn new(py: Python<'_>) -> PyResult<Self> {
        let modules = py.import("sys")?.getattr("modules")?.cast_into::<PyDict>()?.unbind();
        let nothing = |arguments: &Bound<'_, PyTuple>, _keywords: Option<&Bound<'_, PyDict>>| arguments.py().None();
        let interrupt = PyCFunction::new_closure(py, Some(c"leave_interrupts_to_the_parent"), None, nothing)?;
        let signals = Self {
            modules,
            module: py.import("_signal")?.unbind(),
            interrupt: interrupt.into_any().unbind(),
            is_used: Cell::new(false),
            modules_seen: Cell::new(0),
            before_jobs: RefCell::default(),
        };
        signals.swallow_interrupts(py)?;
        Ok(signals)
    }

    fn swallow_interrupts(&self, py: Python<'_>) -> PyResult<()> {
        let number = self.module.bind(py).getattr(pyo3::intern!(py, "SIGINT"))?;
        self.module.call_method1(py, pyo3::intern!(py, "signal"), (&number, &self.interrupt))?;
        // Let a library's system call continue.
        self.module.call_method1(py, pyo3::intern!(py, "siginterrupt"), (number, false)).map(drop)
    }

    /// Save the present state: it is restored after each job.
    pub(crate) fn begin_jobs(&self) {
        self.before_jobs.replace(State::now());
    }

    /// True if a job may have installed a handler, which takes the module `signal`.
    pub(crate) fn may_have_handlers(&self) -> bool {
        self.is_used.get()
    }

    /// Restore the state after a job.
    pub(crate) fn end_job(&self, py: Python<'_>, faults: &Faults) {
        if !self.is_used.get() {
            let modules = self.modules.bind(py);
            // A failed lookup takes 250 instructions. An import adds a module.
            if self.modules_seen.replace(modules.len()) == modules.len()
                || !modules.contains(pyo3::intern!(py, "signal")).unwrap_or(true)
            {
                return;
            }
            self.is_used.set(true);
        }
        if let Err(error) = self.put_back(py, faults) {
            error.write_unraisable(py, None);
        }
    }

    fn put_back(&self, py: Python<'_>, faults: &Faults) -> PyResult<()> {
        let before = self.before_jobs.borrow();
        let module = self.module.bind(py);
        if let Some(mask) = &before.mask {
            mask.restore();
        }
        let running = os::signals::running_timers();
        let stop = [0, 1, 2].map(|timer| running.get(timer) == Some(&true) && before.timers.get(timer) == Some(&false));
        if stop.contains(&true) {
            os::signals::stop_timers(stop);
        }
        if os::signals::interrupt_disposition() != before.interrupt
            || !module
                .call_method1(pyo3::intern!(py, "getsignal"), (module.getattr(pyo3::intern!(py, "SIGINT"))?,))?
                .is(&self.interrupt)
        {
            self.swallow_interrupts(py)?;
        }
        if os::signals::fault_dispositions() != before.faults {
            faults.rearm(py)?;
        }
        module.call_method1(pyo3::intern!(py, "set_wakeup_fd"), (-1,)).map(drop)
    }
}

/// Run the pending handlers. Python reports their exceptions.
pub(crate) fn run_handlers() {
    Python::attach(|py| {
        if let Err(error) = py.check_signals() {
            error.write_unraisable(py, None);
        }
    });
}

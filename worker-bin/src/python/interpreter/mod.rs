//! The running interpreter: check the library, and start it as the parent's own Python.

mod bundle;

use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};
use trio_offload_worker::os;
use trio_offload_worker::protocol::hello::Hello;
use trio_offload_worker::protocol::message::Explanation;

use crate::python::config::{Config, version_number};
use crate::python::raw;

/// The Python part of templates.
const OF_TEMPLATES: &str = "trio_offload_worker._jobs.forked";

/// The libpython that the loader chose for this process.
pub(crate) fn loaded_library() -> PathBuf {
    os::library_that_defines(c"Py_GetVersion").unwrap_or_default()
}

#[derive(Debug)]
pub(crate) struct Interpreter {
    running: raw::py_config::Running,
    /// As `sys.version` has it.
    pub(crate) version: String,
    pub(crate) libpython: PathBuf,
}

/// Facts that only the running interpreter knows.
#[derive(Debug, Clone)]
pub(crate) struct Prefixes {
    pub(crate) prefix: Vec<u8>,
    pub(crate) exec_prefix: Vec<u8>,
}

impl Interpreter {
    /// Check that the library is the parent's, and start it.
    pub(crate) fn start(hello: &Hello) -> Result<Self, Explanation> {
        let (version, libpython) = (raw::version::version(), loaded_library());
        check_version(hello, &version, &libpython)?;
        let running = raw::py_config::Running::start(&Config::from_hello(hello)).map_err(|error| {
            Explanation::new("interpreter", format!("Python did not start in the worker: {error}{}", home_hint()))
        })?;
        Ok(Self { running, version, libpython })
    }

    /// Do the work of PyInstaller's bootloader, if the parent is such an app.
    pub(crate) fn boot(hello: &Hello) -> Result<(), Explanation> {
        let Some(bundle) = &hello.bundle else { return Ok(()) };
        Python::attach(|py| {
            bundle::boot(py, bundle).map_err(|error| {
                let traceback = error.traceback(py).and_then(|traceback| traceback.format().ok()).unwrap_or_default();
                Explanation::new(
                    "interpreter",
                    format!("Python started, but PyInstaller's code that runs before the app failed: {error}\n{traceback}"),
                )
            })
        })
    }

    /// Set the lists in `sys`, and return where Python is installed.
    pub(crate) fn configure_sys(sys: &Bound<'_, PyModule>, hello: &Hello) -> PyResult<Prefixes> {
        set_list(sys, "path", &hello.path)?;
        // These three are part of the configuration too. But Python adds to them, in an order that
        // may differ from a command line's (Python/initconfig.c, config_init_warnoptions).
        set_list(sys, "argv", &hello.argv)?;
        set_list(sys, "orig_argv", &hello.orig_argv)?;
        set_list(sys, "warnoptions", &hello.warnoptions)?;
        set_digits(sys, hello)?;
        set_lazy_imports(sys, hello)?;
        let path = |name| PyResult::Ok(sys.getattr(name)?.extract::<PathBuf>()?.into_os_string().into_vec());
        Ok(Prefixes { prefix: path("prefix")?, exec_prefix: path("exec_prefix")? })
    }

    /// True if [`Self::configure_sys`] would do the same for both.
    pub(crate) fn is_configured_alike(hello: &Hello, other: &Hello) -> bool {
        hello.path == other.path
            && hello.argv == other.argv
            && hello.orig_argv == other.orig_argv
            && hello.warnoptions == other.warnoptions
            && wanted_digits(hello) == wanted_digits(other)
            && wanted_lazy_imports(hello) == wanted_lazy_imports(other)
    }

    /// Import the part of a template that its workers need; return the function that they call
    /// first.
    pub(crate) fn prepare_forks(py: Python<'_>) -> PyResult<Py<PyAny>> {
        Ok(py.import(OF_TEMPLATES)?.getattr("refresh")?.unbind())
    }

    /// Exit a forked worker. Return false if standard output could not be flushed.
    pub(crate) fn exit_forked() -> bool {
        Python::attach(|py| {
            let outcome = py.import(OF_TEMPLATES).and_then(|module| module.call_method0("leave")?.extract());
            outcome.unwrap_or_else(|error| {
                error.write_unraisable(py, None);
                false
            })
        })
    }

    /// Return false if standard output could not be flushed.
    pub(crate) fn finish(self) -> bool {
        self.running.finish()
    }
}

pub(crate) fn environment<'py>(py: Python<'py>, hello: &Hello) -> PyResult<Bound<'py, PyDict>> {
    let variables = PyDict::new(py);
    for (name, value) in &hello.environment {
        variables.set_item(PyBytes::new(py, name), value.as_deref().map(|value| PyBytes::new(py, value)))?;
    }
    Ok(variables)
}

/// PYTHONHOME can keep every Python from starting; it may be meant for another one.
fn home_hint() -> String {
    match std::env::var_os("PYTHONHOME") {
        Some(home) => format!(". The variable PYTHONHOME is set to {home:?}; is that where this Python is installed?"),
        None => String::new(),
    }
}

/// The length limit of integers in text. Before 3.12 it is not part of the configuration.
fn set_digits(sys: &Bound<'_, PyModule>, hello: &Hello) -> PyResult<()> {
    if let Some(wanted) = wanted_digits(hello)
        && sys.hasattr("set_int_max_str_digits")?
        && sys.call_method0("get_int_max_str_digits")?.extract::<i32>()? != wanted
    {
        sys.call_method1("set_int_max_str_digits", (wanted,))?;
    }
    Ok(())
}

fn wanted_digits(hello: &Hello) -> Option<i32> {
    flag(hello, "int_max_str_digits")
}

/// Lazy imports (PEP 810). As part of the configuration they would show in `sys.flags`, which
/// reflects the parent's start rather than its present state.
fn set_lazy_imports(sys: &Bound<'_, PyModule>, hello: &Hello) -> PyResult<()> {
    if let Some(wanted) = wanted_lazy_imports(hello)
        && sys.hasattr("set_lazy_imports")?
    {
        let wanted = if wanted { "all" } else { "normal" };
        if sys.call_method0("get_lazy_imports")?.extract::<String>()? != wanted {
            sys.call_method1("set_lazy_imports", (wanted,))?;
        }
    }
    Ok(())
}

fn wanted_lazy_imports(hello: &Hello) -> Option<bool> {
    flag(hello, "lazy_imports").map(|value| value != 0)
}

fn flag(hello: &Hello, name: &str) -> Option<i32> {
    hello.flags.iter().find(|(known, _)| known == name).map(|(_, wanted)| *wanted)
}

/// Change the list in place, because other code holds it, and only if it differs.
fn set_list(sys: &Bound<'_, PyModule>, name: &str, items: &[Vec<u8>]) -> PyResult<()> {
    let py = sys.py();
    let wanted = items.iter().map(|item| raw::decode(py, item)).collect::<PyResult<Vec<_>>>()?;
    let wanted = PyList::new(py, wanted)?;
    let list = sys.getattr(name)?.cast_into::<PyList>()?;
    if !list.eq(&wanted)? {
        list.set_slice(0, list.len(), wanted.as_any())?;
    }
    Ok(())
}

/// Check that the builds are the same. An extension module or a `.pyc` of one 3.11 may break in
/// another.
///
/// The version texts must be equal, with one exception: a statically linked interpreter may have
/// been compiled a minute before its shared library. Then the version's number and the path decide.
fn check_version(hello: &Hello, version: &str, loaded: &Path) -> Result<(), Explanation> {
    if hello.free_threaded != raw::version::FREE_THREADED {
        let kind = |free_threaded| if free_threaded { "a free-threaded build" } else { "a build with a GIL" };
        let text = format!(
            "the parent's Python is {}, and the worker executable is made for {}. Install trio-offload with the Python that \
             runs the program",
            kind(hello.free_threaded),
            kind(raw::version::FREE_THREADED),
        );
        return Err(Explanation::new("python_version", text));
    }
    if version == hello.version {
        return Ok(());
    }
    let wanted = PathBuf::from(std::ffi::OsStr::from_bytes(&hello.libpython));
    let wanted = std::fs::canonicalize(&wanted).unwrap_or(wanted);
    if version_number(version) == version_number(&hello.version) && !wanted.as_os_str().is_empty() && wanted == loaded {
        return Ok(());
    }
    let text = format!(
        "the worker has loaded another Python than the parent's. The parent is {} with the library {}; the worker found {} in {}. \
         Start the parent with a Python whose shared library is installed, or check LD_LIBRARY_PATH. \
         `trio-offload doctor` shows the searched places.",
        hello.version.replace('\n', " "),
        wanted.display(),
        version.replace('\n', " "),
        loaded.display(),
    );
    Err(Explanation::new("python_version", text))
}

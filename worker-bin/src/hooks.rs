//! What is put off until a job needs it: the user's main script, and `multiprocessing`'s idea of this process.
//!
//! Both wait in the import system and cost nothing that can be measured until then. Neither imports anything before.

use std::cell::Cell;
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::exceptions::PyAttributeError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyCFunction, PyDict, PyList, PyTuple};

/// The settings that came last, unpickled whenever they are asked for: that is seldom more than once.
pub(crate) struct Settings {
    pickled: Mutex<Py<PyBytes>>,
    loads: Py<PyAny>,
}

impl Settings {
    pub(crate) fn new(pickled: Py<PyBytes>, loads: Py<PyAny>) -> Arc<Self> {
        Arc::new(Self { pickled: Mutex::new(pickled), loads })
    }

    pub(crate) fn replace(&self, pickled: Py<PyBytes>) {
        *self.pickled.lock().unwrap_or_else(PoisonError::into_inner) = pickled;
    }

    pub(crate) fn get<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        // The lock is not held while Python runs: another thread of Python's may ask too.
        let pickled = self.pickled.lock().unwrap_or_else(PoisonError::into_inner).clone_ref(py);
        if pickled.bind(py).as_bytes().is_empty() {
            return Ok(PyDict::new(py).into_any());
        }
        self.loads.bind(py).call1((pickled,))
    }
}

/// Puts everything in place.
pub(crate) fn install(py: Python<'_>, settings: &Arc<Settings>) -> PyResult<()> {
    let sys = py.import("sys")?;
    let modules = sys.getattr("modules")?;
    install_main(py, &modules, Arc::clone(settings))?;
    if adopt_imported(&sys, settings)? {
        // Something that `site` runs has imported it already.
        return Ok(());
    }
    let finder = Py::new(py, MultiprocessingFinder { settings: Arc::clone(settings) })?;
    sys.getattr("meta_path")?.cast::<PyList>()?.insert(0, finder)
}

/// Gives `multiprocessing` the process's identity if it is imported; whether it is.
pub(crate) fn adopt_imported(sys: &Bound<'_, PyModule>, settings: &Settings) -> PyResult<bool> {
    let py = sys.py();
    if !has_multiprocessing(sys)? {
        return Ok(false);
    }
    py.import("trio_offload_worker._multiprocessing")?.call_method1("adopt", (settings.get(py)?,))?;
    Ok(true)
}

pub(crate) fn has_multiprocessing(sys: &Bound<'_, PyModule>) -> PyResult<bool> {
    sys.getattr("modules")?.contains("multiprocessing.process")
}

/// Takes a finder out of `sys.meta_path`.
pub(crate) fn leave_finders(finder: &Bound<'_, PyAny>) -> PyResult<()> {
    let finders = finder.py().import("sys")?.getattr("meta_path")?;
    let finders = finders.cast::<PyList>()?;
    match finders.iter().position(|one| one.is(finder)) {
        Some(index) => finders.del_item(index),
        None => Ok(()),
    }
}

thread_local! {
    static PICKLING: Cell<bool> = const { Cell::new(false) };
}

/// As long as this lives, no look-up by this thread loads the main script: it is the pickler that looks.
///
/// What a job returns or raises can only be of the script if the script was loaded, and then `__main__` is the script itself. A
/// class says that it is of `__main__` and is not, if it came by value: from a prompt, say. To look for it in the script would
/// be in vain, and worse than that for `python -m trio`, whose `__main__` is a prompt.
pub(crate) struct MainLeftAlone {
    before: bool,
}

impl MainLeftAlone {
    pub(crate) fn now() -> Self {
        Self { before: PICKLING.replace(true) }
    }
}

impl Drop for MainLeftAlone {
    fn drop(&mut self) {
        PICKLING.set(self.before);
    }
}

/// `__main__` stays empty, with a `__getattr__` (PEP 562) that loads the user's script when a name of it is looked up:
/// the unpickler does that for a function or class of the script, and hardly anything else does. It answers to the name
/// `__mp_main__` too: that is what a pickle calls it that was made in another worker.
fn install_main(py: Python<'_>, modules: &Bound<'_, PyAny>, settings: Arc<Settings>) -> PyResult<()> {
    let find = move |args: &Bound<'_, PyTuple>, _keywords: Option<&Bound<'_, PyDict>>| -> PyResult<Py<PyAny>> {
        let py = args.py();
        let name = args.get_item(0)?;
        // The import system and introspection ask for these of any module (`__path__`, `__wrapped__`, …).
        let text = name.to_string();
        if PICKLING.get() || (text.starts_with("__") && text.ends_with("__")) {
            return Err(PyAttributeError::new_err(format!("module '__main__' has no attribute '{text}'")));
        }
        let loader = py.import("trio_offload_worker._main")?;
        let module = loader.call_method1("load", (settings.get(py)?,))?;
        Ok(module.getattr(name.cast::<pyo3::types::PyString>()?)?.unbind())
    };
    let getattr = PyCFunction::new_closure(py, Some(c"__getattr__"), None, find)?;
    let main = modules.get_item("__main__")?;
    main.getattr("__dict__")?.set_item("__getattr__", getattr)?;
    modules.set_item("__mp_main__", main)
}

/// First on `sys.meta_path`; knows one name. Once that is looked for it is gone from there.
#[pyclass(frozen, module = "trio_offload_worker")]
struct MultiprocessingFinder {
    settings: Arc<Settings>,
}

#[pymethods]
impl MultiprocessingFinder {
    #[pyo3(signature = (name, path = None, target = None))]
    fn find_spec<'py>(
        slf: &Bound<'py, Self>,
        name: &Bound<'py, PyAny>,
        path: Option<&Bound<'py, PyAny>>,
        target: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        if !name.extract::<&str>().is_ok_and(|name| name == "multiprocessing.process") {
            return Ok(None);
        }
        let py = slf.py();
        leave_finders(slf.as_any())?;
        let module = py.import("trio_offload_worker._multiprocessing")?;
        let settings = slf.get().settings.get(py)?;
        module.call_method1("find_spec", (settings, name, path, target)).map(Some)
    }
}

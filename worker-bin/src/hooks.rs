//! What is put off until a job needs it: the user's main script, and `multiprocessing`'s idea of this process.
//!
//! Both wait in the import system and cost nothing that can be measured until then. Neither imports anything before.

use std::sync::Arc;

use pyo3::exceptions::PyAttributeError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyCFunction, PyDict, PyList, PyTuple};

/// The settings of SETUP, unpickled when they are first asked for.
pub(crate) struct Settings {
    pickled: Py<PyBytes>,
    loads: Py<PyAny>,
    loaded: PyOnceLock<Py<PyAny>>,
}

impl Settings {
    pub(crate) fn new(pickled: Py<PyBytes>, loads: Py<PyAny>) -> Arc<Self> {
        Arc::new(Self { pickled, loads, loaded: PyOnceLock::new() })
    }

    pub(crate) fn get<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let loaded = self.loaded.get_or_try_init(py, || {
            if self.pickled.bind(py).as_bytes().is_empty() {
                return PyResult::Ok(PyDict::new(py).into_any().unbind());
            }
            Ok(self.loads.bind(py).call1((&self.pickled,))?.unbind())
        })?;
        Ok(loaded.bind(py).clone())
    }
}

/// Puts everything in place.
pub(crate) fn install(py: Python<'_>, settings: &Arc<Settings>) -> PyResult<()> {
    let sys = py.import("sys")?;
    let modules = sys.getattr("modules")?;
    install_main(py, &modules, Arc::clone(settings))?;
    if modules.contains("multiprocessing.process")? {
        // Something that `site` runs has imported it already.
        let module = py.import("trio_offload_worker._multiprocessing")?;
        module.call_method1("adopt", (settings.get(py)?,))?;
        return Ok(());
    }
    let finder = Py::new(py, MultiprocessingFinder { settings: Arc::clone(settings) })?;
    sys.getattr("meta_path")?.cast::<PyList>()?.insert(0, finder)
}

/// `__main__` stays empty, with a `__getattr__` (PEP 562) that loads the user's script when a name of it is looked up:
/// the unpickler does that for a function or class of the script, and hardly anything else does.
fn install_main(py: Python<'_>, modules: &Bound<'_, PyAny>, settings: Arc<Settings>) -> PyResult<()> {
    let find = move |args: &Bound<'_, PyTuple>, _keywords: Option<&Bound<'_, PyDict>>| -> PyResult<Py<PyAny>> {
        let py = args.py();
        let name = args.get_item(0)?;
        // The import system and introspection ask for these of any module (`__path__`, `__wrapped__`, …).
        let text = name.to_string();
        if text.starts_with("__") && text.ends_with("__") {
            return Err(PyAttributeError::new_err(format!("module '__main__' has no attribute '{text}'")));
        }
        let loader = py.import("trio_offload_worker._main")?;
        let module = loader.call_method1("load", (settings.get(py)?,))?;
        Ok(module.getattr(name.cast::<pyo3::types::PyString>()?)?.unbind())
    };
    let getattr = PyCFunction::new_closure(py, Some(c"__getattr__"), None, find)?;
    modules.get_item("__main__")?.getattr("__dict__")?.set_item("__getattr__", getattr)
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
        let finders = py.import("sys")?.getattr("meta_path")?;
        let finders = finders.cast::<PyList>()?;
        if let Some(index) = finders.iter().position(|finder| finder.is(slf)) {
            finders.del_item(index)?;
        }
        let module = py.import("trio_offload_worker._multiprocessing")?;
        let settings = slf.get().settings.get(py)?;
        module.call_method1("find_spec", (settings, name, path, target)).map(Some)
    }
}

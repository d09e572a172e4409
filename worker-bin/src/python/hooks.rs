//! Lazy parts: the user's main script, and `multiprocessing`'s identity of this process.
//!
//! Both wait in the import system, at a cost too small to measure.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::exceptions::PyAttributeError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyCFunction, PyDict, PyMapping, PyTuple, PyType};

use crate::python::finders;
use crate::python::raw;

const FIND_CLASS: &str = "find_class";

/// The latest settings. They are unpickled on demand, rarely more than once.
pub(crate) struct Settings {
    pickled: Mutex<Py<PyBytes>>,
    loads: Py<PyAny>,
    main: PyOnceLock<Main>,
}

impl Settings {
    pub(crate) fn new(pickled: Py<PyBytes>, loads: Py<PyAny>) -> Arc<Self> {
        Arc::new(Self { pickled: Mutex::new(pickled), loads, main: PyOnceLock::new() })
    }

    /// Replace the settings. Return true if they differ.
    pub(crate) fn replace(&self, pickled: Bound<'_, PyBytes>) -> bool {
        let py = pickled.py();
        let mut current = self.pickled.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = current.bind(py).as_bytes() != pickled.as_bytes();
        *current = pickled.unbind();
        is_new
    }

    pub(crate) fn get<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        // Release the lock before Python runs: another Python thread may ask too.
        let pickled = self.pickled.lock().unwrap_or_else(PoisonError::into_inner).clone_ref(py);
        if pickled.bind(py).as_bytes().is_empty() {
            return Ok(PyDict::new(py).into_any());
        }
        self.loads.bind(py).call1((pickled,))
    }
}

/// Install both hooks.
pub(crate) fn install(py: Python<'_>, settings: &Arc<Settings>) -> PyResult<()> {
    let sys = py.import("sys")?;
    let modules = sys.getattr("modules")?;
    install_main(py, &modules, settings)?;
    if adopt_imported(&sys, settings)? {
        // Something that `site` runs has imported it already.
        return Ok(());
    }
    let finder = Py::new(py, MultiprocessingFinder { settings: Arc::clone(settings) })?;
    finders::put_first(&sys, finder.into_bound(py).into_any())
}

/// Give `multiprocessing` the process's identity if it is imported. Return true if it is.
pub(crate) fn adopt_imported(sys: &Bound<'_, PyModule>, settings: &Settings) -> PyResult<bool> {
    let py = sys.py();
    if !has_multiprocessing(sys)? {
        return Ok(false);
    }
    py.import("trio_offload_worker._jobs.multiprocessing")?.call_method1("adopt", (settings.get(py)?,))?;
    Ok(true)
}

pub(crate) fn has_multiprocessing(sys: &Bound<'_, PyModule>) -> PyResult<bool> {
    sys.getattr("modules")?.contains("multiprocessing.process")
}

/// The state of a main script that has not been loaded.
struct Main {
    /// The module that stands for `__main__` until then.
    stand_in: Py<PyModule>,
    /// `None` means that the unpickler could not be intercepted.
    unpickler: Option<Unpickler>,
}

/// The C unpickler's class. Its `find_class` is replaced until the script is loaded.
struct Unpickler {
    class: Py<PyType>,
    /// The dictionary behind the class.
    attributes: Py<PyDict>,
    original: Py<PyAny>,
    ours: Py<PyAny>,
}

impl Unpickler {
    fn set(&self, py: Python<'_>, find_class: &Py<PyAny>) -> PyResult<()> {
        self.attributes.bind(py).set_item(FIND_CLASS, find_class)?;
        raw::forget_methods(self.class.bind(py));
        Ok(())
    }

    fn is_intercepted(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.attributes.bind(py).get_item(FIND_CLASS)?.is_some_and(|found| found.is(&self.ours)))
    }
}

/// Make `__main__` look like the program's, empty until something uses the script; see
/// `_stand_in.py`. As in processes of `multiprocessing`, its second name is `__mp_main__`.
fn install_main(py: Python<'_>, modules: &Bound<'_, PyAny>, settings: &Arc<Settings>) -> PyResult<()> {
    let stand_in = modules.get_item("__main__")?.cast_into::<PyModule>()?;
    let unpickler = intercept_unpickler(py, settings)?;
    let any_use = unpickler.is_none();
    let of_closure = Arc::clone(settings);
    let get = move |args: &Bound<'_, PyTuple>, _keywords: Option<&Bound<'_, PyDict>>| -> PyResult<Py<PyAny>> {
        of_closure.get(args.py()).map(Bound::unbind)
    };
    let get = PyCFunction::new_closure(py, None, None, get)?.unbind();
    let find = move |args: &Bound<'_, PyTuple>, _keywords: Option<&Bound<'_, PyDict>>| -> PyResult<Py<PyAny>> {
        let py = args.py();
        let name = args.get_item(0)?;
        // The import system and introspection ask any module for these (`__path__`, `__wrapped__`,
        // …).
        let text = name.to_string();
        if text.starts_with("__") && text.ends_with("__") {
            return Err(PyAttributeError::new_err(format!("module '__main__' has no attribute '{text}'")));
        }
        let module = py.import("trio_offload_worker._jobs.stand_in")?;
        Ok(module.call_method1("look_up", (name, &get, any_use))?.unbind())
    };
    stand_in.dict().set_item("__getattr__", PyCFunction::new_closure(py, Some(c"__getattr__"), None, find)?)?;
    modules.set_item("__mp_main__", &stand_in)?;
    let _ = settings.main.set(py, Main { stand_in: stand_in.unbind(), unpickler });
    describe_main(py, settings)
}

/// Give the stand-in the attributes that the main module has in the parent.
pub(crate) fn describe_main(py: Python<'_>, settings: &Settings) -> PyResult<()> {
    let Some(main) = settings.main.get(py) else { return Ok(()) };
    let values = main.stand_in.bind(py).dict();
    let told = settings.get(py)?;
    let Some(plan) = told.cast::<PyDict>()?.get_item("main")? else { return Ok(()) };
    let plan = plan.cast::<PyDict>()?;
    if let Some(attributes) = plan.get_item("attributes")? {
        values.update(attributes.cast::<PyMapping>()?)?;
    }
    if let Some(loader) = plan.get_item("loader")?.filter(|loader| !loader.is_none()) {
        let (kind, name, path): (String, Bound<'_, PyAny>, Bound<'_, PyAny>) = loader.extract()?;
        let loader = py.import("_frozen_importlib_external")?.getattr(kind)?.call1((name, path))?;
        values.set_item("__loader__", loader)?;
    }
    if let Some(spec) = plan.get_item("spec")?.filter(|spec| !spec.is_none()) {
        let (name, origin, has_location): (Bound<'_, PyAny>, Bound<'_, PyAny>, bool) = spec.extract()?;
        let keywords = PyDict::new(py);
        keywords.set_item("origin", origin)?;
        let spec = py
            .import("_frozen_importlib")?
            .getattr("ModuleSpec")?
            .call((name, values.get_item("__loader__")?), Some(&keywords))?;
        spec.setattr("has_location", has_location)?;
        values.set_item("__spec__", spec)?;
    }
    Ok(())
}

/// Load the script before any unpickler looks up a name in `__main__`. `None` means that this is
/// impossible.
///
/// Every unpickler calls `find_class` for a name (Modules/_pickle.c). So the C class's method is
/// replaced in the dictionary behind the class until the script is loaded. Rejected: an audit hook,
/// which sees `pickle.find_class` but slows down every `id()`; our own class for calls, which would
/// miss the unpickling in jobs.
fn intercept_unpickler(py: Python<'_>, settings: &Arc<Settings>) -> PyResult<Option<Unpickler>> {
    let core = py.import("_pickle")?;
    let class = core.getattr("Unpickler")?.cast_into::<PyType>()?;
    let Ok(attributes) = raw::attributes_of(&class) else { return Ok(None) };
    let Some(original) = attributes.get_item(FIND_CLASS)?.map(Bound::unbind) else { return Ok(None) };
    let seen = Arc::new(AtomicBool::new(false));
    let (of_closure, original_of_closure, seen_of_closure) = (Arc::clone(settings), original.clone_ref(py), Arc::clone(&seen));
    let find = move |args: &Bound<'_, PyTuple>, _keywords: Option<&Bound<'_, PyDict>>| -> PyResult<Py<PyAny>> {
        let py = args.py();
        seen_of_closure.store(true, Ordering::Relaxed);
        let module = args.get_item(1)?;
        if module.extract::<&str>().is_ok_and(|name| name == "__main__" || name == "__mp_main__") {
            load_main(py, &of_closure)?;
        }
        Ok(original_of_closure.bind(py).call1(args)?.unbind())
    };
    let ours = raw::new_method(PyCFunction::new_closure(py, Some(c"find_class"), None, find)?.as_any())?.unbind();
    let unpickler = Unpickler { class: class.unbind(), attributes: attributes.unbind(), original, ours };
    unpickler.set(py, &unpickler.ours)?;
    // This notices a future Python that does it differently.
    core.call_method1("loads", (PyBytes::new(py, b"cbuiltins\nbool\n."),))?;
    if seen.load(Ordering::Relaxed) {
        return Ok(Some(unpickler));
    }
    unpickler.set(py, &unpickler.original)?;
    Ok(None)
}

/// Load the user's script if it is not loaded.
fn load_main(py: Python<'_>, settings: &Settings) -> PyResult<()> {
    let loader = py.import("trio_offload_worker._jobs.main_module")?;
    if !loader.call_method0("is_loaded")?.is_truthy()? {
        loader.call_method1("load", (settings.get(py)?,))?;
    }
    // A script that is being loaded may still fail.
    if loader.call_method0("is_loaded")?.is_truthy()?
        && let Some(unpickler) = settings.main.get(py).and_then(|main| main.unpickler.as_ref())
        && unpickler.is_intercepted(py)?
    {
        unpickler.set(py, &unpickler.original)?;
    }
    Ok(())
}

/// Adapt to a new `__main__` in the parent.
pub(crate) fn renew_main(py: Python<'_>, settings: &Settings) -> PyResult<()> {
    let Some(main) = settings.main.get(py) else { return Ok(()) };
    describe_main(py, settings)?;
    if let Some(unpickler) = &main.unpickler
        && py.import("sys")?.getattr("modules")?.get_item("__main__")?.is(&main.stand_in)
        && !unpickler.is_intercepted(py)?
    {
        unpickler.set(py, &unpickler.ours)?;
    }
    Ok(())
}

/// Watches for one module, first on `sys.meta_path`.
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
        if !finders::leave_for(slf.as_any(), name, "multiprocessing.process")? {
            return Ok(None);
        }
        let py = slf.py();
        let module = py.import("trio_offload_worker._jobs.multiprocessing")?;
        let settings = slf.get().settings.get(py)?;
        module.call_method1("find_spec", (settings, name, path, target)).map(Some)
    }
}

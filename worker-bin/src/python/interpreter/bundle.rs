//! The start of an app made by PyInstaller, as its bootloader does it (`pyi_python.c` and
//! `pyi_launch.c` of PyInstaller).
//!
//! Two differences: the app's main script runs only if a job names something in it, and a hook that
//! changes one module waits for the import of that module.

use std::sync::{Mutex, PoisonError};

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyCFunction, PyCode, PyDict, PyList, PyTuple};
use trio_offload_worker::protocol::hello::{Bundle, Script};

use crate::python::finders;
use crate::python::raw;

const ATTRIBUTE: &str = "_pyinstaller_pyz";

/// Make the app's modules importable, and run its runtime hooks.
pub(crate) fn boot(py: Python<'_>, bundle: &Bundle) -> PyResult<()> {
    let sys = py.import("sys")?;
    sys.setattr("_MEIPASS", raw::decode(py, &bundle.folder)?)?;
    for (name, code) in &bundle.modules {
        raw::execute_as_module(py, name, &load(py, code)?)?;
    }
    let main = py.import("__main__")?.dict();
    let mut scripts = bundle.scripts.iter();
    hand_archive_over(&sys, bundle, || scripts.next().map_or(Ok(()), |boot_script| run(py, boot_script, &main)))?;
    let waiting = Bound::new(py, WaitingHooks::default())?;
    finders::put_first(&sys, waiting.clone().into_any())?;
    for script in scripts {
        match &script.after {
            Some(module) if !sys.getattr("modules")?.contains(module)? => waiting.get().add(script),
            _ => run(py, script, &main)?,
        }
    }
    Ok(())
}

/// Offer the archive to the boot script in both places where a version of PyInstaller looks (the
/// attribute since 6.0), and remove the unused one.
fn hand_archive_over(sys: &Bound<'_, PyModule>, bundle: &Bundle, boot: impl FnOnce() -> PyResult<()>) -> PyResult<()> {
    let Some(pyz) = &bundle.pyz else { return boot() };
    let pyz = raw::decode(sys.py(), pyz)?;
    let path = sys.getattr("path")?.cast_into::<PyList>()?;
    sys.setattr(ATTRIBUTE, &pyz)?;
    path.append(&pyz)?;
    boot()?;
    if sys.hasattr(ATTRIBUTE)? {
        sys.delattr(ATTRIBUTE)?;
    }
    if path.contains(&pyz)? {
        path.call_method1("remove", (pyz,))?;
    }
    Ok(())
}

/// Run a script, with its path in `__file__`.
fn run(py: Python<'_>, script: &Script, namespace: &Bound<'_, PyDict>) -> PyResult<()> {
    let folder = py.import("sys")?.getattr("_MEIPASS")?;
    namespace.set_item("__file__", folder.add(format!("/{}.py", script.name))?)?;
    let outcome = py.import("builtins")?.call_method1("exec", (load(py, &script.code)?, namespace));
    if namespace.contains("__file__")? {
        namespace.del_item("__file__")?;
    }
    outcome.map(drop)
}

fn load<'py>(py: Python<'py>, code: &[u8]) -> PyResult<Bound<'py, PyCode>> {
    let code = py.import("marshal")?.call_method1("loads", (PyBytes::new(py, code),))?;
    Ok(code.cast_into()?)
}

/// A finder that only notices imports for which a hook waits.
#[pyclass(frozen, module = "trio_offload_worker")]
#[derive(Default)]
struct WaitingHooks {
    waiting: Mutex<Vec<Script>>,
}

impl WaitingHooks {
    fn add(&self, script: &Script) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(script.clone());
    }

    fn take(&self, module: &str) -> Option<Script> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let index = waiting.iter().position(|script| script.after.as_deref() == Some(module))?;
        Some(waiting.remove(index))
    }
}

#[pymethods]
impl WaitingHooks {
    #[pyo3(signature = (name, path = None, target = None))]
    fn find_spec<'py>(
        &self,
        py: Python<'py>,
        name: &Bound<'py, PyAny>,
        path: Option<&Bound<'py, PyAny>>,
        target: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let Some(script) = name.extract::<&str>().ok().and_then(|name| self.take(name)) else { return Ok(None) };
        let afterwards = move |args: &Bound<'_, PyTuple>, _keywords: Option<&Bound<'_, PyDict>>| {
            run_late(args.py(), &script).map(|()| args.py().None())
        };
        let afterwards = PyCFunction::new_closure(py, None, None, afterwards)?;
        py.import("trio_offload_worker._jobs.imports")?.call_method1("find_spec", (name, path, target, afterwards)).map(Some)
    }
}

/// In a separate namespace: `__main__` may be the app's already.
fn run_late(py: Python<'_>, script: &Script) -> PyResult<()> {
    let namespace = PyDict::new(py);
    namespace.set_item("__name__", "__main__")?;
    run(py, script, &namespace)
}

//! The import of `_pickle` without two of the imports that it makes.

#![forbid(unsafe_code)]

use pyo3::prelude::*;
use pyo3::types::{PyCFunction, PyDict, PyMapping, PyString, PyTuple};

use crate::python::finders;

/// Imports `_pickle` without two of the imports that it makes, which take longer than everything else that the worker adds to the
/// start of Python (Modules/_pickle.c, `_Pickle_InitState`). It gets something in their places, under the names that it asks for
/// and for that moment only: the first job to import one of them gets the real one. No other thread of Python's runs yet,
/// unless `site` started one.
///
/// * `functools` draws in `collections` and five more. All that is wanted of it is `partial`, which is the one of the builtin
///   module `_functools`.
/// * `_compat_pickle` is four tables of the names that Python 2 had, used by the protocols that it knew. They stay empty until
///   somebody imports that module, which `pickle` does; from then on they are its tables.
pub(super) fn import_core(py: Python<'_>) -> PyResult<Bound<'_, PyModule>> {
    let sys = py.import("sys")?;
    let modules = sys.getattr("modules")?;
    let mut stand_ins = Vec::new();
    if !modules.contains("functools")? {
        let stand_in = PyModule::new(py, "functools")?;
        stand_in.setattr("partial", py.import("_functools")?.getattr("partial")?)?;
        stand_ins.push(("functools", stand_in));
    }
    if !modules.contains("_compat_pickle")? {
        let stand_in = PyModule::new(py, "_compat_pickle")?;
        let tables = PyDict::new(py);
        for name in OLD_NAMES {
            let table = PyDict::new(py);
            stand_in.setattr(name, &table)?;
            tables.set_item(name, table)?;
        }
        finders::put_first(&sys, Bound::new(py, OldNames { tables: tables.unbind() })?.into_any())?;
        stand_ins.push(("_compat_pickle", stand_in));
    }
    for (name, stand_in) in &stand_ins {
        modules.set_item(name, stand_in)?;
    }
    let core = py.import("_pickle");
    for (name, stand_in) in &stand_ins {
        if modules.get_item(name)?.is(stand_in) {
            modules.del_item(name)?;
        }
    }
    core
}

const OLD_NAMES: [&str; 4] = ["NAME_MAPPING", "IMPORT_MAPPING", "REVERSE_NAME_MAPPING", "REVERSE_IMPORT_MAPPING"];

/// First on `sys.meta_path`; knows one name. Once that is looked for it is gone from there.
#[pyclass(frozen, module = "trio_offload_worker")]
struct OldNames {
    /// What `_pickle` has in the place of `_compat_pickle`'s tables, by their names.
    tables: Py<PyDict>,
}

#[pymethods]
impl OldNames {
    #[pyo3(signature = (name, path = None, target = None))]
    fn find_spec<'py>(
        slf: &Bound<'py, Self>,
        name: &Bound<'py, PyAny>,
        path: Option<&Bound<'py, PyAny>>,
        target: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        if !finders::leave_for(slf.as_any(), name, "_compat_pickle")? {
            return Ok(None);
        }
        let py = slf.py();
        let tables = slf.get().tables.clone_ref(py);
        let fill = move |args: &Bound<'_, PyTuple>, _keywords: Option<&Bound<'_, PyDict>>| -> PyResult<()> {
            let module = args.py().import("_compat_pickle")?;
            for (name, table) in tables.bind(args.py()) {
                let name = name.cast_into::<PyString>()?;
                table.cast::<PyDict>()?.update(module.getattr(&name)?.cast::<PyMapping>()?)?;
                // The very same from now on, as in any Python: whoever changes the one changes the other.
                module.setattr(&name, table)?;
            }
            Ok(())
        };
        let fill = PyCFunction::new_closure(py, None, None, fill)?;
        py.import("trio_offload_worker._imports")?.call_method1("find_spec", (name, path, target, fill)).map(Some)
    }
}

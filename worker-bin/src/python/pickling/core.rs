//! The import of `_pickle` without two of its imports.

#![forbid(unsafe_code)]

use pyo3::prelude::*;
use pyo3::types::{PyCFunction, PyDict, PyMapping, PyString, PyTuple};

use crate::python::finders;

const OLD_NAMES: [&str; 4] = ["NAME_MAPPING", "IMPORT_MAPPING", "REVERSE_NAME_MAPPING", "REVERSE_IMPORT_MAPPING"];

/// Import `_pickle` without two of its imports, which take longer than everything else that the
/// worker adds to Python's start (Modules/_pickle.c, `_Pickle_InitState`). Substitutes stand in
/// `sys.modules` during the import only; the first job that imports one of the names gets the real
/// module. No other Python thread runs yet, unless `site` started one.
///
/// * `functools` imports `collections` and five more. `_pickle` only needs `partial`, which the
///   builtin module `_functools` has.
/// * `_compat_pickle` is four tables of Python 2's names, used by old protocols. They stay empty
///   until that module is imported (`pickle` does so), and then they become its tables.
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

/// Watches for `_compat_pickle`, first on `sys.meta_path`.
#[pyclass(frozen, module = "trio_offload_worker")]
struct OldNames {
    /// The tables that `_pickle` has in place of `_compat_pickle`'s, by their names.
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
                // One and the same table from now on, as in any Python.
                module.setattr(&name, table)?;
            }
            Ok(())
        };
        let fill = PyCFunction::new_closure(py, None, None, fill)?;
        py.import("trio_offload_worker._jobs.imports")?.call_method1("find_spec", (name, path, target, fill)).map(Some)
    }
}

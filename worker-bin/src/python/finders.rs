//! Import finders that watch for one module and then leave `sys.meta_path`.

#![forbid(unsafe_code)]

use pyo3::prelude::*;
use pyo3::types::PyList;

/// Put a finder first on `sys.meta_path`: behind `PathFinder` it would not be asked.
pub(super) fn put_first(sys: &Bound<'_, PyModule>, finder: Bound<'_, PyAny>) -> PyResult<()> {
    sys.getattr("meta_path")?.cast::<PyList>()?.insert(0, finder)
}

/// Remove the finder from `sys.meta_path` if `name` is the module that it watches for. Return true
/// if so.
pub(super) fn leave_for(finder: &Bound<'_, PyAny>, name: &Bound<'_, PyAny>, watched: &str) -> PyResult<bool> {
    if !name.extract::<&str>().is_ok_and(|name| name == watched) {
        return Ok(false);
    }
    let finders = finder.py().import("sys")?.getattr("meta_path")?;
    let finders = finders.cast::<PyList>()?;
    if let Some(index) = finders.iter().position(|one| one.is(finder)) {
        finders.del_item(index)?;
    }
    Ok(true)
}

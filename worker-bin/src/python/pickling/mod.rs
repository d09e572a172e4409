//! Objects ↔ segments, with the C pickler in `_pickle`; the module `pickle` is not imported.
//!
//! * Large `bytes` and `bytearray` objects are not copied, wherever they are in the value. The C
//!   pickler passes them to its file as they are (Modules/_pickle.c, `_Pickler_write_bytes`). Our
//!   file replaces "bytes of this length follow" by "the next buffer" (PEP 574) and sends the
//!   object in its own segment. The unpickler puts it into the value without a copy too.
//! * Buffers of [`OUT_OF_BAND`] bytes and more travel in their own segments (PEP 574). They are
//!   unpickled around the memory that received them, so an array is writable and owns its memory.

mod by_reference;
mod core;
mod numbers;
pub(crate) mod sink;

use std::cell::Cell;

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};
use trio_offload_worker::transport::Segment;

use crate::python::pickling::by_reference::FunctionsByReference;
use crate::python::pickling::core::import_core;
use crate::python::pickling::numbers::pickle_of_number;
use crate::python::pickling::sink::{GATHERED, Pickled, Piece, Sink};
use crate::python::raw::buffers::NewBytes;

/// The object that a segment becomes.
pub(crate) fn object_of(py: Python<'_>, segment: Segment<NewBytes>) -> PyResult<Bound<'_, PyAny>> {
    match segment {
        Segment::Shared(bytes) => Ok(PyBytes::new(py, &bytes).into_any()),
        Segment::Owned(bytes) => bytes.into_object(py),
    }
}

pub(crate) struct Pickling {
    loads: Py<PyAny>,
    pickler: Py<PyAny>,
    sink: Py<Sink>,
    functions: FunctionsByReference,
    /// A pickler to reuse: creating one takes longer than pickling a small result.
    kept: Cell<Option<Py<PyAny>>>,
}

impl Pickling {
    pub(crate) fn new(py: Python<'_>) -> PyResult<Self> {
        let module = import_core(py)?;
        Ok(Self {
            loads: module.getattr("loads")?.unbind(),
            pickler: module.getattr("Pickler")?.unbind(),
            sink: Py::new(py, Sink::default())?,
            functions: FunctionsByReference::new(py)?,
            kept: Cell::new(None),
        })
    }

    pub(crate) fn load<'py>(&self, py: Python<'py>, segments: Vec<Segment<NewBytes>>) -> PyResult<Bound<'py, PyAny>> {
        if let [Segment::Shared(pickle)] = &segments[..]
            && let Some(call) = by_reference::call_of(pickle)
        {
            return self.functions.run(py, call, &|pickle| self.loads(&PyBytes::new(py, pickle)));
        }
        let loads = self.loads.bind(py);
        let mut segments = segments.into_iter();
        let object = |segment| object_of(py, segment);
        let pickle = segments.next().map_or_else(|| Ok(PyBytes::new(py, b"").into_any()), object)?;
        if segments.len() == 0 {
            return loads.call1((pickle,));
        }
        let buffers = segments.map(object).collect::<PyResult<Vec<_>>>()?;
        let keywords = PyDict::new(py);
        keywords.set_item("buffers", PyList::new(py, buffers)?)?;
        loads.call((pickle,), Some(&keywords))
    }

    /// The function `_pickle.loads`.
    pub(crate) fn loads_function(&self, py: Python<'_>) -> Py<PyAny> {
        self.loads.clone_ref(py)
    }

    pub(crate) fn loads<'py>(&self, pickle: &Bound<'py, PyBytes>) -> PyResult<Bound<'py, PyAny>> {
        self.loads.bind(pickle.py()).call1((pickle,))
    }

    pub(crate) fn dump(&self, object: &Bound<'_, PyAny>) -> PyResult<Pickled> {
        if let Some(pickle) = pickle_of_number(object) {
            return Ok(Pickled { pickle: vec![Piece::Gathered(pickle)], buffers: Vec::new() });
        }
        let py = object.py();
        let sink = self.sink.bind(py);
        let pickler = match self.kept.take() {
            Some(pickler) => pickler.into_bound(py),
            None => self.pickler.bind(py).call1((sink, 5, true, sink))?,
        };
        let outcome = pickler.call_method1(pyo3::intern!(py, "dump"), (object,));
        let pickled = sink.get().take();
        outcome?;
        // The memo would keep objects alive. A pickler with a large memo, or one that failed, is
        // not reused.
        if pickled.is_plain() && pickled.length() < GATHERED {
            pickler.call_method0(pyo3::intern!(py, "clear_memo"))?;
            self.kept.set(Some(pickler.unbind()));
        }
        Ok(pickled)
    }
}

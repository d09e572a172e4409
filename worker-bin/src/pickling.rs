//! Objects ↔ segments, with the C pickler that `_pickle` is. Nothing else of `pickle` is imported.
//!
//! * Large `bytes` are not copied into the pickle: the C pickler hands them to its file as they are
//!   (Modules/_pickle.c, `_Pickler_write_bytes`), and our file keeps a reference until they have been sent.
//! * Buffers of [`OUT_OF_BAND`] bytes and more travel in segments of their own (PEP 574) and are unpickled around memory
//!   that was received for them, so that an array comes back writable and shares its memory with nobody.

use std::cell::Cell;
use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};
use trio_offload_worker::transport::{Payload, Segment};

use crate::interpreter::ffi::{HeldBytes, NewBytes, WritableBytes};

/// Buffers smaller than this are cheaper inside the pickle than in a segment of their own.
const OUT_OF_BAND: usize = 16 * 1024;

/// A frame has room for 65,536 segments; beyond this many the buffers go into the pickle.
const OUT_OF_BAND_COUNT: usize = 65_000;

/// Pieces of the pickle smaller than this are gathered, larger ones held where they are.
const GATHERED: usize = 16 * 1024;

/// From this size on a pickle is read as a file: see [`Source`].
const LARGE_PICKLE: usize = 1 << 20;

pub(crate) struct Pickling {
    loads: Py<PyAny>,
    pickler: Py<PyAny>,
    sink: Py<Sink>,
    /// A pickler that can be used again: to make one takes longer than to pickle a small result.
    kept: Cell<Option<Py<PyAny>>>,
}

/// A pickled object, ready to be sent without the GIL. To be dropped with it.
#[derive(Default)]
pub(crate) struct Pickled {
    pickle: Vec<Piece>,
    buffers: Vec<HeldBytes>,
}

enum Piece {
    Gathered(Vec<u8>),
    Held(HeldBytes),
}

impl Pickling {
    pub(crate) fn new(py: Python<'_>) -> PyResult<Self> {
        let module = import_core(py)?;
        Ok(Self {
            loads: module.getattr("loads")?.unbind(),
            pickler: module.getattr("Pickler")?.unbind(),
            sink: Py::new(py, Sink::default())?,
            kept: Cell::new(None),
        })
    }

    pub(crate) fn load<'py>(&self, py: Python<'py>, segments: Vec<Segment<'_, NewBytes>>) -> PyResult<Bound<'py, PyAny>> {
        let loads = self.loads.bind(py);
        let mut segments = segments.into_iter();
        let pickle = match segments.next() {
            Some(Segment::Passing(bytes)) => PyBytes::new(py, bytes).into_any(),
            Some(Segment::Owned(bytes)) => bytes.into_object().into_bound(py).into_any(),
            None => PyBytes::new(py, b"").into_any(),
        };
        let is_large = pickle.len()? >= LARGE_PICKLE;
        if segments.len() == 0 && !is_large {
            return loads.call1((pickle,));
        }
        let buffers = segments.map(|segment| match segment {
            Segment::Passing(bytes) => PyBytes::new(py, bytes).into_any(),
            Segment::Owned(bytes) => bytes.into_object().into_bound(py).into_any(),
        });
        let keywords = PyDict::new(py);
        keywords.set_item("buffers", PyList::new(py, buffers.collect::<Vec<_>>())?)?;
        if is_large {
            let source = Source { pickle: HeldBytes::hold(&pickle)?, position: Mutex::new(0) };
            let unpickler = py.import("_pickle")?.getattr("Unpickler")?.call((source,), Some(&keywords))?;
            return unpickler.call_method0("load");
        }
        loads.call((pickle,), Some(&keywords))
    }

    /// `_pickle.loads` itself.
    pub(crate) fn loads_function(&self, py: Python<'_>) -> Py<PyAny> {
        self.loads.clone_ref(py)
    }

    pub(crate) fn loads<'py>(&self, pickle: &Bound<'py, PyBytes>) -> PyResult<Bound<'py, PyAny>> {
        self.loads.bind(pickle.py()).call1((pickle,))
    }

    pub(crate) fn dump(&self, object: &Bound<'_, PyAny>) -> PyResult<Pickled> {
        let py = object.py();
        let sink = self.sink.bind(py);
        let pickler = match self.kept.take() {
            Some(pickler) => pickler.into_bound(py),
            None => self.pickler.bind(py).call1((sink, 5, true, sink))?,
        };
        let outcome = pickler.call_method1(pyo3::intern!(py, "dump"), (object,));
        let pickled = sink.get().take();
        outcome?;
        // Its memo would keep alive what it has seen. One that has grown, or that failed in the middle, is not kept.
        if pickled.is_plain() && pickled.length() < GATHERED {
            pickler.call_method0(pyo3::intern!(py, "clear_memo"))?;
            self.kept.set(Some(pickler.unbind()));
        }
        Ok(pickled)
    }
}

/// Imports `_pickle` without the import of `functools` that it makes, which draws in `collections` and five more and takes
/// longer than everything else that the worker adds to the start of Python.
///
/// All that `_pickle` wants of it is `partial` (Modules/_pickle.c, `_Pickle_InitState`), and `functools.partial` is the one of
/// the builtin module `_functools`. So that is what it gets, under the name that it asks for, and for that moment only: the
/// first job to import `functools` gets the real one. No other thread of Python's runs yet, unless `site` started one.
fn import_core(py: Python<'_>) -> PyResult<Bound<'_, PyModule>> {
    let modules = py.import("sys")?.getattr("modules")?;
    if modules.contains("functools")? {
        return py.import("_pickle");
    }
    let stand_in = PyModule::new(py, "functools")?;
    stand_in.setattr("partial", py.import("_functools")?.getattr("partial")?)?;
    modules.set_item("functools", &stand_in)?;
    let core = py.import("_pickle");
    if modules.get_item("functools")?.is(&stand_in) {
        modules.del_item("functools")?;
    }
    core
}

impl Pickled {
    /// From what `trio_offload_worker` has pickled: the pickle, then its buffers. `None` from an empty list.
    pub(crate) fn from_list(segments: &Bound<'_, PyAny>) -> PyResult<Option<Self>> {
        let mut held = segments.try_iter()?.map(|segment| HeldBytes::hold(&segment?)).collect::<PyResult<Vec<_>>>()?.into_iter();
        let Some(first) = held.next() else { return Ok(None) };
        Ok(Some(Self { pickle: vec![Piece::Held(first)], buffers: held.collect() }))
    }

    fn length(&self) -> usize {
        self.segments().iter().flatten().map(|piece| piece.len()).sum()
    }

    /// Whether dropping it needs no Python.
    pub(crate) fn is_plain(&self) -> bool {
        self.buffers.is_empty() && self.pickle.iter().all(|piece| matches!(piece, Piece::Gathered(_)))
    }
}

impl Payload for Pickled {
    fn segments(&self) -> Vec<Vec<&[u8]>> {
        let pickle = self.pickle.iter().map(|piece| match piece {
            Piece::Gathered(bytes) => bytes.as_slice(),
            Piece::Held(bytes) => bytes.bytes(),
        });
        let buffers = self.buffers.iter().map(|buffer| vec![buffer.bytes()]);
        std::iter::once(pickle.collect()).chain(buffers).collect()
    }
}

/// The file that the unpickler reads a large pickle from. Large `bytes` in it are copied either way, but here the copy goes
/// through our hands, and its memory can be asked for in huge pages: the page faults would take longer than the copying.
#[pyclass(frozen, module = "trio_offload_worker")]
struct Source {
    pickle: HeldBytes,
    position: Mutex<usize>,
}

impl Source {
    /// The next `length` bytes, or as many as there are.
    fn next(&self, length: usize) -> &[u8] {
        let mut position = self.position.lock().unwrap_or_else(PoisonError::into_inner);
        let rest = self.pickle.bytes().get(*position..).unwrap_or_default();
        let next = rest.get(..length).unwrap_or(rest);
        *position += next.len();
        next
    }
}

#[pymethods]
impl Source {
    fn read<'py>(&self, py: Python<'py>, length: usize) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.next(length))
    }

    fn readinto(&self, target: &Bound<'_, PyAny>) -> PyResult<usize> {
        let mut target = WritableBytes::of(target)?;
        let next = self.next(target.len());
        target.fill(next);
        Ok(next.len())
    }

    fn readline<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        let position = *self.position.lock().unwrap_or_else(PoisonError::into_inner);
        let rest = self.pickle.bytes().get(position..).unwrap_or_default();
        let length = rest.iter().position(|byte| *byte == b'\n').map_or(rest.len(), |index| index + 1);
        PyBytes::new(py, self.next(length))
    }
}

/// The file that the pickler writes to, and the callback that it offers buffers to.
#[pyclass(frozen, module = "trio_offload_worker")]
#[derive(Default)]
struct Sink(Mutex<Pickled>);

impl Sink {
    fn take(&self) -> Pickled {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Pickled> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl Sink {
    fn write(&self, data: &Bound<'_, PyAny>) -> PyResult<usize> {
        if let Ok(bytes) = data.cast_exact::<PyBytes>()
            && bytes.as_bytes().len() < GATHERED
        {
            let bytes = bytes.as_bytes();
            let mut gathered = self.lock();
            match gathered.pickle.last_mut() {
                Some(Piece::Gathered(before)) => before.extend_from_slice(bytes),
                _ => gathered.pickle.push(Piece::Gathered(bytes.to_vec())),
            }
            return Ok(bytes.len());
        }
        let held = HeldBytes::hold(data)?;
        let length = held.bytes().len();
        self.lock().pickle.push(Piece::Held(held));
        Ok(length)
    }

    /// The buffer callback: true keeps the buffer inside the pickle.
    fn __call__(&self, buffer: &Bound<'_, PyAny>) -> PyResult<bool> {
        let held = HeldBytes::hold(buffer)?;
        if held.bytes().len() < OUT_OF_BAND || self.lock().buffers.len() >= OUT_OF_BAND_COUNT {
            return Ok(true);
        }
        self.lock().buffers.push(held);
        Ok(false)
    }
}

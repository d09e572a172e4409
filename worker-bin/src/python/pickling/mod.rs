//! Objects ↔ segments, with the C pickler that `_pickle` is. Nothing else of `pickle` is imported.
//!
//! * Large `bytes` and `bytearray`s are not copied into the pickle, wherever in the value they are: the C pickler hands them to its
//!   file as they are (Modules/_pickle.c, `_Pickler_write_bytes`). Our file takes them out of the pickle: where it says «bytes of
//!   this length follow» it now says «the next buffer» (PEP 574), and the object travels in a segment of its own, which becomes
//!   a `bytes` or a `bytearray` on the other side and is what the unpickler puts into the value, without a copy there either.
//! * Buffers of [`OUT_OF_BAND`] bytes and more travel in segments of their own (PEP 574) and are unpickled around memory
//!   that was received for them, so that an array comes back writable and shares its memory with nobody.

mod by_reference;

use std::cell::Cell;
use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyCFunction, PyDict, PyFloat, PyInt, PyList, PyMapping, PyString, PyTuple};
use trio_offload_worker::protocol::message::SegmentType;
use trio_offload_worker::transport::connection::{Payload, Segment};

use self::by_reference::ByName;
use crate::python::hooks;
use crate::python::raw::{HeldBytes, NewBytes};

/// Buffers smaller than this are cheaper inside the pickle than in a segment of their own.
const OUT_OF_BAND: usize = 16 * 1024;

/// A frame has room for 65,536 segments; beyond this many the buffers go into the pickle.
const OUT_OF_BAND_COUNT: usize = 65_000;

/// Pieces of the pickle smaller than this are gathered, larger ones held where they are.
const GATHERED: usize = 16 * 1024;

/// Objects smaller than this stay in the pickle: to copy them there costs less than a segment.
const OUT_OF_PICKLE: usize = 256 * 1024;

/// How the pickle begins a `bytes` object and a `bytearray`, before their lengths (Lib/pickletools.py).
const BINBYTES: u8 = b'B';
const BINBYTES8: u8 = 0x8e;
const BYTEARRAY8: u8 = 0x96;
/// «The next of the out-of-band buffers».
const NEXT_BUFFER: u8 = 0x97;

/// How a pickle begins and ends, and the plain objects in it.
const PROTO: [u8; 2] = [0x80, 5];
const STOP: u8 = b'.';
const NONE: u8 = b'N';
const NEWTRUE: u8 = 0x88;
const NEWFALSE: u8 = 0x89;
/// Four bytes, the least significant first.
const BININT: u8 = b'J';
/// As many bytes as the next one says, the least significant first.
const LONG1: u8 = 0x8a;
/// Eight bytes, the most significant first.
const BINFLOAT: u8 = b'G';

pub(crate) struct Pickling {
    loads: Py<PyAny>,
    pickler: Py<PyAny>,
    sink: Py<Sink>,
    by_name: ByName,
    /// A pickler that can be used again: to make one takes longer than to pickle a small result.
    kept: Cell<Option<Py<PyAny>>>,
}

/// A pickled object, ready to be sent without the GIL. To be dropped with it.
#[derive(Default)]
pub(crate) struct Pickled {
    pickle: Vec<Piece>,
    buffers: Vec<(HeldBytes, SegmentType)>,
}

enum Piece {
    Gathered(Vec<u8>),
    /// So many bytes of the front.
    Held(HeldBytes, usize),
}

impl Piece {
    fn held(bytes: HeldBytes) -> Self {
        let length = bytes.bytes().len();
        Self::Held(bytes, length)
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Gathered(bytes) => bytes,
            Self::Held(bytes, length) => bytes.bytes().get(..*length).unwrap_or_default(),
        }
    }

    /// Cuts off the end.
    fn shorten(&mut self, count: usize) {
        match self {
            Self::Gathered(bytes) => bytes.truncate(bytes.len().saturating_sub(count)),
            Self::Held(_, length) => *length = length.saturating_sub(count),
        }
    }
}

impl Pickling {
    pub(crate) fn new(py: Python<'_>) -> PyResult<Self> {
        let module = import_core(py)?;
        Ok(Self {
            loads: module.getattr("loads")?.unbind(),
            pickler: module.getattr("Pickler")?.unbind(),
            sink: Py::new(py, Sink::default())?,
            by_name: ByName::new(py)?,
            kept: Cell::new(None),
        })
    }

    pub(crate) fn load<'py>(&self, py: Python<'py>, segments: Vec<Segment<'_, NewBytes>>) -> PyResult<Bound<'py, PyAny>> {
        if let [Segment::Passing(pickle)] = segments[..]
            && let Some(call) = by_reference::call_of(pickle)
        {
            return self.by_name.run(py, call, &|pickle| self.loads(&PyBytes::new(py, pickle)));
        }
        let loads = self.loads.bind(py);
        let mut segments = segments.into_iter();
        let object = |segment: Segment<'_, NewBytes>| match segment {
            Segment::Passing(bytes) => Ok(PyBytes::new(py, bytes).into_any()),
            Segment::Owned(bytes) => bytes.into_object(py),
        };
        let pickle = segments.next().map_or_else(|| Ok(PyBytes::new(py, b"").into_any()), object)?;
        if segments.len() == 0 {
            return loads.call1((pickle,));
        }
        let buffers = segments.map(object).collect::<PyResult<Vec<_>>>()?;
        let keywords = PyDict::new(py);
        keywords.set_item("buffers", PyList::new(py, buffers)?)?;
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
        // Its memo would keep alive what it has seen. One that has grown, or that failed in the middle, is not kept.
        if pickled.is_plain() && pickled.length() < GATHERED {
            pickler.call_method0(pyo3::intern!(py, "clear_memo"))?;
            self.kept.set(Some(pickler.unbind()));
        }
        Ok(pickled)
    }
}

/// The pickle of None, a truth value or a number that is not too large. To the pickler it is hardly more than getting ready and
/// clearing up, which is a fifth of what the worker does for a small call.
fn pickle_of_number(object: &Bound<'_, PyAny>) -> Option<Vec<u8>> {
    let mut pickle = PROTO.to_vec();
    if object.is_none() {
        pickle.push(NONE);
    } else if let Ok(truth) = object.cast_exact::<PyBool>() {
        pickle.push(if truth.is_true() { NEWTRUE } else { NEWFALSE });
    } else if let Ok(number) = object.cast_exact::<PyInt>() {
        let number = number.extract::<i64>().ok()?;
        match i32::try_from(number) {
            Ok(small) => {
                pickle.push(BININT);
                pickle.extend(small.to_le_bytes());
            }
            Err(_) => {
                pickle.extend([LONG1, 8]);
                pickle.extend(number.to_le_bytes());
            }
        }
    } else if let Ok(number) = object.cast_exact::<PyFloat>() {
        pickle.push(BINFLOAT);
        pickle.extend(number.value().to_be_bytes());
    } else {
        return None;
    }
    pickle.push(STOP);
    Some(pickle)
}

/// Imports `_pickle` without two of the imports that it makes, which take longer than everything else that the worker adds to the
/// start of Python (Modules/_pickle.c, `_Pickle_InitState`). It gets something in their places, under the names that it asks for
/// and for that moment only: the first job to import one of them gets the real one. No other thread of Python's runs yet,
/// unless `site` started one.
///
/// * `functools` draws in `collections` and five more. All that is wanted of it is `partial`, which is the one of the builtin
///   module `_functools`.
/// * `_compat_pickle` is four tables of the names that Python 2 had, used by the protocols that it knew. They stay empty until
///   somebody imports that module, which `pickle` does; from then on they are its tables.
fn import_core(py: Python<'_>) -> PyResult<Bound<'_, PyModule>> {
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
        sys.getattr("meta_path")?.cast::<PyList>()?.insert(0, Py::new(py, OldNames { tables: tables.unbind() })?)?;
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
        if !name.extract::<&str>().is_ok_and(|name| name == "_compat_pickle") {
            return Ok(None);
        }
        let py = slf.py();
        hooks::leave_finders(slf.as_any())?;
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

impl Pickled {
    /// From what `trio_offload_worker` has pickled: the pickle, then its buffers. `None` from an empty list.
    pub(crate) fn from_list(segments: &Bound<'_, PyAny>) -> PyResult<Option<Self>> {
        let mut held = segments.try_iter()?.map(|segment| HeldBytes::hold(&segment?)).collect::<PyResult<Vec<_>>>()?.into_iter();
        let Some(first) = held.next() else { return Ok(None) };
        let buffers = held.map(|buffer| (buffer, SegmentType::Memory)).collect();
        Ok(Some(Self { pickle: vec![Piece::held(first)], buffers }))
    }

    /// The pickler has written the head of a large object, and now its data.
    fn take_large(&mut self, data: HeldBytes) {
        let length = data.bytes().len();
        if length >= OUT_OF_PICKLE
            && self.buffers.len() < OUT_OF_BAND_COUNT
            && let Some(before) = self.pickle.last_mut()
            && let Some((head, kind)) = head_of(before.bytes(), length)
        {
            before.shorten(head);
            self.pickle.push(Piece::Gathered(vec![NEXT_BUFFER]));
            self.buffers.push((data, kind));
        } else {
            self.pickle.push(Piece::held(data));
        }
    }

    fn length(&self) -> usize {
        self.segments().iter().flatten().map(|piece| piece.len()).sum()
    }

    /// Whether dropping it needs no Python.
    pub(crate) fn is_plain(&self) -> bool {
        self.buffers.is_empty() && self.pickle.iter().all(|piece| matches!(piece, Piece::Gathered(_)))
    }
}

/// How long the head is with which a piece of a pickle announces data of this length, and what the data is. `None`: something else,
/// text, is announced.
fn head_of(piece: &[u8], length: usize) -> Option<(usize, SegmentType)> {
    let length = length as u64;
    if let Some((rest, announced)) = piece.split_last_chunk::<8>()
        && u64::from_le_bytes(*announced) == length
    {
        match rest.last() {
            Some(&BINBYTES8) => return Some((9, SegmentType::Bytes)),
            Some(&BYTEARRAY8) => return Some((9, SegmentType::ByteArray)),
            _ => {}
        }
    }
    let (rest, announced) = piece.split_last_chunk::<4>()?;
    let announced = u64::from(u32::from_le_bytes(*announced));
    (announced == length && rest.last() == Some(&BINBYTES)).then_some((5, SegmentType::Bytes))
}

impl Payload for Pickled {
    fn segments(&self) -> Vec<Vec<&[u8]>> {
        let pickle = self.pickle.iter().map(Piece::bytes);
        let buffers = self.buffers.iter().map(|(buffer, _)| vec![buffer.bytes()]);
        std::iter::once(pickle.collect()).chain(buffers).collect()
    }

    fn types(&self) -> Vec<SegmentType> {
        if self.buffers.iter().all(|(_, kind)| *kind == SegmentType::Memory) {
            return Vec::new();
        }
        std::iter::once(SegmentType::Memory).chain(self.buffers.iter().map(|(_, kind)| *kind)).collect()
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
        self.lock().take_large(held);
        Ok(length)
    }

    /// The buffer callback: true keeps the buffer inside the pickle.
    fn __call__(&self, buffer: &Bound<'_, PyAny>) -> PyResult<bool> {
        let held = HeldBytes::hold(buffer)?;
        if held.bytes().len() < OUT_OF_BAND || self.lock().buffers.len() >= OUT_OF_BAND_COUNT {
            return Ok(true);
        }
        self.lock().buffers.push((held, SegmentType::Memory));
        Ok(false)
    }
}

//! The file that the pickler writes to, and the pickle in it.

#![forbid(unsafe_code)]

use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use trio_offload_worker::protocol::segments::SegmentType;
use trio_offload_worker::transport::Payload;

use crate::python::raw::buffers::HeldBytes;

/// Smaller buffers are cheaper inside the pickle than in their own segments.
const OUT_OF_BAND: usize = 16 * 1024;

/// A frame has room for 65,536 segments; further buffers go into the pickle.
const OUT_OF_BAND_COUNT: usize = 65_000;

/// Smaller pieces of the pickle are copied together, larger ones are held in place.
pub(super) const GATHERED: usize = 16 * 1024;

/// Smaller objects stay in the pickle: a copy costs less than a segment.
const OUT_OF_PICKLE: usize = 256 * 1024;

/// The opcodes of `bytes` and `bytearray` objects, before their lengths (Lib/pickletools.py).
const BINBYTES: u8 = b'B';

const BINBYTES8: u8 = 0x8e;
const BYTEARRAY8: u8 = 0x96;

/// The opcode for the next out-of-band buffer.
const NEXT_BUFFER: u8 = 0x97;

/// A pickled object that can be sent without the GIL. Drop it with the GIL.
#[derive(Default)]
pub(crate) struct Pickled {
    pub(super) pickle: Vec<Piece>,
    pub(super) buffers: Vec<(HeldBytes, SegmentType)>,
}

pub(super) enum Piece {
    Gathered(Vec<u8>),
    /// The front of an object, with its length.
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

    /// Remove bytes from the end.
    fn shorten(&mut self, count: usize) {
        match self {
            Self::Gathered(bytes) => bytes.truncate(bytes.len().saturating_sub(count)),
            Self::Held(_, length) => *length = length.saturating_sub(count),
        }
    }
}

impl Pickled {
    /// Wrap a list of the pickle and its buffers. `None` means an empty list.
    pub(crate) fn from_list(segments: &Bound<'_, PyAny>) -> PyResult<Option<Self>> {
        let mut held = segments.try_iter()?.map(|segment| HeldBytes::hold(&segment?)).collect::<PyResult<Vec<_>>>()?.into_iter();
        let Some(first) = held.next() else { return Ok(None) };
        let buffers = held.map(|buffer| (buffer, SegmentType::Memory)).collect();
        Ok(Some(Self { pickle: vec![Piece::held(first)], buffers }))
    }

    /// Take the data of a large object, whose opcode has been written.
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

    pub(super) fn length(&self) -> usize {
        self.segments().iter().flatten().map(|piece| piece.len()).sum()
    }

    /// True if it can be dropped without Python.
    pub(crate) fn is_plain(&self) -> bool {
        self.buffers.is_empty() && self.pickle.iter().all(|piece| matches!(piece, Piece::Gathered(_)))
    }
}

/// The length of the opcode that announces data of this length at the end of `piece`, and the type
/// of the data. `None` means something else, such as text.
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

/// The pickler's file and its buffer callback.
#[pyclass(frozen, module = "trio_offload_worker")]
#[derive(Default)]
pub(super) struct Sink(Mutex<Pickled>);

impl Sink {
    pub(super) fn take(&self) -> Pickled {
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

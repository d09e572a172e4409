//! The file that the pickler writes to, and what it has written.

#![forbid(unsafe_code)]

use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use trio_offload_worker::protocol::segments::SegmentType;
use trio_offload_worker::transport::Payload;

use crate::python::raw::buffers::HeldBytes;

/// Buffers smaller than this are cheaper inside the pickle than in a segment of their own.
const OUT_OF_BAND: usize = 16 * 1024;

/// A frame has room for 65,536 segments; beyond this many the buffers go into the pickle.
const OUT_OF_BAND_COUNT: usize = 65_000;

/// Pieces of the pickle smaller than this are gathered, larger ones held where they are.
pub(super) const GATHERED: usize = 16 * 1024;

/// Objects smaller than this stay in the pickle: to copy them there costs less than a segment.
const OUT_OF_PICKLE: usize = 256 * 1024;

/// How the pickle begins a `bytes` object and a `bytearray`, before their lengths (Lib/pickletools.py).
const BINBYTES: u8 = b'B';

const BINBYTES8: u8 = 0x8e;

const BYTEARRAY8: u8 = 0x96;

/// «The next of the out-of-band buffers».
const NEXT_BUFFER: u8 = 0x97;

/// A pickled object, ready to be sent without the GIL. To be dropped with it.
#[derive(Default)]
pub(crate) struct Pickled {
    pub(super) pickle: Vec<Piece>,
    pub(super) buffers: Vec<(HeldBytes, SegmentType)>,
}

pub(super) enum Piece {
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

    pub(super) fn length(&self) -> usize {
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

//! Received bytes → headers and segments.
//!
//! The buffer takes whatever the socket has, so a small call is one `recv`. A segment that is too
//! large for it, or that must own its memory, is received directly into its place.

#![forbid(unsafe_code)]

use std::io;
use std::sync::Arc;
use std::time::Instant;

use crate::error::ReceiveError;
use crate::protocol::frame::WireError;
use crate::protocol::segments::SegmentType;
use crate::transport::{Allocator, Segment, SharedBytes, Storage, Stream};

/// Large enough to receive a common call at once, small enough for the cache.
const BUFFER_SIZE: usize = 1 << 16;

/// A first segment up to this size stays in the buffer.
const SHARE_LIMIT: usize = BUFFER_SIZE / 2;

/// The receiving half of a connection. A job that waits for an answer has it on loan.
#[derive(Debug)]
pub(super) struct Input<S> {
    pub(super) stream: S,
    /// Receive buffer; allocated on first use. A segment may share it.
    buffer: Arc<Vec<u8>>,
    /// The range of the buffer that has been received but not used.
    start: usize,
    end: usize,
}

impl<S: Stream> Input<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, buffer: Arc::default(), start: 0, end: 0 }
    }

    /// Take over the buffer of another input, and return that one's stream.
    pub(super) fn reuse_memory_of(&mut self, other: Self) -> S {
        self.buffer = other.buffer;
        (self.start, self.end) = (0, 0);
        other.stream
    }

    /// True if bytes have been received but not used.
    pub(super) fn has_begun(&self) -> bool {
        self.start < self.end
    }

    /// Use up bytes of [`Self::unread`].
    pub(super) fn consume(&mut self, count: usize) {
        self.start += count;
    }

    /// Receive more bytes of a frame of which `length` bytes are needed. 0 means closed.
    pub(super) fn receive(&mut self, length: usize) -> io::Result<usize> {
        if self.start + length > self.buffer.len() {
            self.make_room(length);
        }
        self.close_surplus();
        let room = unique(&mut self.buffer).and_then(|buffer| buffer.get_mut(self.end..)).unwrap_or_default();
        let count = self.stream.receive(room)?;
        self.end += count;
        Ok(count)
    }

    /// Receive what is there already; see [`Stream::receive_answer`].
    pub(super) fn receive_answer(&mut self, length: usize, since: Instant, spins: bool) -> io::Result<usize> {
        if self.start + length > self.buffer.len() {
            self.make_room(length);
        }
        self.close_surplus();
        let room = unique(&mut self.buffer).and_then(|buffer| buffer.get_mut(self.end..)).unwrap_or_default();
        let count = self.stream.receive_answer(room, since, spins)?;
        self.end += count;
        Ok(count)
    }

    /// Close descriptors that came without a frame which names them.
    fn close_surplus(&mut self) {
        if !self.has_begun() {
            self.stream.close_surplus();
        }
    }

    /// Read the segments of the last header. The first one may share the buffer: drop it soon, or
    /// the next receive copies the buffer.
    pub(super) fn receive_segments<A: Allocator>(
        &mut self,
        lengths: &[u64],
        types: &[SegmentType],
        allocator: &mut A,
    ) -> Result<Vec<Segment<A::Buffer>>, ReceiveError> {
        let types = types.iter().copied().chain(std::iter::repeat(SegmentType::Memory));
        let mut lengths = lengths.iter().copied().zip(types);
        let shared = match lengths.clone().next() {
            Some((length, _)) if length <= SHARE_LIMIT as u64 => {
                lengths.next();
                let length = usize::try_from(length).unwrap_or(SHARE_LIMIT);
                if self.unread().len() < length {
                    self.fill(length)?;
                }
                let begin = self.start;
                self.start += length;
                Some(begin..self.start)
            }
            _ => None,
        };
        // The later ones first: they may need the buffer.
        let mut owned = Vec::new();
        for (length, kind) in lengths {
            owned.push(Segment::Owned(self.receive_owned(length, kind, allocator)?));
        }
        let Some(range) = shared else { return Ok(owned) };
        let mut segments = Vec::with_capacity(owned.len() + 1);
        segments.push(Segment::Shared(SharedBytes { buffer: Arc::clone(&self.buffer), range }));
        segments.append(&mut owned);
        Ok(segments)
    }

    fn receive_owned<A: Allocator>(
        &mut self,
        length: u64,
        kind: SegmentType,
        allocator: &mut A,
    ) -> Result<A::Buffer, ReceiveError> {
        let wanted = usize::try_from(length).map_err(|_| ReceiveError::OutOfMemory(length))?;
        let mut buffer = allocator.allocate(wanted, kind).ok_or(ReceiveError::OutOfMemory(length))?;
        let memory = buffer.memory();
        let here = self.unread();
        for (place, byte) in memory.iter_mut().zip(here) {
            place.write(*byte);
        }
        let mut done = here.len().min(memory.len());
        self.start += done;
        while let Some(rest) = memory.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.stream.receive_new(rest) {
                Ok(0) => return Err(WireError::TornFrame.into()),
                Ok(count) => done += count,
                Err(error) => retry_in_frame(error)?,
            }
        }
        Ok(buffer)
    }

    /// Read until the buffer has this many unused bytes.
    fn fill(&mut self, length: usize) -> Result<(), ReceiveError> {
        while self.unread().len() < length {
            match self.receive(length) {
                Ok(0) => return Err(WireError::TornFrame.into()),
                Ok(_) => {}
                Err(error) => retry_in_frame(error)?,
            }
        }
        Ok(())
    }

    /// The bytes that have been received but not used.
    pub(super) fn unread(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// Make room for `length` bytes from `start` on. The length of a header has been checked.
    fn make_room(&mut self, length: usize) {
        let buffer = Arc::make_mut(&mut self.buffer);
        buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        if buffer.is_empty() {
            // Fresh zeroed pages cost nothing until they are written.
            *buffer = vec![0; length.max(BUFFER_SIZE)];
        } else if length > buffer.len() {
            buffer.resize(length, 0);
        }
    }

    /// Between two frames: start at the front, and shrink after a large header.
    #[inline]
    pub(super) fn compact(&mut self) {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
            if self.buffer.len() > BUFFER_SIZE {
                self.buffer = Arc::new(vec![0; BUFFER_SIZE]);
            }
        }
    }
}

/// The buffer, copied first if a segment still uses it.
#[inline]
fn unique(buffer: &mut Arc<Vec<u8>>) -> Option<&mut Vec<u8>> {
    if Arc::strong_count(buffer) > 1 {
        copy(buffer);
    }
    Arc::get_mut(buffer)
}

#[cold]
fn copy(buffer: &mut Arc<Vec<u8>>) {
    *buffer = Arc::new(buffer.to_vec());
}

/// Inside a frame, ignore signals and the idle timeout.
pub(super) fn retry_in_frame(error: io::Error) -> Result<(), ReceiveError> {
    match error.kind() {
        io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => Ok(()),
        io::ErrorKind::ConnectionReset => Err(WireError::TornFrame.into()),
        _ => Err(error.into()),
    }
}

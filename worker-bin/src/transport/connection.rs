//! Whole frames ↔ a stream: interruptions, timeouts, partial reads and writes. The session knows
//! what frames mean.
//!
//! A small call is one `recv`, and its answer one `writev`. The buffer takes whatever the socket
//! has. A segment that is too large for it, or that must own its memory, is received directly into
//! its place.

#![forbid(unsafe_code)]

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::error::{ReceiveError, SendError};
use crate::protocol::frame::{self, Header, Progress, WireError};
use crate::protocol::message::Message;
use crate::protocol::segments::SegmentType;
use crate::transport::reports::ReportSender;
use crate::transport::{Allocator, Payload, Segment, Storage, Stream};

/// Large enough to receive a common call at once, small enough for the cache.
const BUFFER_SIZE: usize = 1 << 16;

/// A first segment up to this size stays in the buffer.
const BORROW_LIMIT: usize = BUFFER_SIZE / 2;

#[derive(Debug, PartialEq)]
pub enum Next {
    Header(Header),
    /// The other end closed between two frames.
    End,
    /// No frame began within the timeout.
    Idle,
    /// A signal came, and no frame had begun.
    Interrupted,
}

#[derive(Debug)]
pub struct Connection<S> {
    stream: S,
    /// Locked while a frame is written: the native thread writes too.
    writing: Arc<Mutex<()>>,
    /// Frames that are sent with the next one.
    outgoing: Vec<u8>,
    /// Receive buffer; allocated on first use.
    buffer: Vec<u8>,
    /// The range of the buffer that has been received but not used.
    start: usize,
    end: usize,
}

impl<S: Stream> Connection<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, writing: Arc::default(), outgoing: Vec::new(), buffer: Vec::new(), start: 0, end: 0 }
    }

    /// Create a connection that shares its write lock with `reports`.
    pub fn with_reports(stream: S, reports: &ReportSender) -> Self {
        Self { writing: Arc::clone(&reports.writing), ..Self::new(stream) }
    }

    /// Take over the buffer of another connection, and return that one's stream.
    ///
    /// A freshly forked process has the pages of the buffer already.
    pub fn reuse_memory_of(&mut self, other: Self) -> S {
        self.buffer = other.buffer;
        (self.start, self.end) = (0, 0);
        other.stream
    }

    pub fn set_receive_timeout(&mut self, timeout: Option<Duration>) -> Result<(), ReceiveError> {
        Ok(self.stream.set_receive_timeout(timeout)?)
    }

    /// Set the function that runs signal handlers while nothing arrives.
    pub fn run_handlers_with(&mut self, run_handlers: Option<fn()>) {
        self.stream.run_handlers_with(run_handlers);
    }

    /// Receive descriptors with frames from now on. `parent` is the process ID of their sender.
    pub fn expect_descriptors(&mut self, parent: Option<u32>) {
        self.stream.expect_descriptors(parent);
    }

    /// The descriptors that came with the last header; see [`Stream::take_descriptors`].
    pub fn take_descriptors(&mut self, count: usize) -> Option<Vec<OwnedFd>> {
        self.stream.take_descriptors(count)
    }

    /// Stop receiving. If this fails, the other side notices when the process exits.
    pub fn stop_receiving(&mut self) {
        let _ = self.stream.stop_receiving();
    }

    /// True if something arrives within the timeout.
    pub fn is_readable_within(&mut self, timeout: Duration) -> bool {
        self.start < self.end || self.stream.wait_readable(timeout)
    }

    /// Wait for a frame and read its header. The timeout covers the first byte only.
    pub fn next_header(&mut self) -> Result<Next, ReceiveError> {
        self.compact();
        loop {
            match frame::parse(self.unread())? {
                Progress::Ready { header, consumed } => {
                    self.start += consumed;
                    return Ok(Next::Header(header));
                }
                Progress::Need(length) => {
                    let begun = self.start < self.end;
                    // Pending frames go out before a wait.
                    self.flush().or_else(ignore_closed)?;
                    self.make_room(length);
                    match self.stream.receive(self.buffer.get_mut(self.end..).unwrap_or_default()) {
                        Ok(0) if begun => return Err(WireError::TornFrame.into()),
                        Ok(0) => return Ok(Next::End),
                        Ok(count) => self.end += count,
                        // The parent closed its end with unread bytes in it. That is a close like
                        // any other.
                        Err(error) if error.kind() == io::ErrorKind::ConnectionReset && !begun => return Ok(Next::End),
                        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(WireError::TornFrame.into()),
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock && !begun => return Ok(Next::Idle),
                        Err(error) if error.kind() == io::ErrorKind::Interrupted && !begun => return Ok(Next::Interrupted),
                        Err(error) => retry_in_frame(error)?,
                    }
                }
            }
        }
    }

    /// Read the segments of the last header. Use them before the next frame is read.
    pub fn receive_segments<A: Allocator>(
        &mut self,
        lengths: &[u64],
        types: &[SegmentType],
        allocator: &mut A,
    ) -> Result<Vec<Segment<'_, A::Buffer>>, ReceiveError> {
        let types = types.iter().copied().chain(std::iter::repeat(SegmentType::Memory));
        let mut lengths = lengths.iter().copied().zip(types);
        let borrowed = match lengths.clone().next() {
            Some((length, _)) if length <= BORROW_LIMIT as u64 => {
                lengths.next();
                let length = usize::try_from(length).unwrap_or(BORROW_LIMIT);
                self.fill(length)?;
                let begin = self.start;
                self.start += length;
                Some(begin..self.start)
            }
            _ => None,
        };
        let mut owned = Vec::new();
        for (length, kind) in lengths {
            owned.push(Segment::Owned(self.receive_owned(length, kind, allocator)?));
        }
        let Some(range) = borrowed else { return Ok(owned) };
        let mut segments = Vec::with_capacity(owned.len() + 1);
        segments.push(Segment::Borrowed(self.buffer.get(range).unwrap_or_default()));
        segments.append(&mut owned);
        Ok(segments)
    }

    /// Send one frame, with as many writes as it takes.
    pub fn send(&mut self, message: Message, id: u64, payload: Option<&dyn Payload>) -> Result<(), SendError> {
        let segments = payload.map(Payload::segments).unwrap_or_default();
        let lengths = segments.iter().map(|pieces| pieces.iter().map(|piece| piece.len() as u64).sum()).collect();
        let header = frame::encode(Header { kind: message.kind(), id, lengths, body: message.into_body() })?;
        let pieces = segments.iter().flatten().copied();
        let outgoing = std::mem::take(&mut self.outgoing);
        let parts = [outgoing.as_slice(), &header].into_iter().chain(pieces).filter(|part| !part.is_empty());
        self.write(&mut parts.map(IoSlice::new).collect::<Vec<_>>())
    }

    /// Send a frame with the next one, or before the next wait. That wakes the other side once.
    pub fn buffer(&mut self, message: Message) -> Result<(), SendError> {
        let header = frame::encode(Header { kind: message.kind(), id: 0, lengths: Vec::new(), body: message.into_body() })?;
        self.outgoing.extend(header);
        Ok(())
    }

    /// Send the buffered frames. Call this before anything that may take long.
    pub fn flush(&mut self) -> Result<(), SendError> {
        let outgoing = std::mem::take(&mut self.outgoing);
        self.write(&mut [IoSlice::new(&outgoing)])
    }

    fn write(&mut self, parts: &mut [IoSlice<'_>]) -> Result<(), SendError> {
        let mut rest = parts;
        IoSlice::advance_slices(&mut rest, 0);
        if rest.is_empty() {
            return Ok(());
        }
        // The lock guards no data, and a panic ends the process.
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        while !rest.is_empty() {
            // IOV_MAX is 1,024. std cuts the list too, but does not promise it.
            match self.stream.send(rest.get(..rest.len().min(1024)).unwrap_or_default()) {
                Ok(0) => return Err(SendError::Closed),
                Ok(count) => IoSlice::advance_slices(&mut rest, count),
                Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                    return Err(SendError::Closed);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(SendError::System(error)),
            }
        }
        Ok(())
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
            self.make_room(length);
            match self.stream.receive(self.buffer.get_mut(self.end..).unwrap_or_default()) {
                Ok(0) => return Err(WireError::TornFrame.into()),
                Ok(count) => self.end += count,
                Err(error) => retry_in_frame(error)?,
            }
        }
        Ok(())
    }

    fn unread(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// Make room for `length` bytes from `start` on. The length of a header has been checked.
    fn make_room(&mut self, length: usize) {
        if self.start + length > self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            if self.buffer.is_empty() {
                // Fresh zeroed pages cost nothing until they are written.
                self.buffer = vec![0; length.max(BUFFER_SIZE)];
            } else if length > self.buffer.len() {
                self.buffer.resize(length, 0);
            }
        }
    }

    /// Between two frames: start at the front, and shrink after a large header.
    fn compact(&mut self) {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
            if self.buffer.len() > BUFFER_SIZE {
                self.buffer = vec![0; BUFFER_SIZE];
            }
        }
    }
}

/// Ignore a closed socket on write; the next read reports it.
fn ignore_closed(error: SendError) -> Result<(), ReceiveError> {
    match error {
        SendError::Closed => Ok(()),
        SendError::Wire(error) => Err(error.into()),
        SendError::System(error) => Err(error.into()),
    }
}

/// Inside a frame, ignore signals and the idle timeout.
fn retry_in_frame(error: io::Error) -> Result<(), ReceiveError> {
    match error.kind() {
        io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => Ok(()),
        io::ErrorKind::ConnectionReset => Err(WireError::TornFrame.into()),
        _ => Err(error.into()),
    }
}

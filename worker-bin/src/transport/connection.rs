//! Whole frames ↔ the socket. It knows interruptions, time-outs and partial reads and writes; what a frame means is the
//! session's affair.
//!
//! A call that fits is one `recv` and its answer one `writev`. For that the buffer takes whatever the socket gives, and
//! only what is too large for it, or has to own its memory, is received in its own place.

#![forbid(unsafe_code)]

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::error::{ReceiveError, SendError};
use crate::protocol::frame::{self, Header, Progress, WireError};
use crate::protocol::message::Message;
use crate::protocol::segments::SegmentType;
use crate::transport::reports::Outlet;
use crate::transport::{Allocator, Payload, Segment, Storage, Stream};

#[derive(Debug, PartialEq)]
pub enum Next {
    Header(Header),
    /// The other end closed between two frames.
    End,
    /// No frame began within the time-out.
    Idle,
    /// A signal came while no frame had begun.
    Interrupted,
}

#[derive(Debug)]
pub struct Connection<S> {
    stream: S,
    /// Held while a frame is written: the native thread writes too.
    writing: Arc<Mutex<()>>,
    /// Frames that go out with the next one.
    held: Vec<u8>,
    /// Empty until it is needed.
    buffer: Vec<u8>,
    /// The part of the buffer that has been received and not been used.
    start: usize,
    end: usize,
}

/// Large enough for the common call and its answer in one system call, small enough to stay in the cache.
const BUFFER_SIZE: usize = 1 << 16;

/// A first segment up to this size is left in the buffer.
const PASSING_LIMIT: usize = BUFFER_SIZE / 2;

impl<S: Stream> Connection<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, writing: Arc::default(), held: Vec::new(), buffer: Vec::new(), start: 0, end: 0 }
    }

    /// One whose frames do not mix with those of the outlet.
    pub fn with_outlet(stream: S, outlet: &Outlet) -> Self {
        Self { writing: Arc::clone(&outlet.writing), ..Self::new(stream) }
    }

    /// Takes the memory of one that is of no further use, and gives back its stream, without what was read ahead of it.
    ///
    /// In a process that has just been forked its pages are there already.
    pub fn succeed(&mut self, other: Self) -> S {
        self.buffer = other.buffer;
        (self.start, self.end) = (0, 0);
        other.stream
    }

    pub fn set_receive_timeout(&mut self, timeout: Option<Duration>) -> Result<(), ReceiveError> {
        Ok(self.stream.set_receive_timeout(timeout)?)
    }

    /// How signal handlers are run while nothing comes.
    pub fn run_handlers_with(&mut self, run_handlers: Option<fn()>) {
        self.stream.run_handlers_with(run_handlers);
    }

    /// Whether frames bring descriptors from now on, and from which process: the number that the parent is known by.
    pub fn expect_descriptors(&mut self, parent: Option<u32>) {
        self.stream.expect_descriptors(parent);
    }

    /// The descriptors that came with the frame whose header came last; as [`Stream::take_descriptors`].
    pub fn take_descriptors(&mut self, count: usize) -> Option<Vec<OwnedFd>> {
        self.stream.take_descriptors(count)
    }

    /// Nothing is to be read any more. Should the system refuse to say so, the other side learns it when the process ends.
    pub fn stop_receiving(&mut self) {
        let _ = self.stream.stop_receiving();
    }

    /// Whether something comes within so long.
    pub fn anything_within(&mut self, timeout: Duration) -> bool {
        self.start < self.end || self.stream.wait_readable(timeout)
    }

    /// Waits for a frame to begin and reads its header. The time-out counts only until its first byte is there.
    pub fn next_header(&mut self) -> Result<Next, ReceiveError> {
        self.tidy();
        loop {
            match frame::parse(self.waiting())? {
                Progress::Ready { header, consumed } => {
                    self.start += consumed;
                    return Ok(Next::Header(header));
                }
                Progress::Need(length) => {
                    let begun = self.start < self.end;
                    // Whoever waits has nothing to add.
                    self.send_held().or_else(unless_closed)?;
                    self.make_room(length);
                    match self.stream.receive(self.buffer.get_mut(self.end..).unwrap_or_default()) {
                        Ok(0) if begun => return Err(WireError::TornFrame.into()),
                        Ok(0) => return Ok(Next::End),
                        Ok(count) => self.end += count,
                        // The parent closed its end with something unread in it, which to us is a close like any other.
                        Err(error) if error.kind() == io::ErrorKind::ConnectionReset && !begun => return Ok(Next::End),
                        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(WireError::TornFrame.into()),
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock && !begun => return Ok(Next::Idle),
                        Err(error) if error.kind() == io::ErrorKind::Interrupted && !begun => return Ok(Next::Interrupted),
                        Err(error) => keep_going(error)?,
                    }
                }
            }
        }
    }

    /// Reads the segments of the frame whose header came last. They are to be used before the next frame is read.
    pub fn receive_segments<A: Allocator>(
        &mut self,
        lengths: &[u64],
        types: &[SegmentType],
        allocator: &mut A,
    ) -> Result<Vec<Segment<'_, A::Buffer>>, ReceiveError> {
        let types = types.iter().copied().chain(std::iter::repeat(SegmentType::Memory));
        let mut lengths = lengths.iter().copied().zip(types);
        let passing = match lengths.clone().next() {
            Some((length, _)) if length <= PASSING_LIMIT as u64 => {
                lengths.next();
                let length = usize::try_from(length).unwrap_or(PASSING_LIMIT);
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
        let Some(range) = passing else { return Ok(owned) };
        let mut segments = Vec::with_capacity(owned.len() + 1);
        segments.push(Segment::Passing(self.buffer.get(range).unwrap_or_default()));
        segments.append(&mut owned);
        Ok(segments)
    }

    /// Sends one frame, however often the socket has to be asked.
    pub fn send(&mut self, message: Message, id: u64, payload: Option<&dyn Payload>) -> Result<(), SendError> {
        let segments = payload.map(Payload::segments).unwrap_or_default();
        let lengths = segments.iter().map(|pieces| pieces.iter().map(|piece| piece.len() as u64).sum()).collect();
        let header = frame::encode(Header { kind: message.kind(), id, lengths, body: message.into_body() })?;
        let pieces = segments.iter().flatten().copied();
        let held = std::mem::take(&mut self.held);
        let parts = [held.as_slice(), &header].into_iter().chain(pieces).filter(|part| !part.is_empty());
        self.write(&mut parts.map(IoSlice::new).collect::<Vec<_>>())
    }

    /// Has a frame go out with the next one, or before anything is waited for: the other side is woken once.
    pub fn hold(&mut self, message: Message) -> Result<(), SendError> {
        let header = frame::encode(Header { kind: message.kind(), id: 0, lengths: Vec::new(), body: message.into_body() })?;
        self.held.extend(header);
        Ok(())
    }

    /// Sends what is held. To be done before anything that may take its time.
    pub fn send_held(&mut self) -> Result<(), SendError> {
        let held = std::mem::take(&mut self.held);
        self.write(&mut [IoSlice::new(&held)])
    }

    fn write(&mut self, parts: &mut [IoSlice<'_>]) -> Result<(), SendError> {
        let mut rest = parts;
        IoSlice::advance_slices(&mut rest, 0);
        if rest.is_empty() {
            return Ok(());
        }
        // What it guards is not data: a thread that panicked has ended the process.
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        while !rest.is_empty() {
            // No more than the system takes at once (IOV_MAX); std would cut the list too, but it need not be relied on.
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
        let here = self.waiting();
        for (place, byte) in memory.iter_mut().zip(here) {
            place.write(*byte);
        }
        let mut done = here.len().min(memory.len());
        self.start += done;
        while let Some(rest) = memory.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.stream.receive_new(rest) {
                Ok(0) => return Err(WireError::TornFrame.into()),
                Ok(count) => done += count,
                Err(error) => keep_going(error)?,
            }
        }
        Ok(buffer)
    }

    /// Reads until so many unused bytes are in the buffer.
    fn fill(&mut self, length: usize) -> Result<(), ReceiveError> {
        while self.waiting().len() < length {
            self.make_room(length);
            match self.stream.receive(self.buffer.get_mut(self.end..).unwrap_or_default()) {
                Ok(0) => return Err(WireError::TornFrame.into()),
                Ok(count) => self.end += count,
                Err(error) => keep_going(error)?,
            }
        }
        Ok(())
    }

    fn waiting(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// Makes the buffer hold `length` bytes from `start` on. A header's length has been checked against its bound by then.
    fn make_room(&mut self, length: usize) {
        if self.start + length > self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            if self.buffer.is_empty() {
                // Zeros that the system has made cost nothing until they are overwritten.
                self.buffer = vec![0; length.max(BUFFER_SIZE)];
            } else if length > self.buffer.len() {
                self.buffer.resize(length, 0);
            }
        }
    }

    /// Between two frames: starts at the front again, and gives back what an unusually large header took.
    fn tidy(&mut self) {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
            if self.buffer.len() > BUFFER_SIZE {
                self.buffer = vec![0; BUFFER_SIZE];
            }
        }
    }
}

/// Whoever goes on to read learns there that the other end is closed.
fn unless_closed(error: SendError) -> Result<(), ReceiveError> {
    match error {
        SendError::Closed => Ok(()),
        SendError::Wire(error) => Err(error.into()),
        SendError::System(error) => Err(error.into()),
    }
}

/// Inside a frame neither a signal nor the idle time-out means anything.
fn keep_going(error: io::Error) -> Result<(), ReceiveError> {
    match error.kind() {
        io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => Ok(()),
        io::ErrorKind::ConnectionReset => Err(WireError::TornFrame.into()),
        _ => Err(error.into()),
    }
}

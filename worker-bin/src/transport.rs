//! Whole frames ↔ the socket. It knows interruptions, time-outs and partial reads and writes; what a frame means is the
//! session's affair.
//!
//! A call that fits is one `recv` and its answer one `writev`. For that the buffer takes whatever the socket gives, and
//! only what is too large for it, or has to own its memory, is received in its own place.

#![forbid(unsafe_code)]

use std::io::{self, IoSlice, Write as _};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{ReceiveError, SendError};
use crate::message::Message;
use crate::os;
use crate::wire::{self, Header, Progress, WireError};

/// The bytes of a socket. Tests put something else in its place.
pub trait Stream {
    /// 0: the other end is closed. `WouldBlock`: the time is over.
    fn receive(&mut self, into: &mut [u8]) -> io::Result<usize>;
    /// The same into memory that need not have been written before.
    fn receive_new(&mut self, into: &mut [MaybeUninit<u8>]) -> io::Result<usize>;
    fn send(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize>;
    fn set_receive_timeout(&mut self, timeout: Option<Duration>) -> io::Result<()>;
    /// Lets the other side's writes fail from now on, those that wait for room too. What was sent to it stays to be read.
    fn stop_receiving(&mut self) -> io::Result<()>;
}

/// Where the segments that own their memory go.
pub trait Allocator {
    type Buffer: Storage;
    /// `None`: there is not so much memory.
    fn allocate(&mut self, length: usize) -> Option<Self::Buffer>;
}

pub trait Storage {
    fn memory(&mut self) -> &mut [MaybeUninit<u8>];
}

/// What is sent behind a header.
pub trait Payload {
    /// For each segment the pieces that it consists of.
    fn segments(&self) -> Vec<Vec<&[u8]>>;
}

/// One segment of a frame that has arrived.
#[derive(Debug)]
pub enum Segment<'a, B> {
    /// Still in the connection's buffer, gone with the next frame.
    Passing(&'a [u8]),
    Owned(B),
}

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
        Self { stream, writing: Arc::default(), buffer: vec![0; BUFFER_SIZE], start: 0, end: 0 }
    }

    /// One whose frames do not mix with those of the outlet.
    pub fn with_outlet(stream: S, outlet: &Outlet) -> Self {
        Self { writing: Arc::clone(&outlet.writing), ..Self::new(stream) }
    }

    /// The stream, without what was read ahead of it.
    pub fn into_stream(self) -> S {
        self.stream
    }

    pub fn set_receive_timeout(&mut self, timeout: Option<Duration>) -> Result<(), ReceiveError> {
        Ok(self.stream.set_receive_timeout(timeout)?)
    }

    /// Nothing is to be read any more. Should the system refuse to say so, the other side learns it when the process ends.
    pub fn stop_receiving(&mut self) {
        let _ = self.stream.stop_receiving();
    }

    /// Waits for a frame to begin and reads its header. The time-out counts only until its first byte is there.
    pub fn next_header(&mut self) -> Result<Next, ReceiveError> {
        self.tidy();
        loop {
            match wire::parse(self.waiting())? {
                Progress::Ready { header, consumed } => {
                    self.start += consumed;
                    return Ok(Next::Header(header));
                }
                Progress::Need(length) => {
                    let begun = self.start < self.end;
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
        allocator: &mut A,
    ) -> Result<Vec<Segment<'_, A::Buffer>>, ReceiveError> {
        let mut lengths = lengths.iter().copied();
        let passing = match lengths.clone().next() {
            Some(length) if length <= PASSING_LIMIT as u64 => {
                lengths.next();
                let length = usize::try_from(length).unwrap_or(PASSING_LIMIT);
                self.fill(length)?;
                let begin = self.start;
                self.start += length;
                Some(begin..self.start)
            }
            _ => None,
        };
        let mut owned = Vec::with_capacity(lengths.len());
        for length in lengths {
            owned.push(Segment::Owned(self.receive_owned(length, allocator)?));
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
        let header = wire::encode(Header { kind: message.kind(), id, lengths, body: message.into_body() })?;
        let pieces = segments.iter().flatten().copied().filter(|piece| !piece.is_empty());
        let mut parts: Vec<IoSlice<'_>> = std::iter::once(header.as_slice()).chain(pieces).map(IoSlice::new).collect();
        let mut rest = parts.as_mut_slice();
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

    fn receive_owned<A: Allocator>(&mut self, length: u64, allocator: &mut A) -> Result<A::Buffer, ReceiveError> {
        let wanted = usize::try_from(length).map_err(|_| ReceiveError::OutOfMemory(length))?;
        let mut buffer = allocator.allocate(wanted).ok_or(ReceiveError::OutOfMemory(length))?;
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
            if length > self.buffer.len() {
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

/// Inside a frame neither a signal nor the idle time-out means anything.
fn keep_going(error: io::Error) -> Result<(), ReceiveError> {
    match error.kind() {
        io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => Ok(()),
        io::ErrorKind::ConnectionReset => Err(WireError::TornFrame.into()),
        _ => Err(error.into()),
    }
}

/// The native thread's way to the socket: small frames, whole or not at all, and never one that waits. Whoever waited here
/// could not watch the parent meanwhile.
#[derive(Debug)]
pub struct Outlet {
    /// Not a copy of its own: that would stay open in what a job forks off, and the worker's end would go unseen.
    descriptor: RawFd,
    identity: Option<os::Identity>,
    writing: Arc<Mutex<()>>,
}

impl Outlet {
    pub fn new(socket: BorrowedFd<'_>) -> Self {
        Self { descriptor: socket.as_raw_fd(), identity: os::identity_of(socket), writing: Arc::default() }
    }

    /// Whether the descriptor is still the socket's. A job that closes every descriptor closes this one too, and may open files
    /// of its own under the number.
    pub fn is_there(&self) -> bool {
        self.identity.is_some() && os::identity_of_number(self.descriptor) == self.identity
    }

    /// Sends a message of no call, unless another frame is being written, the socket is full, or `wanted` says no once
    /// nobody else can write. Whether it was sent.
    pub fn send_at_once(&self, message: Message, wanted: impl FnOnce() -> bool) -> bool {
        let header = Header { kind: message.kind(), id: 0, lengths: Vec::new(), body: message.into_body() };
        let Ok(bytes) = wire::encode(header) else { return false };
        let Ok(_writing) = self.writing.try_lock() else { return false };
        if !wanted() || !self.is_there() {
            return false;
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            match os::send_at_once(self.descriptor, rest) {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A Unix socket takes so few bytes as a whole (net/unix/af_unix.c, unix_stream_sendmsg); but a frame that was
                // begun has to be ended.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && rest.len() < bytes.len() => std::thread::yield_now(),
                Err(_) => return false,
            }
        }
        true
    }
}

/// The worker's end of the real socket.
///
/// Some programs close every descriptor above 2 and open files of their own. In a job that closes this one too, and its
/// number may be that of a user's file or connection by the time of the answer, which must not be written into it.
#[derive(Debug)]
pub struct Socket {
    stream: UnixStream,
    identity: Option<os::Identity>,
    lost: bool,
}

impl From<OwnedFd> for Socket {
    fn from(descriptor: OwnedFd) -> Self {
        let identity = os::identity_of(descriptor.as_fd());
        Self { stream: UnixStream::from(descriptor), identity, lost: false }
    }
}

impl Stream for Socket {
    fn receive(&mut self, into: &mut [u8]) -> io::Result<usize> {
        io::Read::read(&mut self.stream, into)
    }

    fn receive_new(&mut self, into: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
        os::receive(self.stream.as_fd(), into)
    }

    fn send(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        if os::identity_of(self.stream.as_fd()) != self.identity {
            // The parent cannot be told; it learns that this worker ends.
            if !std::mem::replace(&mut self.lost, true) {
                // Not `eprintln!`, which panics when standard error cannot be written.
                let _ = writeln!(
                    io::stderr(),
                    "trio-offload-worker: a job has closed descriptor 3, which leads to the parent program; this worker ends"
                );
            }
            return Err(io::ErrorKind::NotConnected.into());
        }
        self.stream.write_vectored(parts)
    }

    fn set_receive_timeout(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        os::set_receive_timeout(self.stream.as_fd(), timeout)
    }

    fn stop_receiving(&mut self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Read)
    }
}

/// When an idle worker has waited long enough, counted over the interruptions by signals.
#[derive(Debug, Clone, Copy)]
pub struct IdleClock {
    timeout: Option<Duration>,
    since: Instant,
}

impl IdleClock {
    pub fn start(timeout: Option<Duration>) -> Self {
        Self { timeout, since: Instant::now() }
    }

    pub fn restart(&mut self) {
        // Reading the clock costs nothing to speak of, but a worker that never retires need not do it at every call.
        if self.timeout.is_some() {
            self.since = Instant::now();
        }
    }

    pub fn is_over(&self) -> bool {
        self.timeout.is_some_and(|timeout| self.since.elapsed() >= timeout)
    }
}

//! Whole frames ↔ the socket. It knows interruptions, time-outs and partial reads and writes; what a frame means is the
//! session's affair.
//!
//! A call that fits is one `recv` and its answer one `writev`. For that the buffer takes whatever the socket gives, and
//! only what is too large for it, or has to own its memory, is received in its own place.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io::{self, IoSlice, Write as _};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{available_parallelism, yield_now};
use std::time::{Duration, Instant};

use crate::error::{ReceiveError, SendError};
use crate::os;
use crate::protocol::frame::{self, Header, Progress, WireError};
use crate::protocol::message::{Message, SegmentType};

/// The bytes of a socket. Tests put something else in its place.
pub trait Stream {
    /// 0: the other end is closed. `WouldBlock`: the time is over.
    fn receive(&mut self, into: &mut [u8]) -> io::Result<usize>;
    /// The same into memory that need not have been written before.
    fn receive_new(&mut self, into: &mut [MaybeUninit<u8>]) -> io::Result<usize>;
    fn send(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize>;
    /// Waits for something to read; false: there was nothing for so long.
    fn wait_readable(&mut self, timeout: Duration) -> bool;
    fn set_receive_timeout(&mut self, timeout: Option<Duration>) -> io::Result<()>;
    /// Calls this before it waits for long, and waits so that no signal is missed; `None`: it need not.
    fn run_handlers_with(&mut self, _run_handlers: Option<fn()>) {}
    /// Lets the other side's writes fail from now on, those that wait for room too. What was sent to it stays to be read.
    fn stop_receiving(&mut self) -> io::Result<()>;
    /// Keeps descriptors that come with the bytes from now on, and looks for the end of the parent that sends them, which has this
    /// number; `None`: does so no longer.
    fn expect_descriptors(&mut self, _parent: Option<u32>) {}
    /// The next of those that were kept; `None`: there are not so many.
    fn take_descriptors(&mut self, count: usize) -> Option<Vec<OwnedFd>> {
        (count == 0).then(Vec::new)
    }
}

/// Where the segments that own their memory go.
pub trait Allocator {
    type Buffer: Storage;
    /// `None`: there is not so much memory.
    fn allocate(&mut self, length: usize, kind: SegmentType) -> Option<Self::Buffer>;
}

pub trait Storage {
    fn memory(&mut self) -> &mut [MaybeUninit<u8>];
}

/// What is sent behind a header.
pub trait Payload {
    /// For each segment the pieces that it consists of.
    fn segments(&self) -> Vec<Vec<&[u8]>>;
    /// What each segment becomes; empty if each is memory.
    fn types(&self) -> Vec<SegmentType>;
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

/// The native thread's way to the socket: small frames, whole or not at all, and never one that waits. Whoever waited here
/// could not watch the parent meanwhile.
#[derive(Debug, Clone)]
pub struct Outlet {
    /// The number that the socket has in the main thread's table of descriptors and in the native thread's own.
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

    /// In a table of descriptors that is the calling thread's own: does not keep open what a job has there instead.
    pub fn leave_unless_there(&self) {
        if !self.is_there() {
            os::close_in_own_table(self.descriptor);
        }
    }

    /// Sends a message of no call, unless another frame is being written, the socket is full, or `wanted` says no once
    /// nobody else can write. Whether it was sent.
    pub fn send_at_once(&self, message: Message, wanted: impl FnOnce() -> bool) -> bool {
        let header = Header { kind: message.kind(), id: 0, lengths: Vec::new(), body: message.into_body() };
        let Ok(bytes) = frame::encode(header) else { return false };
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
    /// `None`: no descriptors are to come; the system would drop them.
    requests: Option<Requests>,
    #[cfg(target_os = "linux")]
    pages: Pages,
    expectation: Expectation,
    /// The idle time, for a wait that is not one of `recv`'s.
    timeout: Option<Duration>,
    run_handlers: Option<fn()>,
}

/// What the socket has more where nobody else sees to the parent's end: a template's, and that of a worker which has been forked and
/// waits for its HELLO.
#[derive(Debug)]
struct Requests {
    /// What has come with the bytes.
    descriptors: VecDeque<OwnedFd>,
    /// A process that the parent has forked may hold a copy of its end, and there is no native thread to find out.
    parent: os::ParentWatch,
}

/// How large segments are sent without a copy on this side.
///
/// The kernel sends the very pages that they lie in, so nothing may write to those until the other side has read them, and a worker
/// drops its result as soon as it has been sent. So the last bytes of a frame are copied as ever, and so many of them that the
/// socket does not hold more: when it has taken the last one, all pages before them have been read.
#[cfg(target_os = "linux")]
#[derive(Debug, Default)]
struct Pages {
    splice: Option<os::Splice>,
    /// How many bytes at the end of a frame are copied; `None`: all of them, because this way is closed (an old kernel, a sandbox).
    copied: Option<usize>,
}

/// Segments smaller than this are copied: that is as fast.
#[cfg(target_os = "linux")]
const PAGES_FROM: usize = 1 << 18;

#[cfg(target_os = "linux")]
impl Pages {
    fn of(socket: BorrowedFd<'_>) -> Self {
        // The size bounds what the kernel has taken for the bytes, which is more than they are; what it takes at once may go beyond
        // by a part (net/unix/af_unix.c, unix_stream_sendmsg). So twice as much is on the safe side.
        Self { splice: None, copied: os::send_buffer_size(socket).and_then(|size| size.checked_mul(2)) }
    }

    /// How many of these parts, the whole rest of a frame or its front, can go as pages.
    fn count(&self, parts: &[IoSlice<'_>]) -> usize {
        let Some(copied) = self.copied else { return 0 };
        let all: usize = parts.iter().map(|part| part.len()).sum();
        all.checked_sub(copied).filter(|count| *count >= PAGES_FROM).unwrap_or_default()
    }

    /// Sends the front of the first part. `None`: the parts are to be written.
    fn send(&mut self, socket: BorrowedFd<'_>, parts: &[IoSlice<'_>]) -> Option<io::Result<usize>> {
        let count = self.count(parts);
        let Some(first) = parts.first().filter(|first| first.len() >= PAGES_FROM && count > 0) else {
            self.splice = None;
            return None;
        };
        match self.try_to_send(socket, first.get(..count.min(first.len())).unwrap_or_default()) {
            Err(error)
                if !matches!(
                    error.kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
                ) =>
            {
                (self.splice, self.copied) = (None, None);
                None
            }
            outcome => Some(outcome),
        }
    }

    fn try_to_send(&mut self, socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
        let mut splice = match self.splice.take() {
            Some(splice) => splice,
            None => os::Splice::new()?,
        };
        let outcome = splice.send(socket, bytes);
        self.splice = Some(splice);
        outcome
    }

    /// What is to be written now, so that a large part comes first next time.
    fn before_next<'a, 'b>(&self, parts: &'a [IoSlice<'b>]) -> &'a [IoSlice<'b>] {
        if self.count(parts) == 0 {
            return parts;
        }
        let end = parts.iter().position(|part| part.len() >= PAGES_FROM).filter(|end| *end > 0);
        end.and_then(|end| parts.get(..end)).unwrap_or(parts)
    }
}

impl From<OwnedFd> for Socket {
    fn from(descriptor: OwnedFd) -> Self {
        let identity = os::identity_of(descriptor.as_fd());
        Self {
            #[cfg(target_os = "linux")]
            pages: Pages::of(descriptor.as_fd()),
            stream: UnixStream::from(descriptor),
            identity,
            lost: false,
            requests: None,
            expectation: Expectation::default(),
            timeout: None,
            run_handlers: None,
        }
    }
}

/// Whether the next message is expected at once: then it is looked for a while before this thread sleeps.
///
/// To be woken takes longer than a small job, and meanwhile the processor forgets what it knew of the worker (that of a virtual
/// machine is given to others). It costs the parent too, who has to wake the processor: where several tasks share few workers
/// that is half of a call, and calls that are further apart for it let the workers sleep again. What it costs at most, the
/// [`Budget`] says.
#[derive(Debug, Default)]
struct Expectation {
    /// How many more messages of late came soon than did not, the latter counted as a row each.
    quick: u32,
    budget: Budget,
    /// Whether there is a processor for this beside the parent's; found out when it is asked for first.
    pays: Option<bool>,
}

const LOOKED_FOR: Duration = Duration::from_micros(600);

/// Messages with longer pauses in between are not worth a processor. To a worker that sleeps the next call comes later than to one
/// that looks for it, by what it takes to be woken.
const SOON: Duration = Duration::from_micros(300);

/// A single call, or the messages of a start, are no row.
const ROW: u32 = 4;

/// So many late ones in a row end the longest.
const LATE: u32 = 4;

/// What looking may cost: what it saves, and an eighth of a processor beyond that.
///
/// A message that is found saves a wake-up, `WORTH`. A worker that is called every 100 us looks for 100 us to save 60, so without a
/// budget it takes a whole processor however little it works; and where the processors have a quota (`cpu.max`), what one worker
/// takes is missing in the parent. (`pays` sees to quotas of less than two processors: `available_parallelism` counts them.)
#[derive(Debug, Default)]
struct Budget {
    /// When all that looks have cost beyond their worth is paid back; `None`: nothing has been looked for yet.
    clear_at: Option<Instant>,
}

/// What a message that was found may have cost. A call that wakes its worker takes 50 to 75 us longer (docs/speed.md).
const WORTH: Duration = Duration::from_micros(60);

/// How many times what looks have cost beyond their worth has to pass until that is paid back.
const PAID_BACK_IN: u32 = 8;

/// What may be owed before a look begins: 4 ms of a processor, so that a short burst of calls is looked for.
const ALLOWANCE: Duration = Duration::from_millis(4).saturating_mul(PAID_BACK_IN);

/// One turn of looking takes about a microsecond. In one that takes more than this, others had the processor.
const TURN: Duration = Duration::from_micros(10);

impl Budget {
    fn allows(&self, now: Instant) -> bool {
        self.clear_at.is_none_or(|at| at.saturating_duration_since(now) <= ALLOWANCE)
    }

    /// Looks that cost so much have found something that is worth so much. What is saved pays back what is owed and is no stock.
    fn settle(&mut self, now: Instant, cost: Duration, worth: Duration) {
        let from = self.clear_at.map_or(now, |at| at.max(now));
        self.clear_at = if cost > worth {
            from.checked_add((cost - worth) * PAID_BACK_IN)
        } else {
            from.checked_sub((worth - cost) * PAID_BACK_IN)
        };
    }
}

impl Expectation {
    /// `sleep` waits until there is something to read.
    fn receive(
        &mut self,
        stream: &mut UnixStream,
        into: &mut [u8],
        sleep: impl FnOnce(&UnixStream) -> io::Result<()>,
    ) -> io::Result<usize> {
        let since = Instant::now();
        if self.quick >= ROW
            && *self.pays.get_or_insert_with(|| available_parallelism().is_ok_and(|count| count.get() > 1))
            && self.budget.allows(since)
        {
            let mut last = since;
            let mut cost = Duration::ZERO;
            loop {
                let received = os::receive_at_once(stream.as_fd(), into);
                let now = Instant::now();
                cost += now.saturating_duration_since(last).min(TURN);
                let pause = now.saturating_duration_since(since);
                let found = !matches!(&received, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
                if found || pause >= LOOKED_FOR {
                    self.budget.settle(now, cost, if found { WORTH } else { Duration::ZERO });
                    if found {
                        self.note(pause);
                        return received;
                    }
                    break;
                }
                last = now;
                // Where there are fewer processors than processes that want one, those go first.
                yield_now();
            }
            self.quick = 0;
            sleep(stream)?;
            return io::Read::read(stream, into);
        }
        sleep(stream)?;
        let received = io::Read::read(stream, into);
        self.note(since.elapsed());
        received
    }

    /// A message has come after such a pause.
    fn note(&mut self, pause: Duration) {
        self.quick = if pause <= SOON { (self.quick + 1).min(LATE * ROW) } else { self.quick.saturating_sub(ROW) };
    }
}

impl Socket {
    /// In a worker that was forked off a template: lets go of all but the descriptor of the socket, which is the worker's own by now.
    pub fn relinquish(self) {
        std::mem::forget(self.stream);
    }
}

impl Stream for Socket {
    fn receive(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match &mut self.requests {
            None => {
                let (run_handlers, timeout) = (self.run_handlers, self.timeout);
                self.expectation.receive(&mut self.stream, into, |stream| match run_handlers {
                    // To wait is part of reading.
                    None => Ok(()),
                    Some(run_handlers) if os::wait_readable_or_signal(stream.as_fd(), timeout, run_handlers)? => Ok(()),
                    Some(_) => Err(io::ErrorKind::WouldBlock.into()),
                })
            }
            Some(requests) if requests.parent.wait_for_input(self.stream.as_fd())? => {
                os::receive_with_descriptors(self.stream.as_fd(), into, &mut requests.descriptors)
            }
            // To the session this is the end of the stream, which it would be without the copies.
            Some(_) => Ok(0),
        }
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
        #[cfg(target_os = "linux")]
        let parts = match self.pages.send(self.stream.as_fd(), parts) {
            Some(sent) => return sent,
            None => self.pages.before_next(parts),
        };
        self.stream.write_vectored(parts)
    }

    fn wait_readable(&mut self, timeout: Duration) -> bool {
        os::wait_readable(self.stream.as_fd(), timeout)
    }

    fn set_receive_timeout(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.timeout = timeout;
        os::set_receive_timeout(self.stream.as_fd(), timeout)
    }

    fn run_handlers_with(&mut self, run_handlers: Option<fn()>) {
        self.run_handlers = run_handlers;
    }

    fn stop_receiving(&mut self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Read)
    }

    fn expect_descriptors(&mut self, parent: Option<u32>) {
        self.requests = parent.map(|pid| Requests { descriptors: VecDeque::new(), parent: os::ParentWatch::of(pid) });
    }

    fn take_descriptors(&mut self, count: usize) -> Option<Vec<OwnedFd>> {
        let kept = self.requests.as_mut().map(|requests| &mut requests.descriptors);
        match kept {
            Some(kept) => (kept.len() >= count).then(|| kept.drain(..count).collect()),
            None => (count == 0).then(Vec::new),
        }
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

#[cfg(all(test, target_os = "linux"))]
#[expect(clippy::unwrap_used, reason = "outside of the test functions too, what a test did not expect fails it")]
mod tests {
    use std::io::Read as _;

    use super::*;

    struct Pieces(Vec<Vec<u8>>);

    impl Payload for Pieces {
        fn segments(&self) -> Vec<Vec<&[u8]>> {
            self.0.iter().map(|piece| vec![piece.as_slice()]).collect()
        }

        fn types(&self) -> Vec<SegmentType> {
            Vec::new()
        }
    }

    fn pair() -> (Connection<Socket>, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Connection::new(Socket::from(OwnedFd::from(ours))), theirs)
    }

    #[test]
    fn the_next_message_is_looked_for_after_a_row_of_quick_ones_and_not_after_a_pause() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        let mut expectation = Expectation::default();
        let mut buffer = [0; 16];
        // A busy machine may make any of them late.
        while expectation.quick < ROW {
            theirs.write_all(b"x").unwrap();
            assert_eq!(expectation.receive(&mut ours, &mut buffer, |_| Ok(())).unwrap(), 1);
        }
        theirs.write_all(b"xy").unwrap();
        assert_eq!(expectation.receive(&mut ours, &mut buffer, |_| Ok(())).unwrap(), 2);
        ours.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
        expectation.quick = ROW;
        let error = expectation.receive(&mut ours, &mut buffer, |_| Ok(())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(expectation.quick, 0);
        assert_eq!(expectation.receive(&mut ours, &mut buffer, |_| Ok(())).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(expectation.quick, 0);
        expectation.quick = ROW;
        drop(theirs);
        assert_eq!(expectation.receive(&mut ours, &mut buffer, |_| Ok(())).unwrap(), 0);
    }

    /// What a worker spends on looking, and how many of its messages it looks for: shares of the time and of the messages. They
    /// come `pause` after the last answer, the job takes 20 us, and a worker that sleeps is woken in `WORTH`.
    fn shares(pause: Duration) -> (f64, f64) {
        let mut budget = Budget::default();
        let begin = Instant::now();
        let mut now = begin;
        let (mut spent, mut found) = (Duration::ZERO, 0);
        for _ in 0..100_000 {
            if budget.allows(now) {
                now += pause;
                budget.settle(now, pause, WORTH);
                spent += pause;
                found += 1_u32;
            } else {
                now += pause + WORTH;
            }
            now += Duration::from_micros(20);
        }
        (spent.as_secs_f64() / (now - begin).as_secs_f64(), f64::from(found) / 100_000.0)
    }

    #[test]
    fn what_is_worth_looking_for_is_always_looked_for_and_the_rest_within_a_budget() {
        for pause in [0, 10, 40, 60] {
            assert_eq!(shares(Duration::from_micros(pause)).1, 1.0, "{pause}");
        }
        for pause in [100, 150, 200, 300] {
            let (spent, found) = shares(Duration::from_micros(pause));
            assert!(spent < 0.33, "{pause}: {spent}");
            assert!(found > 0.05, "{pause}: {found}");
            let beyond = spent * (1.0 - WORTH.as_secs_f64() / Duration::from_micros(pause).as_secs_f64());
            assert!((0.12..0.13).contains(&beyond), "{pause}: {beyond}");
        }
    }

    /// How many messages in a row, as late as any that come soon, are looked for from now on.
    fn burst(budget: &mut Budget, now: &mut Instant) -> u32 {
        let mut found = 0;
        while budget.allows(*now) {
            *now += SOON;
            budget.settle(*now, SOON, WORTH);
            found += 1;
        }
        found
    }

    #[test]
    fn a_burst_is_looked_for_until_the_allowance_is_spent_and_what_was_saved_before_is_no_stock() {
        let mut budget = Budget::default();
        let mut now = Instant::now();
        let first = burst(&mut budget, &mut now);
        assert!((10..40).contains(&first), "{first}");
        now += Duration::from_secs(3600);
        assert_eq!(burst(&mut budget, &mut now), first);
        for _ in 0..100_000 {
            now += Duration::from_millis(36);
            budget.settle(now, Duration::ZERO, WORTH);
        }
        assert!(burst(&mut budget, &mut now).abs_diff(first) <= 1);
    }

    #[test]
    fn looks_in_vain_are_owed_those_that_find_something_pay_back_and_none_begins_with_too_much_owed() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        let mut buffer = [0; 16];
        let mut expectation = Expectation { quick: ROW, pays: Some(true), ..Expectation::default() };
        let before = Instant::now();
        let error = expectation.receive(&mut ours, &mut buffer, |_| Ok(())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        let owed_until = expectation.budget.clear_at.unwrap();
        // On a busy machine a look costs less: others have the processor meanwhile.
        assert!(owed_until > before + LOOKED_FOR);
        assert!(owed_until <= Instant::now() + (LOOKED_FOR + TURN) * PAID_BACK_IN);

        let owed_until = Instant::now() + ALLOWANCE;
        expectation.budget.clear_at = Some(owed_until);
        expectation.quick = ROW;
        theirs.write_all(b"x").unwrap();
        assert_eq!(expectation.receive(&mut ours, &mut buffer, |_| Ok(())).unwrap(), 1);
        assert!(expectation.budget.clear_at.unwrap() < owed_until);

        let too_much = Instant::now() + ALLOWANCE + Duration::from_secs(3600);
        expectation.budget.clear_at = Some(too_much);
        theirs.write_all(b"x").unwrap();
        assert_eq!(expectation.receive(&mut ours, &mut buffer, |_| Ok(())).unwrap(), 1);
        assert_eq!(expectation.budget.clear_at, Some(too_much), "looked for it");
    }

    #[test]
    fn a_late_message_now_and_then_does_not_end_the_looking_and_a_row_of_late_ones_does() {
        let mut expectation = Expectation::default();
        for _ in 0..100 {
            for _ in 0..ROW {
                expectation.note(SOON);
            }
            expectation.note(LOOKED_FOR);
        }
        assert_eq!(expectation.quick, 0, "every fifth is too many: what they gain the late one takes");
        for _ in 0..100 {
            expectation.note(SOON);
        }
        for _ in 1..LATE {
            expectation.note(LOOKED_FOR);
            assert!(expectation.quick >= ROW);
        }
        expectation.note(LOOKED_FOR);
        assert_eq!(expectation.quick, 0);
        expectation.note(LOOKED_FOR);
        assert_eq!(expectation.quick, 0);
    }

    /// Bytes that are nowhere the same as at another place near by.
    fn pattern(length: usize, seed: usize) -> Vec<u8> {
        (0..length).map(|index| u8::try_from((index * 31 + index / 4096 * 7 + seed) % 251).unwrap()).collect()
    }

    fn sent(payload: &Pieces, mut connection: Connection<Socket>, mut other_end: UnixStream) -> Vec<u8> {
        let reader = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            other_end.read_to_end(&mut bytes).unwrap();
            bytes
        });
        connection.send(Message::Result(Vec::new(), None), 7, Some(payload)).unwrap();
        drop(connection);
        reader.join().unwrap()
    }

    #[test]
    fn large_segments_arrive_as_they_are_beside_small_ones_as_pages_and_as_copies() {
        for refused in [false, true] {
            let lengths = [100, 20_000_001, 0, 5, PAGES_FROM, 9_999_999, 1, PAGES_FROM - 1, 3_000_000];
            let payload = Pieces(lengths.iter().enumerate().map(|(seed, length)| pattern(*length, seed)).collect());
            let (mut connection, other_end) = pair();
            assert!(connection.stream.pages.copied.is_some_and(|copied| copied < 20_000_000));
            if refused {
                connection.stream.pages.copied = None;
            }
            let bytes = sent(&payload, connection, other_end);
            assert!(bytes.ends_with(&payload.0.concat()), "refused: {refused}");
        }
    }

    #[test]
    fn when_a_frame_has_been_sent_its_memory_may_be_written_to() {
        let payload = Pieces(vec![pattern(30_000_000, 0)]);
        let (mut connection, mut other_end) = pair();
        let expected = payload.0.concat();
        let (written_to, may_go_on) = std::sync::mpsc::channel::<()>();
        let reader = std::thread::spawn(move || {
            // As far as the sender needs, and the rest when its memory holds something else.
            let unread = 2 * os::send_buffer_size(other_end.as_fd()).unwrap();
            let mut bytes = vec![0; 30_000_000 - unread];
            other_end.read_exact(&mut bytes).unwrap();
            other_end.set_nonblocking(true).unwrap();
            while may_go_on.try_recv().is_err() {
                let mut some = [0; 4096];
                match other_end.read(&mut some) {
                    Ok(count) => bytes.extend(&some[..count]),
                    Err(_) => std::thread::yield_now(),
                }
                // It is the sender that has to be the faster one now.
                std::thread::sleep(Duration::from_micros(200));
            }
            other_end.set_nonblocking(false).unwrap();
            other_end.read_to_end(&mut bytes).unwrap();
            bytes
        });
        connection.send(Message::Result(Vec::new(), None), 7, Some(&payload)).unwrap();
        let Pieces(mut pieces) = payload;
        pieces[0].fill(0xff);
        written_to.send(()).unwrap();
        drop(connection);
        assert!(reader.join().unwrap().ends_with(&expected));
    }

    #[test]
    fn another_end_that_goes_away_in_the_middle_is_a_closed_one() {
        let payload = Pieces(vec![pattern(30_000_000, 0)]);
        let (mut connection, mut other_end) = pair();
        let reader = std::thread::spawn(move || {
            let mut some = vec![0; 3_000_000];
            other_end.read_exact(&mut some).unwrap();
        });
        let outcome = connection.send(Message::Result(Vec::new(), None), 7, Some(&payload));
        reader.join().unwrap();
        assert!(matches!(outcome, Err(SendError::Closed)), "{outcome:?}");
    }
}

//! The line of a running job to its parent: requests and their answers.
//!
//! Rules:
//! * While a job runs, the line has the receiving half of the connection. Otherwise the session has
//!   it, and a thread that a job has left behind gets nothing.
//! * One thread reads at a time. It waits without the lock, so the session can always take the
//!   receiving half back.
//! * Frames that were sent ahead are set aside, whole and in order. The session takes them before
//!   it reads again.
//! * The call's number becomes 0 before the session sends the answer. A writer compares it under
//!   the write lock, so no frame of a job follows its answer.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::error::{ReceiveError, SendError};
use crate::os;
use crate::os::descriptors::Identity;
use crate::os::memory::SharedWords;
use crate::os::socket::Carried;
use crate::protocol::frame::{self, Header, Progress, WireError};
use crate::protocol::front::{FRONT_WORDS, JOBS, RUNNING};
use crate::protocol::message::Message;
use crate::protocol::segments::SegmentType;
use crate::transport::input::Input;
use crate::transport::writer::LineWriter;
use crate::transport::{Allocator, Segment, SharedBytes, Stream};

/// A frame for the session, received while a job waited.
#[derive(Debug)]
pub struct SetAside<B> {
    pub header: Header,
    pub segments: Vec<Segment<B>>,
}

/// A REPLY or a CREDIT of the running call.
#[derive(Debug)]
pub struct ForJob<B> {
    pub id: u64,
    pub message: Message,
    pub segments: Vec<Segment<B>>,
    pub carried: Carried,
}

/// The outcome of a look at the socket.
#[derive(Debug)]
pub enum Received<B> {
    Frame(Box<ForJob<B>>),
    /// Nothing is there yet. The socket can be waited for, if it is one.
    Nothing(Option<Arc<UnixStream>>),
    /// The call has ended.
    Over,
    /// The parent has closed its end.
    End,
}

/// The line. There is one in a process; it is between two jobs until a call begins.
#[derive(Debug)]
pub struct Line<S, B> {
    /// The ID of the running call; 0 means none.
    call: AtomicU64,
    /// The call that a thread reads for; 0 means none.
    reader: AtomicU64,
    /// The process that the line belongs to.
    pid: AtomicU32,
    record: Mutex<Option<(RawFd, Option<Identity>)>>,
    /// The front of the record. Other programs read there what this worker does.
    front: SharedWords<FRONT_WORDS>,
    loan: Mutex<Loan<S, B>>,
    writer: Mutex<Option<LineWriter>>,
}

#[derive(Debug)]
struct Loan<S, B> {
    input: Option<Box<Input<S>>>,
    aside: VecDeque<SetAside<B>>,
}

/// A thread's turn to read.
#[derive(Debug)]
pub struct Turn<'a> {
    reader: &'a AtomicU64,
    call: u64,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let _ = self.reader.compare_exchange(self.call, 0, Ordering::Relaxed, Ordering::Relaxed);
    }
}

impl<S, B> Line<S, B> {
    pub const fn new() -> Self {
        Self {
            call: AtomicU64::new(0),
            reader: AtomicU64::new(0),
            pid: AtomicU32::new(0),
            record: Mutex::new(None),
            front: SharedWords::new(),
            loan: Mutex::new(Loan { input: None, aside: VecDeque::new() }),
            writer: Mutex::new(None),
        }
    }

    /// Belong to this process, and write with `writer` from now on.
    pub fn connect(&self, writer: LineWriter, record: RawFd) {
        self.pid.store(std::process::id(), Ordering::Relaxed);
        *lock(&self.record) = Some((record, os::descriptors::identity_of_number(record)));
        *lock(&self.writer) = Some(writer);
        self.front.map(record);
    }

    /// The ID of the running call; 0 between two jobs.
    pub fn call(&self) -> u64 {
        self.call.load(Ordering::Relaxed)
    }

    pub fn pid(&self) -> u32 {
        self.pid.load(Ordering::Relaxed)
    }

    /// The descriptor of the record; -1 if a job has closed it.
    pub fn record(&self) -> RawFd {
        let record = *lock(&self.record);
        let intact = record.filter(|(number, identity)| os::descriptors::identity_of_number(*number) == *identity);
        intact.map_or(-1, |(number, _)| number)
    }

    /// Take the receiving half for a call.
    pub(super) fn begin(&self, call: u64, input: &mut Option<Box<Input<S>>>) {
        std::mem::swap(&mut self.loan().input, input);
        self.call.store(call, Ordering::Relaxed);
        self.show(RUNNING, call);
    }

    /// Give it back, with the frames that were set aside.
    pub(super) fn end(&self, input: &mut Option<Box<Input<S>>>, aside: &mut VecDeque<SetAside<B>>) {
        self.call.store(0, Ordering::Relaxed);
        self.show(RUNNING, 0);
        let mut loan = self.loan();
        std::mem::swap(&mut loan.input, input);
        if !loan.aside.is_empty() {
            aside.append(&mut loan.aside);
        }
    }

    /// Count a job that has ended.
    pub fn count_job(&self) {
        if let Some(jobs) = self.front.get().and_then(|front| front.get(JOBS)) {
            // One thread writes it.
            jobs.store(jobs.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        }
    }

    fn show(&self, place: usize, value: u64) {
        if let Some(word) = self.front.get().and_then(|front| front.get(place)) {
            word.store(value, Ordering::Relaxed);
        }
    }

    /// Take the turn to read for a call. `None` means that another thread has it.
    pub fn take_turn(&self, call: u64) -> Option<Turn<'_>> {
        // The turn for an earlier call is void.
        let before = self.reader.swap(call, Ordering::Relaxed);
        (before != call).then_some(Turn { reader: &self.reader, call })
    }

    /// Write whole frames of the call, and wait until the socket has taken them. Return false
    /// without a write if the call has ended.
    pub fn write(&self, parts: &[&[u8]], call: u64) -> Result<bool, SendError> {
        self.write_if(parts, || self.call() == call)
    }

    /// Write last words, whatever runs.
    pub fn write_last(&self, message: Message) {
        let header = Header { kind: message.kind(), id: 0, lengths: Vec::new(), body: message.into_body() };
        if let Ok(bytes) = frame::encode(header) {
            let _ = self.write_if(&[&bytes], || true);
        }
    }

    fn write_if(&self, parts: &[&[u8]], wanted: impl FnOnce() -> bool) -> Result<bool, SendError> {
        let mut writer = lock(&self.writer);
        match writer.as_mut() {
            Some(writer) => writer.write(parts, wanted),
            None => Err(SendError::Closed),
        }
    }

    fn loan(&self) -> MutexGuard<'_, Loan<S, B>> {
        lock(&self.loan)
    }
}

/// A panic ends the process, so no lock is poisoned.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<S, B> Default for Line<S, B> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: Stream, B> Line<S, B> {
    /// Keep descriptors that come with answers from now on. Nobody receives meanwhile.
    pub fn open_carried(&self) {
        if let Some(input) = &mut self.loan().input {
            input.stream.open_carried();
        }
    }

    /// Receive the next frame for the running call, without a wait before its first byte. `since`
    /// is the beginning of the wait.
    pub fn receive<A: Allocator<Buffer = B>>(
        &self,
        call: u64,
        allocator: &mut A,
        since: Instant,
        mut spins: bool,
    ) -> Result<Received<B>, ReceiveError> {
        let mut loan = self.loan();
        let Loan { input, aside } = &mut *loan;
        let Some(input) = input.as_deref_mut().filter(|_| self.call() == call && call != 0) else {
            return Ok(Received::Over);
        };
        loop {
            let length = match frame::parse(input.unread())? {
                Progress::Need(length) => length,
                Progress::Ready { header, consumed } => {
                    input.consume(consumed);
                    if let Some(frame) = sort(input, aside, header, call, allocator)? {
                        return Ok(Received::Frame(Box::new(frame)));
                    }
                    input.compact();
                    continue;
                }
            };
            let begun = input.has_begun();
            match input.receive_answer(length, since, std::mem::take(&mut spins)) {
                Ok(0) if begun => return Err(WireError::TornFrame.into()),
                Ok(0) => return Ok(Received::End),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset && begun => return Err(WireError::TornFrame.into()),
                // The parent closed its end with unread bytes in it.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(Received::End),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                    return Ok(Received::Nothing(input.stream.socket()));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Receive the rest of a frame. Return it if it is for the running call.
fn sort<S: Stream, A: Allocator>(
    input: &mut Input<S>,
    aside: &mut VecDeque<SetAside<A::Buffer>>,
    header: Header,
    call: u64,
    allocator: &mut A,
) -> Result<Option<ForJob<A::Buffer>>, ReceiveError> {
    let message = Message::from_header(&header)?;
    let types: &[SegmentType] = match &message {
        Message::Call { types, .. } => types,
        Message::Reply(reply) if header.id <= call => &reply.types,
        Message::Credit(_) if header.id <= call => &[],
        Message::Settings { .. } | Message::Retire => &[],
        _ => return Err(ReceiveError::Unexpected(header.kind)),
    };
    // Before the segments: these may be followed by a frame with descriptors of its own.
    let carried = match &message {
        Message::Reply(reply) if reply.descriptors > 0 => input.stream.take_carried(),
        _ => Carried::default(),
    };
    let segments = input.receive_segments(&header.lengths, types, allocator)?;
    match message {
        // It crossed with the answer of its call.
        Message::Reply(_) | Message::Credit(_) if header.id < call => Ok(None),
        Message::Reply(_) | Message::Credit(_) => Ok(Some(ForJob { id: header.id, message, segments, carried })),
        _ => {
            // The receive buffer goes on to the next frames.
            let own = |segment| match segment {
                Segment::Shared(bytes) => Segment::Shared(SharedBytes::from(&*bytes)),
                owned => owned,
            };
            aside.push_back(SetAside { header, segments: segments.into_iter().map(own).collect() });
            Ok(None)
        }
    }
}

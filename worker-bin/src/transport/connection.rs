//! Whole frames ↔ a stream: interruptions, timeouts, partial reads and writes. The session knows
//! what frames mean.
//!
//! A small call is one `recv`, and its answer one `writev`. While a job runs, its line has the
//! receiving half ([`Connection::lend`]).

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::error::{ReceiveError, SendError};
use crate::protocol::frame::{self, Header, Progress, WireError};
use crate::protocol::message::Message;
use crate::protocol::segments::SegmentType;
use crate::transport::input::{Input, retry_in_frame};
use crate::transport::line::{Line, SetAside};
use crate::transport::reports::ReportSender;
use crate::transport::writer::write_all;
use crate::transport::{Allocator, Payload, Segment, Stream};

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
    /// `None` only while a job has it on loan.
    input: Option<Box<Input<S>>>,
    /// Locked while a frame is written: the native thread writes too.
    writing: Arc<Mutex<()>>,
    /// Frames that are sent with the next one.
    outgoing: Vec<u8>,
}

impl<S: Stream> Connection<S> {
    pub fn new(stream: S) -> Self {
        Self { input: Some(Box::new(Input::new(stream))), writing: Arc::default(), outgoing: Vec::new() }
    }

    /// Create a connection that shares its write lock with `reports`.
    pub fn with_reports(stream: S, reports: &ReportSender) -> Self {
        Self { writing: Arc::clone(&reports.writing), ..Self::new(stream) }
    }

    /// Take over the buffer of another connection, and return that one's stream.
    ///
    /// A freshly forked process has the pages of the buffer already.
    pub fn reuse_memory_of(&mut self, other: Self) -> Option<S> {
        Some(self.input.as_mut()?.reuse_memory_of(*other.input?))
    }

    /// Give the receiving half to the line of a call.
    pub fn lend<B>(&mut self, line: &Line<S, B>, call: u64) {
        line.begin(call, &mut self.input);
    }

    /// End the call's line, and take the receiving half back, with the frames that were set aside.
    pub fn take_back<B>(&mut self, line: &Line<S, B>, aside: &mut VecDeque<SetAside<B>>) {
        line.end(&mut self.input, aside);
    }

    fn input(&mut self) -> io::Result<&mut Input<S>> {
        self.input.as_deref_mut().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    pub fn set_receive_timeout(&mut self, timeout: Option<Duration>) -> Result<(), ReceiveError> {
        Ok(self.input()?.stream.set_receive_timeout(timeout)?)
    }

    /// Set the function that runs signal handlers while nothing arrives.
    pub fn run_handlers_with(&mut self, run_handlers: Option<fn()>) {
        if let Some(input) = &mut self.input {
            input.stream.run_handlers_with(run_handlers);
        }
    }

    /// Receive descriptors with frames from now on. `parent` is the process ID of their sender.
    pub fn expect_descriptors(&mut self, parent: Option<u32>) {
        if let Some(input) = &mut self.input {
            input.stream.expect_descriptors(parent);
        }
    }

    /// The descriptors that came with the last header; see [`Stream::take_descriptors`].
    pub fn take_descriptors(&mut self, count: usize) -> Option<Vec<OwnedFd>> {
        self.input.as_mut()?.stream.take_descriptors(count)
    }

    /// Close the descriptors of an answer that came too late.
    pub fn drop_carried(&mut self) {
        if let Some(input) = &mut self.input {
            drop(input.stream.take_carried());
        }
    }

    /// Stop receiving. If this fails, the other side notices when the process exits.
    pub fn stop_receiving(&mut self) {
        let _ = self.input().and_then(|input| input.stream.stop_receiving());
    }

    /// True if something arrives within the timeout.
    pub fn is_readable_within(&mut self, timeout: Duration) -> bool {
        self.input.as_mut().is_none_or(|input| input.has_begun() || input.stream.wait_readable(timeout))
    }

    /// Wait for a frame and read its header. The timeout covers the first byte only.
    pub fn next_header(&mut self) -> Result<Next, ReceiveError> {
        self.input()?.compact();
        loop {
            let input = self.input()?;
            match frame::parse(input.unread())? {
                Progress::Ready { header, consumed } => {
                    input.consume(consumed);
                    return Ok(Next::Header(header));
                }
                Progress::Need(length) => {
                    // Pending frames go out before a wait.
                    self.flush().or_else(ignore_closed)?;
                    let input = self.input()?;
                    let begun = input.has_begun();
                    match input.receive(length) {
                        Ok(0) if begun => return Err(WireError::TornFrame.into()),
                        Ok(0) => return Ok(Next::End),
                        Ok(_) => {}
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

    /// Read the segments of the last header. Drop the first one soon; see
    /// [`Input::receive_segments`].
    pub fn receive_segments<A: Allocator>(
        &mut self,
        lengths: &[u64],
        types: &[SegmentType],
        allocator: &mut A,
    ) -> Result<Vec<Segment<A::Buffer>>, ReceiveError> {
        self.input()?.receive_segments(lengths, types, allocator)
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
        if self.outgoing.is_empty() {
            return Ok(());
        }
        let outgoing = std::mem::take(&mut self.outgoing);
        self.write(&mut [IoSlice::new(&outgoing)])
    }

    fn write(&mut self, parts: &mut [IoSlice<'_>]) -> Result<(), SendError> {
        let mut rest = parts;
        IoSlice::advance_slices(&mut rest, 0);
        if rest.is_empty() {
            return Ok(());
        }
        let Some(input) = &mut self.input else { return Err(SendError::System(io::ErrorKind::NotConnected.into())) };
        // The lock guards no data, and a panic ends the process.
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        write_all(rest, |parts| input.stream.send(parts))
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

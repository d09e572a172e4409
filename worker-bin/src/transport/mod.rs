//! Whole frames ↔ the parent's socket. This file has the traits that the parts share.

#![forbid(unsafe_code)]

pub mod buffer_pool;
mod carried;
pub mod connection;
mod input;
pub mod line;
pub mod reports;
pub mod socket;
mod spin;
pub mod writer;
#[cfg(target_os = "linux")]
mod zero_copy;

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::ops::{Deref, Range};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::os::socket::Carried;
use crate::protocol::segments::SegmentType;

/// The bytes of a socket. Tests replace it.
pub trait Stream {
    /// Receive bytes. 0 means closed; `WouldBlock` means timeout.
    fn receive(&mut self, into: &mut [u8]) -> io::Result<usize>;
    /// Receive into uninitialised memory.
    fn receive_new(&mut self, into: &mut [MaybeUninit<u8>]) -> io::Result<usize>;
    /// Receive what is there already, for a job that has waited for an answer since then.
    /// `WouldBlock` if nothing is there. `spins` lets it look for a moment if answers came soon of
    /// late.
    fn receive_answer(&mut self, into: &mut [u8], since: Instant, spins: bool) -> io::Result<usize>;
    /// The socket, for a wait without the stream. `None` means that a wait is over at once.
    fn socket(&self) -> Option<Arc<UnixStream>> {
        None
    }
    fn send(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize>;
    /// Wait for input. Return false after the timeout.
    fn wait_readable(&mut self, timeout: Duration) -> bool;
    fn set_receive_timeout(&mut self, timeout: Option<Duration>) -> io::Result<()>;
    /// Set the function to call before a long wait, which must not miss a signal. `None` means
    /// none.
    fn run_handlers_with(&mut self, _run_handlers: Option<fn()>) {}
    /// Make the other side's writes fail from now on, also pending ones. It can still read.
    fn stop_receiving(&mut self) -> io::Result<()>;
    /// Keep descriptors that arrive from now on, and watch the sending parent with this process ID.
    /// `None` ends both.
    fn expect_descriptors(&mut self, _parent: Option<u32>) {}
    /// Return the oldest `count` descriptors, or `None` if there are fewer.
    fn take_descriptors(&mut self, count: usize) -> Option<Vec<OwnedFd>> {
        (count == 0).then(Vec::new)
    }
    /// Keep descriptors that come with answers to a job from now on.
    fn open_carried(&mut self) {}
    /// Take the descriptors of the oldest answer that came with some.
    fn take_carried(&mut self) -> Carried {
        Carried::default()
    }
    /// Close those that no received frame has named. All received frames have been read.
    fn close_surplus(&mut self) {}
}

/// Allocates memory for segments.
pub trait Allocator {
    type Buffer: Storage;
    /// Return `None` if out of memory.
    fn allocate(&mut self, length: usize, kind: SegmentType) -> Option<Self::Buffer>;
}

pub trait Storage {
    fn memory(&mut self) -> &mut [MaybeUninit<u8>];
}

/// Segments to send after a header.
pub trait Payload {
    /// The pieces of each segment.
    fn segments(&self) -> Vec<Vec<&[u8]>>;
    /// The type of each segment. Empty means that all are memory.
    fn types(&self) -> Vec<SegmentType>;
}

/// A received segment.
#[derive(Debug)]
pub enum Segment<B> {
    /// In a receive buffer.
    Shared(SharedBytes),
    Owned(B),
}

/// A part of a receive buffer, which is not written to while this lives.
#[derive(Debug, Clone)]
pub struct SharedBytes {
    buffer: Arc<Vec<u8>>,
    range: Range<usize>,
}

impl Deref for SharedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.buffer.get(self.range.clone()).unwrap_or_default()
    }
}

impl From<&[u8]> for SharedBytes {
    /// Copy bytes that are no part of a receive buffer.
    fn from(bytes: &[u8]) -> Self {
        Self { buffer: Arc::new(bytes.to_vec()), range: 0..bytes.len() }
    }
}

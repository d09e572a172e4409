//! Whole frames ↔ the parent's socket. What the parts have in common: the stream, the allocator, payloads and segments.

#![forbid(unsafe_code)]

pub mod buffer_pool;
pub mod connection;
pub mod reports;
pub mod socket;
mod spin;
#[cfg(target_os = "linux")]
mod zero_copy;

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::protocol::segments::SegmentType;

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

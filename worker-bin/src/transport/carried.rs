//! Descriptors that came with answers to a job, in the order of their frames.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;

use crate::os;
use crate::os::socket::Carried;

/// The queue. `None` until a job asks for a descriptor: reads have no room for any until then, so
/// the kernel closes those that arrive, and other workers pay nothing.
#[derive(Debug, Default)]
pub(super) struct CarriedQueue(Option<VecDeque<Carried>>);

impl CarriedQueue {
    /// Keep descriptors that arrive from now on.
    pub(super) fn open(&mut self) {
        self.0.get_or_insert_default();
    }

    /// Receive bytes. `waits` is false to return `WouldBlock` if nothing is there.
    #[inline]
    pub(super) fn receive(&mut self, stream: &UnixStream, into: &mut [u8], waits: bool) -> io::Result<usize> {
        match &mut self.0 {
            None if waits => io::Read::read(&mut &*stream, into),
            None => os::socket::receive_at_once(stream.as_fd(), into),
            Some(queue) => receive_with(queue, stream, into, waits),
        }
    }

    /// Take the descriptors of the oldest frame that came with some.
    pub(super) fn take(&mut self) -> Carried {
        self.0.as_mut().and_then(VecDeque::pop_front).unwrap_or_default()
    }

    /// Close the descriptors that no received frame has named. Call it between two frames.
    #[inline]
    pub(super) fn close_surplus(&mut self) {
        if let Some(queue) = &mut self.0 {
            queue.clear();
        }
    }
}

#[cold]
fn receive_with(queue: &mut VecDeque<Carried>, stream: &UnixStream, into: &mut [u8], waits: bool) -> io::Result<usize> {
    let (count, carried) = os::socket::receive_with_descriptors(stream.as_fd(), into, waits)?;
    if !carried.is_empty() {
        queue.push_back(carried);
    }
    Ok(count)
}

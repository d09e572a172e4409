//! Reports: how the native thread writes to the socket.

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, RawFd};
use std::sync::{Arc, Mutex};

use crate::os;
use crate::protocol::frame::{self, Header};
use crate::protocol::message::Message;

/// Sends small frames from the native thread, whole or not at all. It never waits: a waiting thread
/// could not watch the parent.
#[derive(Debug, Clone)]
pub struct ReportSender {
    /// The socket's number, both in the main thread's descriptor table and in the native thread's
    /// own.
    descriptor: RawFd,
    identity: Option<os::descriptors::Identity>,
    pub(super) writing: Arc<Mutex<()>>,
}

impl ReportSender {
    pub fn new(socket: BorrowedFd<'_>) -> Self {
        Self { descriptor: socket.as_raw_fd(), identity: os::descriptors::identity_of(socket), writing: Arc::default() }
    }

    /// True if the descriptor is still the socket. A job may have closed it and opened a file under
    /// the same number.
    pub fn is_intact(&self) -> bool {
        self.identity.is_some() && os::descriptors::identity_of_number(self.descriptor) == self.identity
    }

    /// Close the number in the calling thread's own table unless it is the socket: do not keep a
    /// job's file open.
    pub fn close_unless_intact(&self) {
        if !self.is_intact() {
            os::descriptors::close_in_own_table(self.descriptor);
        }
    }

    /// Send a message that belongs to no call. Return false without sending it if another frame is
    /// being written, the socket is full, or `wanted` returns false once the lock is held.
    pub fn send_at_once(&self, message: Message, wanted: impl FnOnce() -> bool) -> bool {
        let header = Header { kind: message.kind(), id: 0, lengths: Vec::new(), body: message.into_body() };
        let Ok(bytes) = frame::encode(header) else { return false };
        let Ok(_writing) = self.writing.try_lock() else { return false };
        if !wanted() || !self.is_intact() {
            return false;
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            match os::socket::send_at_once(self.descriptor, rest) {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A Unix socket takes a small message as a whole (net/unix/af_unix.c,
                // unix_stream_sendmsg). Nevertheless, a frame that was begun must be completed.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && rest.len() < bytes.len() => std::thread::yield_now(),
                Err(_) => return false,
            }
        }
        true
    }
}

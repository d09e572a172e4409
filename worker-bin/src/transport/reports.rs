//! The native thread's way to the socket.

#![forbid(unsafe_code)]

use std::io::{self};
use std::os::fd::{AsRawFd as _, BorrowedFd, RawFd};
use std::sync::{Arc, Mutex};

use crate::os;
use crate::protocol::frame::{self, Header};
use crate::protocol::message::Message;

/// The native thread's way to the socket: small frames, whole or not at all, and never one that waits. Whoever waited here
/// could not watch the parent meanwhile.
#[derive(Debug, Clone)]
pub struct Outlet {
    /// The number that the socket has in the main thread's table of descriptors and in the native thread's own.
    descriptor: RawFd,
    identity: Option<os::descriptors::Identity>,
    pub(super) writing: Arc<Mutex<()>>,
}

impl Outlet {
    pub fn new(socket: BorrowedFd<'_>) -> Self {
        Self { descriptor: socket.as_raw_fd(), identity: os::descriptors::identity_of(socket), writing: Arc::default() }
    }

    /// Whether the descriptor is still the socket's. A job that closes every descriptor closes this one too, and may open files
    /// of its own under the number.
    pub fn is_there(&self) -> bool {
        self.identity.is_some() && os::descriptors::identity_of_number(self.descriptor) == self.identity
    }

    /// In a table of descriptors that is the calling thread's own: does not keep open what a job has there instead.
    pub fn leave_unless_there(&self) {
        if !self.is_there() {
            os::descriptors::close_in_own_table(self.descriptor);
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
            match os::socket::send_at_once(self.descriptor, rest) {
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

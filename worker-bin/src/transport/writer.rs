//! Writes to the socket: whole frames, from the session and from the threads of a job.

#![forbid(unsafe_code)]

use std::io::{self, IoSlice, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::SendError;
use crate::os;
use crate::transport::reports::ReportSender;
#[cfg(target_os = "linux")]
use crate::transport::zero_copy::ZeroCopySender;

/// The sending half of a socket.
///
/// Some programs close every descriptor above 2 and open their own files. A job that does so closes
/// the socket too. Afterwards its number may belong to a user's file, which must not be written to.
#[derive(Debug)]
pub(super) struct Outlet {
    stream: Arc<UnixStream>,
    identity: Option<os::descriptors::Identity>,
    #[cfg(target_os = "linux")]
    pub(super) zero_copy: ZeroCopySender,
}

impl Outlet {
    pub(super) fn of(stream: &Arc<UnixStream>) -> Self {
        Self {
            #[cfg(target_os = "linux")]
            zero_copy: ZeroCopySender::of(stream.as_fd()),
            stream: Arc::clone(stream),
            identity: os::descriptors::identity_of(stream.as_fd()),
        }
    }

    /// True if the descriptor is still the socket.
    pub(super) fn is_intact(&self) -> bool {
        os::descriptors::identity_of(self.stream.as_fd()) == self.identity
    }

    /// Send what the socket takes at once, or waits for. `NotConnected` means that a job has closed
    /// the descriptor.
    pub(super) fn send(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        if !self.is_intact() {
            return Err(io::ErrorKind::NotConnected.into());
        }
        #[cfg(target_os = "linux")]
        let parts = match self.zero_copy.send(self.stream.as_fd(), parts) {
            Some(sent) => return sent,
            None => self.zero_copy.before_next(parts),
        };
        (&*self.stream).write_vectored(parts)
    }
}

/// Writes the frames of a job, beside the session's and the native thread's.
#[derive(Debug)]
pub struct LineWriter {
    outlet: Outlet,
    writing: Arc<Mutex<()>>,
}

impl LineWriter {
    /// Share the write lock with `reports`.
    pub(super) fn new(stream: &Arc<UnixStream>, reports: &ReportSender) -> Self {
        Self { outlet: Outlet::of(stream), writing: Arc::clone(&reports.writing) }
    }

    /// Write whole frames. Return false without a write if `wanted` returns false once the lock is
    /// held.
    pub(super) fn write(&mut self, parts: &[&[u8]], wanted: impl FnOnce() -> bool) -> Result<bool, SendError> {
        let mut parts: Vec<IoSlice<'_>> = parts.iter().filter(|part| !part.is_empty()).map(|part| IoSlice::new(part)).collect();
        // The lock guards no data, and a panic ends the process.
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if !wanted() {
            return Ok(false);
        }
        write_all(&mut parts, |parts| self.outlet.send(parts)).map(|()| true)
    }
}

/// Write all parts. `send` takes what the socket takes at once.
pub(super) fn write_all(
    mut rest: &mut [IoSlice<'_>],
    mut send: impl FnMut(&[IoSlice<'_>]) -> io::Result<usize>,
) -> Result<(), SendError> {
    while !rest.is_empty() {
        // IOV_MAX is 1,024. std cuts the list too, but does not promise it.
        match send(rest.get(..rest.len().min(1024)).unwrap_or_default()) {
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

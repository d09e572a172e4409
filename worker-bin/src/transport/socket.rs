//! The worker's end of the real socket.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io::{self, IoSlice, Write as _};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::os;
use crate::transport::Stream;
use crate::transport::spin::Expectation;
use crate::transport::zero_copy::Pages;

/// The worker's end of the real socket.
///
/// Some programs close every descriptor above 2 and open files of their own. In a job that closes this one too, and its
/// number may be that of a user's file or connection by the time of the answer, which must not be written into it.
#[derive(Debug)]
pub struct Socket {
    stream: UnixStream,
    identity: Option<os::descriptors::Identity>,
    lost: bool,
    /// `None`: no descriptors are to come; the system would drop them.
    requests: Option<Requests>,
    #[cfg(target_os = "linux")]
    pub(super) pages: Pages,
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
    parent: os::process::ParentWatch,
}

impl From<OwnedFd> for Socket {
    fn from(descriptor: OwnedFd) -> Self {
        let identity = os::descriptors::identity_of(descriptor.as_fd());
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
                    Some(run_handlers) if os::socket::wait_readable_or_signal(stream.as_fd(), timeout, run_handlers)? => Ok(()),
                    Some(_) => Err(io::ErrorKind::WouldBlock.into()),
                })
            }
            Some(requests) if requests.parent.wait_for_input(self.stream.as_fd())? => {
                os::socket::receive_with_descriptors(self.stream.as_fd(), into, &mut requests.descriptors)
            }
            // To the session this is the end of the stream, which it would be without the copies.
            Some(_) => Ok(0),
        }
    }

    fn receive_new(&mut self, into: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
        os::socket::receive(self.stream.as_fd(), into)
    }

    fn send(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        if os::descriptors::identity_of(self.stream.as_fd()) != self.identity {
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
        os::socket::wait_readable(self.stream.as_fd(), timeout)
    }

    fn set_receive_timeout(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.timeout = timeout;
        os::socket::set_receive_timeout(self.stream.as_fd(), timeout)
    }

    fn run_handlers_with(&mut self, run_handlers: Option<fn()>) {
        self.run_handlers = run_handlers;
    }

    fn stop_receiving(&mut self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Read)
    }

    fn expect_descriptors(&mut self, parent: Option<u32>) {
        self.requests = parent.map(|pid| Requests { descriptors: VecDeque::new(), parent: os::process::ParentWatch::of(pid) });
    }

    fn take_descriptors(&mut self, count: usize) -> Option<Vec<OwnedFd>> {
        let kept = self.requests.as_mut().map(|requests| &mut requests.descriptors);
        match kept {
            Some(kept) => (kept.len() >= count).then(|| kept.drain(..count).collect()),
            None => (count == 0).then(Vec::new),
        }
    }
}

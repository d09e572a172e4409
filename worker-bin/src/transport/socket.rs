//! The stream that is a real socket.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io::{self, IoSlice, Write as _};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::os;
use crate::os::socket::Carried;
use crate::transport::Stream;
use crate::transport::carried::CarriedQueue;
use crate::transport::reports::ReportSender;
use crate::transport::spin::AdaptiveSpin;
use crate::transport::writer::{LineWriter, Outlet};

/// The worker's end of the socket.
#[derive(Debug)]
pub struct Socket {
    stream: Arc<UnixStream>,
    pub(super) outlet: Outlet,
    lost: bool,
    /// `None` means that no descriptors are expected; the system drops them.
    descriptor_queue: Option<DescriptorQueue>,
    carried: CarriedQueue,
    /// For calls.
    spin: AdaptiveSpin,
    /// For the answers to a job's requests.
    answer_spin: AdaptiveSpin,
    /// The idle timeout, for waits other than `recv`.
    timeout: Option<Duration>,
    run_handlers: Option<fn()>,
}

/// State for receiving descriptors: in a template, and in a forked worker before HELLO.
#[derive(Debug)]
struct DescriptorQueue {
    /// Descriptors received so far.
    descriptors: VecDeque<OwnedFd>,
    /// There is no native thread yet, and a process that the parent forked may keep a copy of the
    /// parent's end open.
    parent: os::process::ParentWatch,
}

impl From<OwnedFd> for Socket {
    fn from(descriptor: OwnedFd) -> Self {
        let stream = Arc::new(UnixStream::from(descriptor));
        Self {
            outlet: Outlet::of(&stream),
            stream,
            lost: false,
            descriptor_queue: None,
            carried: CarriedQueue::default(),
            spin: AdaptiveSpin::default(),
            answer_spin: AdaptiveSpin::default(),
            timeout: None,
            run_handlers: None,
        }
    }
}

impl Socket {
    /// Drop everything but the descriptor: in a forked worker the number belongs to its own socket.
    pub fn leave_open(self) {
        std::mem::forget(self.stream);
    }

    /// A writer for jobs, which shares its write lock with `reports`.
    pub fn line_writer(&self, reports: &ReportSender) -> LineWriter {
        LineWriter::new(&self.stream, reports)
    }
}

impl Stream for Socket {
    fn receive(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match &mut self.descriptor_queue {
            None => {
                let (run_handlers, timeout) = (self.run_handlers, self.timeout);
                self.spin.spin_then_receive(&self.stream, &mut self.carried, into, |stream| match run_handlers {
                    // `recv` waits itself.
                    None => Ok(()),
                    Some(run_handlers) if os::socket::wait_readable_or_signal(stream.as_fd(), timeout, run_handlers)? => Ok(()),
                    Some(_) => Err(io::ErrorKind::WouldBlock.into()),
                })
            }
            Some(descriptor_queue) if descriptor_queue.parent.wait_for_input(self.stream.as_fd())? => {
                let (count, carried) = os::socket::receive_with_descriptors(self.stream.as_fd(), into, true)?;
                if carried.is_truncated {
                    return Err(io::Error::other("there is no room for more descriptors in this process"));
                }
                descriptor_queue.descriptors.extend(carried.descriptors);
                Ok(count)
            }
            // The parent is dead. The session handles that as an end of the stream.
            Some(_) => Ok(0),
        }
    }

    fn receive_new(&mut self, into: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
        os::socket::receive(self.stream.as_fd(), into)
    }

    fn receive_answer(&mut self, into: &mut [u8], since: Instant, spins: bool) -> io::Result<usize> {
        if !self.outlet.is_intact() {
            return Err(io::ErrorKind::NotConnected.into());
        }
        self.answer_spin.receive_or_spin(&self.stream, &mut self.carried, into, since, spins)
    }

    fn socket(&self) -> Option<Arc<UnixStream>> {
        Some(Arc::clone(&self.stream))
    }

    fn send(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let sent = self.outlet.send(parts);
        // The parent notices that this worker exits.
        if matches!(&sent, Err(error) if error.kind() == io::ErrorKind::NotConnected) && !std::mem::replace(&mut self.lost, true)
        {
            // `eprintln!` panics if standard error cannot be written.
            let _ = writeln!(
                io::stderr(),
                "trio-offload-worker: a job has closed descriptor 3, which leads to the parent program. This worker exits"
            );
        }
        sent
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
        self.descriptor_queue =
            parent.map(|pid| DescriptorQueue { descriptors: VecDeque::new(), parent: os::process::ParentWatch::of(pid) });
    }

    fn take_descriptors(&mut self, count: usize) -> Option<Vec<OwnedFd>> {
        let kept = self.descriptor_queue.as_mut().map(|descriptor_queue| &mut descriptor_queue.descriptors);
        match kept {
            Some(kept) => (kept.len() >= count).then(|| kept.drain(..count).collect()),
            None => (count == 0).then(Vec::new),
        }
    }

    fn open_carried(&mut self) {
        self.carried.open();
    }

    fn take_carried(&mut self) -> Carried {
        self.carried.take()
    }

    fn close_surplus(&mut self) {
        self.carried.close_surplus();
    }
}

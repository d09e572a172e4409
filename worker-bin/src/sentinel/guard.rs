//! The thread that watches a template's parent while the template runs user code.

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, RawFd};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::sentinel::parent::Parent;
use crate::sentinel::thread::{STACK_SIZE, Stop, Thread};
use crate::sentinel::{EXIT_TIMEOUT, POLL_INTERVAL, end_now};
use crate::{exit, os};

/// Watch the parent while a template runs user code: during its start and its exit.
///
/// A process with a second thread cannot be forked safely, so the guard ends before the first fork.
/// From then on the template waits for FORK frames, and notices a closed socket itself.
#[derive(Debug)]
pub struct Guard {
    stop: Arc<Stop>,
    thread: Thread,
}

impl Guard {
    /// End the process when the parent dies or closes its end of the socket.
    pub fn start(socket: RawFd, parent: &'static Parent) -> io::Result<Self> {
        let stop = Arc::new(Stop::new());
        let told = Arc::clone(&stop);
        let thread = Thread::start("guard", move || {
            let is_apart = os::descriptors::unshare_descriptor_table(&[socket]);
            let handle = parent.open().filter(|_| is_apart);
            let waker = told.waker.listen().filter(|_| is_apart);
            while !told.is_demanded() {
                let timeout = (handle.is_none() || waker.is_none()).then_some(POLL_INTERVAL);
                let events = os::process::wait_for(
                    Some(socket),
                    handle.as_ref().map(AsFd::as_fd),
                    waker.as_ref().map(AsFd::as_fd),
                    // Check the parent once without waiting: it may have died before the pidfd was
                    // opened.
                    if parent.is_dead() { Some(Duration::ZERO) } else { timeout },
                );
                if events.hang_up || parent.is_dead() {
                    end_now(exit::ORPHANED);
                }
            }
            told.waker.stop_listening();
        })?;
        Ok(Self { stop, thread })
    }

    /// End the guard. The process has one thread less afterwards.
    pub fn dismiss(self) {
        self.stop.demand();
        self.thread.join();
    }
}

/// Bound the exit of a template: if the parent dies, it has [`EXIT_TIMEOUT`] to end Python.
pub fn end_with_parent(parent: &'static Parent) {
    let Ok(_held) = os::signals::SignalsHeld::all() else { return };
    let watch = move || {
        while !parent.is_dead() {
            thread::sleep(POLL_INTERVAL);
        }
        thread::sleep(EXIT_TIMEOUT);
        end_now(exit::ORPHANED);
    };
    // If this fails, the template still exits, unless something hangs.
    let _ = thread::Builder::new().name("guard".to_owned()).stack_size(STACK_SIZE).spawn(watch);
}

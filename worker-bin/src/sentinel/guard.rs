//! The guard of a template.

#![forbid(unsafe_code)]

use std::io::{self};
use std::os::fd::{AsFd, RawFd};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::sentinel::parent::Parent;
use crate::sentinel::thread::{STACK_SIZE, Stop, Thread};
use crate::sentinel::{GRACE, WITHOUT_PIDFD, end_now};
use crate::{exit, os};

/// Watches over a template as long as it runs other people's code and forks nobody: while it starts, and while it ends.
///
/// A process with a second thread cannot be forked safely, so this one is gone in between. Then the template waits for its
/// parent's next word, and sees the end of the stream itself.
#[derive(Debug)]
pub struct Guard {
    stop: Arc<Stop>,
    thread: Thread,
}

impl Guard {
    /// From now on the process ends when its parent does, or closes its end of the socket.
    pub fn start(socket: RawFd, parent: &'static Parent) -> io::Result<Self> {
        let stop = Arc::new(Stop::new());
        let told = Arc::clone(&stop);
        let thread = Thread::start("guard", move || {
            let is_apart = os::descriptors::leave_descriptor_table(&[socket]);
            let handle = parent.open().filter(|_| is_apart);
            let bell = told.bell.listen().filter(|_| is_apart);
            while !told.is_demanded() {
                let timeout = (handle.is_none() || bell.is_none()).then_some(WITHOUT_PIDFD);
                let seen = os::process::wait_for(
                    Some(socket),
                    handle.as_ref().map(AsFd::as_fd),
                    bell.as_ref().map(AsFd::as_fd),
                    // Before the first look at the parent, which may have ended before it could be opened.
                    if parent.is_dead() { Some(Duration::ZERO) } else { timeout },
                );
                if seen.hang_up || parent.is_dead() {
                    end_now(exit::ORPHANED);
                }
            }
            told.bell.stop_listening();
        })?;
        Ok(Self { stop, thread })
    }

    /// The process has one thread less when this returns.
    pub fn dismiss(self) {
        self.stop.demand();
        self.thread.join();
    }
}

/// A template is about to end Python, which may take for ever: with the parent gone it gets no longer than [`GRACE`].
pub fn end_with_parent(parent: &'static Parent) {
    let Ok(_held) = os::signals::SignalsHeld::all() else { return };
    let watch = move || {
        while !parent.is_dead() {
            thread::sleep(WITHOUT_PIDFD);
        }
        thread::sleep(GRACE);
        end_now(exit::ORPHANED);
    };
    // Without it the template ends too, if nothing hangs.
    let _ = thread::Builder::new().name("guard".to_owned()).stack_size(STACK_SIZE).spawn(watch);
}

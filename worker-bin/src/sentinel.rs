//! The native thread: it never touches Python, so it works while a job holds the GIL in an endless loop. It watches the parent.
//!
//! * It looks at the socket (the other end is closed when the parent ends, however it ends) and, where there is one, at a
//!   pidfd of the parent (a process that the parent forked may hold a copy of its end and keep it open).
//! * `PR_SET_PDEATHSIG` would be simpler, but it follows the thread that started the worker and not the parent's process
//!   (prctl(2)), and trio's worker threads come and go.
//! * An idle worker sees the end of the stream itself and leaves in order, with Python's own exit handlers; the thread
//!   only makes sure that this takes no longer than [`GRACE`].

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd as _, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::{exit, family, os};

/// How long an idle worker has for leaving after its parent's death.
pub const GRACE: Duration = Duration::from_millis(500);

/// How often the parent's life is looked up where the system cannot tell of its end.
const WITHOUT_PIDFD: Duration = Duration::from_millis(200);

/// Enough for a walk through the process table, and far less than the usual 2 MiB.
const STACK_SIZE: usize = 128 * 1024;

/// What the main thread is doing, for the native thread to see.
#[derive(Debug)]
pub struct Activity(AtomicU8);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// Blocked on the socket, or about to be: it will see the end of the stream itself.
    Waiting,
    /// Starting Python or running the user's code: it sees nothing.
    Busy,
    /// On its way out. The parent may close its end now without that meaning anything.
    Leaving,
}

impl Activity {
    pub const fn new() -> Self {
        Self(AtomicU8::new(0))
    }

    pub fn set(&self, doing: Doing) {
        self.0.store(doing as u8, Ordering::Release);
    }

    pub fn get(&self) -> Doing {
        match self.0.load(Ordering::Acquire) {
            0 => Doing::Waiting,
            1 => Doing::Busy,
            _ => Doing::Leaving,
        }
    }
}

impl Default for Activity {
    fn default() -> Self {
        Self::new()
    }
}

/// A process by its pid, and by a descriptor of it where the system has those.
#[derive(Debug)]
pub struct Parent {
    pid: u32,
    handle: Option<OwnedFd>,
}

impl Parent {
    /// `None`: this process's parent is another one by now, so the one that was meant has ended.
    pub fn watch(pid: u32) -> Option<Self> {
        let handle = os::open_process(pid);
        // In this order: a parent that ends after the check ends with its descriptor already open, and one whose number
        // was given to another process before it was opened is no longer our parent here.
        (std::os::unix::process::parent_id() == pid).then_some(Self { pid, handle })
    }

    pub fn is_dead(&self) -> bool {
        match &self.handle {
            Some(handle) => os::wait_for(None, Some(handle.as_fd()), Some(Duration::ZERO)).death,
            None => std::os::unix::process::parent_id() != self.pid,
        }
    }
}

/// Starts the thread. Signals are held back around it, so that it never gets one.
pub fn start(socket: RawFd, parent: &'static Parent, activity: &'static Activity) -> io::Result<()> {
    let _held = os::SignalsHeld::all()?;
    thread::Builder::new()
        .name("sentinel".to_owned())
        .stack_size(STACK_SIZE)
        .spawn(move || watch(socket, parent, activity))
        .map(drop)
}

fn watch(socket: RawFd, parent: &Parent, activity: &Activity) {
    let mut socket = Some(socket);
    loop {
        let process = parent.handle.as_ref().map(OwnedFd::as_fd);
        let timeout = if process.is_some() { None } else { Some(WITHOUT_PIDFD) };
        // Without anything to wait for, poll is a plain pause.
        let seen = os::wait_for(socket, process, timeout);
        if seen.death || parent.is_dead() {
            end_orphan(activity);
        }
        if seen.hang_up {
            match activity.get() {
                // The parent lives but has given this worker up while a job runs.
                Doing::Busy => end_now(),
                // It leaves by itself; what is left to watch for is the parent's end.
                Doing::Waiting | Doing::Leaving => socket = None,
            }
        }
    }
}

fn end_orphan(activity: &Activity) -> ! {
    let deadline = Instant::now() + GRACE;
    while activity.get() != Doing::Busy && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(5));
    }
    end_now()
}

fn end_now() -> ! {
    family::end_descendants();
    os::exit_now(exit::ORPHANED)
}

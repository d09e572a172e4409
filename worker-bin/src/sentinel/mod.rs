//! The native thread (sentinel). It is independent of Python, so it runs while a job holds the GIL.
//! It ends the worker when the parent dies, reports the memory use of a running job, and enforces
//! the memory limit.
//!
//! * It watches the socket, which closes when the parent ends, and a pidfd of the parent: a process
//!   that the parent forked may keep a copy of the parent's end open.
//! * `PR_SET_PDEATHSIG` does not replace it. That follows the thread that started the worker
//!   (prctl(2)), and trio's worker threads come and go.
//! * An idle worker notices a closed socket itself and exits in order, with Python's exit handlers.
//!   The thread only bounds that exit by [`EXIT_TIMEOUT`].
//! * It has its own descriptor table with the socket, the record and what it opens itself. A job
//!   may close every descriptor and open files, all of them in another table.
//! * A process with this thread has two threads. Python 3.12 and newer warn at a fork then, and the
//!   kernel refuses some changes of namespaces. The thread is suspended for these ([`suspend`],
//!   [`resume`]).
//! * The memory limit ends only the job that was measured. Both threads agree by one atomic word
//!   that contains the job's number ([`ActivityCell::seal`]).
//! * The thread sleeps in an idle worker: hundreds of idle workers that woke ten times a second
//!   would cost processor time. The main thread wakes it when a job begins, but only after a whole
//!   tick without a job. Calls in quick succession are free of this system call.

#![forbid(unsafe_code)]

pub mod activity;
pub mod control;
pub mod guard;
pub mod parent;
mod reporter;
mod thread;

use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::process::family;
use crate::sentinel::activity::{Activity, ActivityCell};
use crate::sentinel::control::SentinelTarget;
use crate::sentinel::parent::Parent;
use crate::sentinel::reporter::{LIMIT_CHECK_INTERVAL, Reporter};
use crate::{exit, os};

/// Time that an idle worker has to exit after its parent's death.
pub const EXIT_TIMEOUT: Duration = Duration::from_millis(500);

/// Interval between two checks of the parent without a pidfd.
pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(200);

pub(super) struct Sentinel {
    parent: &'static Parent,
    activity: &'static ActivityCell,
    /// A pidfd of the parent, if available.
    handle: Option<OwnedFd>,
    /// `None` means closed by a job, or its hang-up has been handled.
    socket: Option<RawFd>,
    /// `None` means that the thread cannot be woken, so it polls.
    waker: Option<OwnedFd>,
    next_tick: Option<Instant>,
    reporter: Reporter,
}

/// The thread's own descriptor table. Only with one it opens descriptors: otherwise a job could
/// close and reuse them.
pub(super) struct OwnTable {
    is_apart: bool,
}

impl OwnTable {
    /// Runs in the thread itself.
    fn begin(socket: RawFd, record: RawFd) -> Self {
        let is_apart = os::descriptors::unshare_descriptor_table(&[socket, record]);
        if is_apart {
            os::proc::hold();
        }
        Self { is_apart }
    }
}

impl Sentinel {
    /// Runs in the thread itself, once it has its target.
    fn begin(table: OwnTable, target: SentinelTarget, activity: &'static ActivityCell) -> Self {
        let SentinelTarget { socket, reports, parent, record } = target;
        let is_apart = table.is_apart;
        if is_apart {
            // Do not keep a job's files open under these numbers.
            reports.close_unless_intact();
            record.close_unless_intact();
        }
        let handle = if is_apart { parent.open() } else { None };
        let waker = if is_apart { activity.stop.waker.listen() } else { None };
        let socket = Some(socket).filter(|_| reports.is_intact());
        let reporter = Reporter::new(reports, record, activity.state.load(Ordering::SeqCst));
        let mut sentinel = Self { parent, activity, handle, socket, waker, next_tick: None, reporter };
        // The configuration may have come before this thread listened.
        sentinel.next_tick = sentinel.interval().map(|interval| Instant::now() + interval);
        sentinel
    }

    /// Run until the thread is suspended.
    fn watch(mut self) {
        let mut is_looking = true;
        while !self.activity.stop.is_demanded() {
            let until_tick = self.next_tick.map(|tick| tick.saturating_duration_since(Instant::now()));
            let until_look = (self.handle.is_none() || self.waker.is_none()).then_some(POLL_INTERVAL);
            // The parent may have died before the pidfd was opened.
            let at_once = std::mem::take(&mut is_looking).then_some(Duration::ZERO);
            let timeout = until_tick.into_iter().chain(until_look).chain(at_once).min();
            // Without anything to wait for, poll is a plain sleep.
            let events = os::process::wait_for(
                self.socket,
                self.handle.as_ref().map(AsFd::as_fd),
                self.waker.as_ref().map(AsFd::as_fd),
                timeout,
            );
            if self.parent.is_dead() {
                end_orphan(self.activity);
            }
            if events.process_exit {
                self.handle = None;
            }
            if events.hang_up && !self.reporter.reports.is_intact() {
                // A job has closed the socket, in a table that both threads share. The main thread
                // reports it.
                self.socket = None;
            } else if events.hang_up {
                if self.activity.is_blind() {
                    // The parent lives but has abandoned this worker while a job runs.
                    end_now(exit::ORPHANED);
                }
                // The main thread exits by itself. Keep watching for the parent's death.
                self.socket = None;
            }
            if events.wakeup {
                self.answer_bell();
            }
            self.tick();
        }
        self.activity.stop.waker.stop_listening();
    }

    fn answer_bell(&mut self) {
        if self.waker.as_ref().is_some_and(|waker| os::threads::clear_wakeup(waker.as_fd())) {
            os::signals::ask_for_stacks();
        }
        if self.next_tick.is_none() {
            self.next_tick = self.interval().map(|interval| Instant::now() + interval);
            self.reporter.begin();
        }
    }

    /// `None` means no timed work.
    fn interval(&self) -> Option<Duration> {
        let config = self.activity.config.get()?;
        config.report_interval.into_iter().chain(config.memory_limit.map(|_| LIMIT_CHECK_INTERVAL)).min()
    }

    fn tick(&mut self) {
        let now = Instant::now();
        if self.next_tick.is_none_or(|tick| tick > now) {
            return;
        }
        let Some((config, interval)) = self.activity.config.get().zip(self.interval()) else {
            self.next_tick = None;
            return;
        };
        self.next_tick = Some(now + interval);
        let worked = self.reporter.look(config, self.activity, now);
        if !worked && self.waker.is_some() {
            self.activity.asleep.store(true, Ordering::SeqCst);
            // A job that began before the store above has not woken this thread; a later one has.
            if self.activity.get() != Activity::Busy || !self.activity.asleep.swap(false, Ordering::SeqCst) {
                self.next_tick = None;
            }
        }
    }
}

fn end_orphan(activity: &ActivityCell) -> ! {
    let deadline = Instant::now() + EXIT_TIMEOUT;
    while !activity.is_blind() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    end_now(exit::ORPHANED)
}

/// End the process at once, with all that its jobs have started.
pub fn end_now(code: i32) -> ! {
    family::end_descendants();
    os::process::exit_now(code)
}

//! The native thread: it never touches Python, so it works while a job holds the GIL in an endless loop. It watches the
//! parent, tells it how much memory a running job holds, and ends a job that takes more than it may.
//!
//! * It looks at the socket (the other end is closed when the parent ends, however it ends) and, where there is one, at a
//!   pidfd of the parent (a process that the parent forked may hold a copy of its end and keep it open).
//! * `PR_SET_PDEATHSIG` would be simpler, but it follows the thread that started the worker and not the parent's process
//!   (prctl(2)), and trio's worker threads come and go.
//! * An idle worker sees the end of the stream itself and leaves in order, with Python's own exit handlers; the thread
//!   only makes sure that this takes no longer than [`GRACE`].
//! * It has a table of descriptors of its own, with the socket, the record and what it opens itself. A job may close every
//!   descriptor and open files of its own: none of them is ever the thread's.
//! * To the system a process with it has two threads. Python 3.12 and newer warn of a fork then, and the kernel refuses some
//!   changes of namespaces. So it steps aside for these ([`step_aside`], [`come_back`]).
//! * A job that takes too much is ended, and none after it: the thread and the main thread agree on that by one atomic word
//!   with the number of the job in it ([`Activity::seal`]).
//! * In an idle worker the thread sleeps until there is something to see: hundreds of idle workers that woke ten times a
//!   second would be felt. The main thread rings a bell when a job begins, but only if the thread is asleep, which it is
//!   not before a whole tick has passed without a job; so calls in quick succession cost no system call for it.

#![forbid(unsafe_code)]

pub mod activity;
pub mod guard;
pub mod parent;
pub mod post;
mod reporter;
mod thread;

use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::process::family;
use crate::sentinel::activity::{Activity, Doing};
use crate::sentinel::parent::Parent;
use crate::sentinel::post::Charge;
use crate::sentinel::reporter::{CEILING_TICK, Reporter};
use crate::{exit, os};

/// How long an idle worker has for leaving after its parent's death.
pub const GRACE: Duration = Duration::from_millis(500);

/// How often the parent's life is looked up where the system cannot tell of its end.
pub(super) const WITHOUT_PIDFD: Duration = Duration::from_millis(200);

pub(super) struct Sentinel {
    parent: &'static Parent,
    activity: &'static Activity,
    /// `None`: there is none.
    handle: Option<OwnedFd>,
    /// `None`: it is not there, or its hang-up has been seen and means nothing more.
    socket: Option<RawFd>,
    /// `None`: there is none, and the thread never sleeps for long.
    bell: Option<OwnedFd>,
    next_tick: Option<Instant>,
    reporter: Reporter,
}

impl Sentinel {
    /// In the thread itself, when it is told what to watch.
    fn begin(charge: Charge, activity: &'static Activity) -> Self {
        let Charge { socket, outlet, parent, record } = charge;
        // Where there is no table for it alone it opens nothing that a job could close and take the number of.
        let is_apart = os::descriptors::leave_descriptor_table(&[socket, record.descriptor()]);
        if is_apart {
            // What a job has under these numbers by now is not kept open here.
            outlet.leave_unless_there();
            record.leave_unless_there();
        }
        if is_apart {
            os::proc::hold();
        }
        let handle = if is_apart { parent.open() } else { None };
        let bell = if is_apart { activity.stop.bell.listen() } else { None };
        let socket = Some(socket).filter(|_| outlet.is_there());
        let reporter = Reporter::new(outlet, record, activity.state.load(Ordering::SeqCst));
        let mut sentinel = Self { parent, activity, handle, socket, bell, next_tick: None, reporter };
        // It may have been told what to do before there was anybody to hear it.
        sentinel.next_tick = sentinel.interval().map(|interval| Instant::now() + interval);
        sentinel
    }

    /// Until it is to step aside.
    fn watch(mut self) {
        let mut is_looking = true;
        while !self.activity.stop.is_demanded() {
            let until_tick = self.next_tick.map(|tick| tick.saturating_duration_since(Instant::now()));
            let until_look = (self.handle.is_none() || self.bell.is_none()).then_some(WITHOUT_PIDFD);
            // The parent may have ended before it could be opened.
            let at_once = std::mem::take(&mut is_looking).then_some(Duration::ZERO);
            let timeout = until_tick.into_iter().chain(until_look).chain(at_once).min();
            // Without anything to wait for, poll is a plain pause.
            let seen = os::process::wait_for(
                self.socket,
                self.handle.as_ref().map(AsFd::as_fd),
                self.bell.as_ref().map(AsFd::as_fd),
                timeout,
            );
            if self.parent.is_dead() {
                end_orphan(self.activity);
            }
            if seen.death {
                self.handle = None;
            }
            if seen.hang_up && !self.reporter.outlet.is_there() {
                // Not the parent's doing but a job's, where the table is not the thread's own; the main thread says so.
                self.socket = None;
            } else if seen.hang_up {
                if self.activity.is_blind() {
                    // The parent lives but has given this worker up while a job runs.
                    end_now(exit::ORPHANED);
                }
                // It leaves by itself; what is left to watch for is the parent's end.
                self.socket = None;
            }
            if seen.bell {
                self.answer_bell();
            }
            self.tick();
        }
        self.activity.stop.bell.stop_listening();
    }

    fn answer_bell(&mut self) {
        if let Some(bell) = &self.bell {
            os::threads::take_ring(bell.as_fd());
        }
        if self.next_tick.is_none() {
            self.next_tick = self.interval().map(|interval| Instant::now() + interval);
            self.reporter.begin();
        }
    }

    /// `None`: there is nothing to do at any time.
    fn interval(&self) -> Option<Duration> {
        let duty = self.activity.duty.get()?;
        duty.report_interval.into_iter().chain(duty.memory_limit.map(|_| CEILING_TICK)).min()
    }

    fn tick(&mut self) {
        let now = Instant::now();
        if self.next_tick.is_none_or(|tick| tick > now) {
            return;
        }
        let Some((duty, interval)) = self.activity.duty.get().zip(self.interval()) else {
            self.next_tick = None;
            return;
        };
        self.next_tick = Some(now + interval);
        let worked = self.reporter.look(duty, self.activity, now);
        if !worked && self.bell.is_some() {
            self.activity.asleep.store(true, Ordering::SeqCst);
            // A job that began before the line above has rung no bell. If it has rung one after it, the bell brings us back.
            if self.activity.get() != Doing::Busy || !self.activity.asleep.swap(false, Ordering::SeqCst) {
                self.next_tick = None;
            }
        }
    }
}

fn end_orphan(activity: &Activity) -> ! {
    let deadline = Instant::now() + GRACE;
    while !activity.is_blind() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    end_now(exit::ORPHANED)
}

pub(super) fn end_now(code: i32) -> ! {
    family::end_descendants();
    os::process::exit_now(code)
}

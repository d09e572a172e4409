//! What the main thread is doing, and what SETUP asks of the native thread.

#![forbid(unsafe_code)]

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::sentinel::thread::Stop;

/// What the main thread is doing, for the native thread to see, and what the parent wants to know of it.
#[derive(Debug)]
pub struct Activity {
    /// What is done ([`Doing`]) in the lowest two bits, then [`SEALED`], and above them how often it has become busy.
    pub(super) state: AtomicU64,
    pub(super) asleep: AtomicBool,
    pub(super) stop: Stop,
    pub(super) duty: OnceLock<Duty>,
}

const DOING: u64 = 0b11;

/// The native thread ends this process for its job.
const SEALED: u64 = 0b100;

pub(super) const ONE_JOB: u64 = 0b1000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// Blocked on the socket, or about to be: it will see the end of the stream itself.
    Waiting,
    /// Starting Python or running a job: it sees nothing.
    Busy,
    /// On its way out. The parent may close its end now without that meaning anything.
    Leaving,
    /// Running what the user has for between two jobs: it sees nothing either, but no job runs that could take too much.
    Settling,
}

/// What SETUP asks of the native thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Duty {
    /// Between two reports of a running job; `None`: no reports.
    pub report_interval: Option<Duration>,
    /// What a job and its child processes may hold, in bytes.
    pub memory_limit: Option<u64>,
}

impl Activity {
    pub const fn new() -> Self {
        Self { state: AtomicU64::new(0), asleep: AtomicBool::new(false), stop: Stop::new(), duty: OnceLock::new() }
    }

    pub fn set(&self, doing: Doing) {
        let before = self.state.load(Ordering::Relaxed);
        let job = (before & !DOING).wrapping_add(if doing == Doing::Busy { ONE_JOB } else { 0 });
        // With the thread's own order (first "asleep", then a look at what is done) one of the two always sees the other;
        // both sides are SeqCst for that.
        let change = || self.state.compare_exchange(before, job | doing as u64, Ordering::SeqCst, Ordering::SeqCst);
        if before & SEALED != 0 || change().is_err() {
            // The job has come to its end a moment too late.
            loop {
                thread::park();
            }
        }
        if doing == Doing::Busy && self.asleep.load(Ordering::SeqCst) && self.asleep.swap(false, Ordering::SeqCst) {
            self.stop.bell.ring();
        }
    }

    pub fn get(&self) -> Doing {
        doing_in(self.state.load(Ordering::SeqCst))
    }

    /// Whether the user's code runs, so that nobody sees the end of the stream.
    pub(super) fn is_blind(&self) -> bool {
        matches!(self.get(), Doing::Busy | Doing::Settling)
    }

    /// Settles that this process is ended for the job that runs in this state. False: that job has come to its end.
    ///
    /// From then on the main thread goes no further than to the end of the job.
    pub(super) fn seal(&self, state: u64) -> bool {
        self.state.compare_exchange(state, state | SEALED, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Tells the native thread what to do. The first word counts: there is one SETUP.
    pub fn assign(&self, duty: Duty) {
        if self.duty.set(duty).is_ok() {
            self.stop.bell.ring();
        }
    }
}

pub(super) fn doing_in(state: u64) -> Doing {
    match state & DOING {
        0 => Doing::Waiting,
        1 => Doing::Busy,
        2 => Doing::Leaving,
        _ => Doing::Settling,
    }
}

impl Default for Activity {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    fn state(activity: &Activity) -> u64 {
        activity.state.load(Ordering::SeqCst)
    }

    #[test]
    fn the_job_that_was_measured_is_ended_or_none() {
        let activity = Activity::new();
        activity.set(Doing::Busy);
        let first = state(&activity);
        activity.set(Doing::Waiting);
        assert!(!activity.seal(first));
        activity.set(Doing::Busy);
        assert!(!activity.seal(first), "it is another job's turn");
        let second = state(&activity);
        activity.set(Doing::Settling);
        assert!(!activity.seal(second));
    }

    #[test]
    fn a_job_that_was_sealed_goes_no_further() {
        static ACTIVITY: Activity = Activity::new();
        ACTIVITY.set(Doing::Busy);
        assert!(ACTIVITY.seal(state(&ACTIVITY)));
        let (done, is_done) = mpsc::channel();
        thread::spawn(move || {
            ACTIVITY.set(Doing::Waiting);
            done.send(()).unwrap();
        });
        assert!(is_done.recv_timeout(Duration::from_millis(200)).is_err());
        assert_eq!(ACTIVITY.get(), Doing::Busy);
    }
}

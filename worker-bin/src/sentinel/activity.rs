//! The state of the main thread, as the native thread sees it.

#![forbid(unsafe_code)]

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::sentinel::thread::Stop;

const ACTIVITY_MASK: u64 = 0b11;

/// The native thread is ending this process because of the current job.
const SEALED: u64 = 0b100;

pub(super) const ONE_JOB: u64 = 0b1000;

/// The main thread's activity and the native thread's configuration, shared without a lock.
#[derive(Debug)]
pub struct ActivityCell {
    /// Bits 0 and 1: the [`Activity`]. Bit 2: [`SEALED`]. The rest counts the jobs.
    pub(super) state: AtomicU64,
    pub(super) asleep: AtomicBool,
    pub(super) stop: Stop,
    pub(super) config: OnceLock<SentinelConfig>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// Blocked in `recv`, or about to be. It notices a closed socket itself.
    Idle,
    /// Starting Python or running a job. It does not notice a closed socket.
    Busy,
    /// Exiting. The parent may close its end now, without an effect.
    Exiting,
    /// Running the context's `retire` function between two jobs. It does not notice a closed
    /// socket, but the memory limit does not apply.
    AfterJob,
}

/// The configuration that comes with SETUP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SentinelConfig {
    /// The interval between two reports of a running job. `None` means no reports.
    pub report_interval: Option<Duration>,
    /// The most memory that a job and its child processes may use, in bytes.
    pub memory_limit: Option<u64>,
}

impl ActivityCell {
    pub const fn new() -> Self {
        Self { state: AtomicU64::new(0), asleep: AtomicBool::new(false), stop: Stop::new(), config: OnceLock::new() }
    }

    pub fn set(&self, activity: Activity) {
        let before = self.state.load(Ordering::Relaxed);
        let job = (before & !ACTIVITY_MASK).wrapping_add(if activity == Activity::Busy { ONE_JOB } else { 0 });
        // The native thread stores `asleep` first and then loads the state; this side does it the
        // other way round. Both are SeqCst, so one of the two sees the other.
        let change = || self.state.compare_exchange(before, job | activity as u64, Ordering::SeqCst, Ordering::SeqCst);
        if before & SEALED != 0 || change().is_err() {
            // The native thread has sealed this job and is about to exit.
            loop {
                thread::park();
            }
        }
        if activity == Activity::Busy && self.asleep.load(Ordering::SeqCst) && self.asleep.swap(false, Ordering::SeqCst) {
            self.stop.waker.wake();
        }
    }

    pub fn get(&self) -> Activity {
        activity_in(self.state.load(Ordering::SeqCst))
    }

    /// True if user code runs, so that the main thread does not notice a closed socket.
    pub(super) fn is_blind(&self) -> bool {
        matches!(self.get(), Activity::Busy | Activity::AfterJob)
    }

    /// Commit to ending this process for the job in this state. Return false if that job is over.
    ///
    /// A sealed main thread stops at the end of the job.
    pub(super) fn seal(&self, state: u64) -> bool {
        self.state.compare_exchange(state, state | SEALED, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Set the native thread's configuration. Only the first call counts, since SETUP comes once.
    pub fn configure(&self, config: SentinelConfig) {
        if self.config.set(config).is_ok() {
            self.stop.waker.wake();
        }
    }
}

pub(super) fn activity_in(state: u64) -> Activity {
    match state & ACTIVITY_MASK {
        0 => Activity::Idle,
        1 => Activity::Busy,
        2 => Activity::Exiting,
        _ => Activity::AfterJob,
    }
}

impl Default for ActivityCell {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    fn state(activity: &ActivityCell) -> u64 {
        activity.state.load(Ordering::SeqCst)
    }

    #[test]
    fn the_job_that_was_measured_is_ended_or_none() {
        let activity = ActivityCell::new();
        activity.set(Activity::Busy);
        let first = state(&activity);
        activity.set(Activity::Idle);
        assert!(!activity.seal(first));
        activity.set(Activity::Busy);
        assert!(!activity.seal(first), "it is another job's turn");
        let second = state(&activity);
        activity.set(Activity::AfterJob);
        assert!(!activity.seal(second));
    }

    #[test]
    fn a_job_that_was_sealed_goes_no_further() {
        static ACTIVITY: ActivityCell = ActivityCell::new();
        ACTIVITY.set(Activity::Busy);
        assert!(ACTIVITY.seal(state(&ACTIVITY)));
        let (done, is_done) = mpsc::channel();
        thread::spawn(move || {
            ACTIVITY.set(Activity::Idle);
            done.send(()).unwrap();
        });
        assert!(is_done.recv_timeout(Duration::from_millis(200)).is_err());
        assert_eq!(ACTIVITY.get(), Activity::Busy);
    }
}

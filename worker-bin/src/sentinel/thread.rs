//! A native thread: its start, the demand to end, and its end.

#![forbid(unsafe_code)]

use std::io::{self};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::os;

/// Enough for a walk through the process table, and far less than the usual 2 MiB.
pub(super) const STACK_SIZE: usize = 256 * 1024;

/// How a native thread is told to end.
#[derive(Debug)]
pub(super) struct Stop {
    pub(super) bell: os::threads::Bell,
    pub(super) wanted: AtomicBool,
}

impl Stop {
    pub(super) const fn new() -> Self {
        Self { bell: os::threads::Bell::new(), wanted: AtomicBool::new(false) }
    }

    pub(super) fn demand(&self) {
        self.wanted.store(true, Ordering::SeqCst);
        self.bell.ring();
    }

    /// Whether it was demanded, which is answered by this.
    pub(super) fn is_demanded(&self) -> bool {
        self.wanted.load(Ordering::SeqCst) && self.wanted.swap(false, Ordering::SeqCst)
    }
}

#[derive(Debug)]
pub(super) struct Thread {
    pub(super) handle: thread::JoinHandle<()>,
    pub(super) number: Arc<AtomicU64>,
}

impl Thread {
    pub(super) fn start(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let number = Arc::new(AtomicU64::new(0));
        let told = Arc::clone(&number);
        let _held = os::signals::SignalsHeld::all()?;
        let handle = thread::Builder::new().name(name.to_owned()).stack_size(STACK_SIZE).spawn(move || {
            told.store(u64::try_from(os::threads::thread_number()).unwrap_or_default(), Ordering::Relaxed);
            work();
        })?;
        Ok(Self { handle, number })
    }

    /// The process has one thread less when this returns. The thread has been told to end.
    pub(super) fn join(self) {
        let _ = self.handle.join();
        let number = i32::try_from(self.number.load(Ordering::Relaxed)).unwrap_or_default();
        // One that was waited for is counted until the kernel has taken it apart.
        let deadline = Instant::now() + UNTIL_IT_IS_GONE;
        while number != 0 && os::threads::is_thread(number) && Instant::now() < deadline {
            thread::yield_now();
        }
    }
}

const UNTIL_IT_IS_GONE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn a_thread_is_woken_by_its_bell_and_gone_when_it_was_joined() {
        let stop = Arc::new(Stop::new());
        let told = Arc::clone(&stop);
        let thread = Thread::start("tested", move || {
            let bell = told.bell.listen().unwrap();
            while !told.is_demanded() {
                let seen = os::process::wait_for(None, None, Some(bell.as_fd()), None);
                assert!(seen.bell);
                os::threads::take_ring(bell.as_fd());
            }
        })
        .unwrap();
        let number = Arc::clone(&thread.number);
        stop.demand();
        thread.join();
        assert!(!os::threads::is_thread(i32::try_from(number.load(Ordering::Relaxed)).unwrap()));
    }
}

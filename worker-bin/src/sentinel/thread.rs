//! Start and end a native thread.

#![forbid(unsafe_code)]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::os;

/// Enough for a walk through the process table; the default is 2 MiB.
pub(super) const STACK_SIZE: usize = 256 * 1024;

const JOIN_TIMEOUT: Duration = Duration::from_millis(100);

/// A demand to end, with the means to wake the thread.
#[derive(Debug)]
pub(super) struct Stop {
    pub(super) waker: os::threads::Waker,
    pub(super) wanted: AtomicBool,
}

impl Stop {
    pub(super) const fn new() -> Self {
        Self { waker: os::threads::Waker::new(), wanted: AtomicBool::new(false) }
    }

    pub(super) fn demand(&self) {
        self.wanted.store(true, Ordering::SeqCst);
        self.waker.wake();
    }

    /// True if the thread must end. Clears the demand.
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
            told.store(u64::try_from(os::threads::thread_id()).unwrap_or_default(), Ordering::Relaxed);
            work();
        })?;
        Ok(Self { handle, number })
    }

    /// Wait until the process has one thread less. The demand to end must have been made.
    pub(super) fn join(self) {
        let _ = self.handle.join();
        let number = i32::try_from(self.number.load(Ordering::Relaxed)).unwrap_or_default();
        // The kernel counts a joined thread until it has removed it.
        let deadline = Instant::now() + JOIN_TIMEOUT;
        while number != 0 && os::threads::is_thread(number) && Instant::now() < deadline {
            thread::yield_now();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn a_thread_is_woken_by_its_bell_and_gone_when_it_was_joined() {
        let stop = Arc::new(Stop::new());
        let told = Arc::clone(&stop);
        let thread = Thread::start("tested", move || {
            let waker = told.waker.listen().unwrap();
            while !told.is_demanded() {
                let events = os::process::wait_for(None, None, Some(waker.as_fd()), None);
                assert!(events.wakeup);
                os::threads::clear_wakeup(waker.as_fd());
            }
        })
        .unwrap();
        let number = Arc::clone(&thread.number);
        stop.demand();
        thread.join();
        assert!(!os::threads::is_thread(i32::try_from(number.load(Ordering::Relaxed)).unwrap()));
    }
}

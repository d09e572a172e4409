//! The idle time of a worker.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

/// The idle time of a worker. Signals that interrupt the wait do not restart it.
#[derive(Debug, Clone, Copy)]
pub struct IdleClock {
    timeout: Option<Duration>,
    since: Instant,
}

impl IdleClock {
    pub fn start(timeout: Option<Duration>) -> Self {
        Self { timeout, since: Instant::now() }
    }

    pub fn restart(&mut self) {
        // A worker without a timeout does not read the clock at every call.
        if self.timeout.is_some() {
            self.since = Instant::now();
        }
    }

    pub fn is_over(&self) -> bool {
        self.timeout.is_some_and(|timeout| self.since.elapsed() >= timeout)
    }
}

//! When an idle worker has waited long enough.

#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

/// When an idle worker has waited long enough, counted over the interruptions by signals.
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
        // Reading the clock costs nothing to speak of, but a worker that never retires need not do it at every call.
        if self.timeout.is_some() {
            self.since = Instant::now();
        }
    }

    pub fn is_over(&self) -> bool {
        self.timeout.is_some_and(|timeout| self.since.elapsed() >= timeout)
    }
}

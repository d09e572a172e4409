//! The timed work of the native thread: report memory use, enforce the memory limit.

#![forbid(unsafe_code)]

use std::io::{self, Write as _};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::exit;
use crate::process::meter;
use crate::process::meter::{FamilyMeter, Meter};
use crate::process::record::Record;
use crate::protocol::message::Message;
use crate::sentinel::activity::{Activity, ActivityCell, ONE_JOB, SentinelConfig, activity_in};
use crate::sentinel::end_now;
use crate::transport::reports::ReportSender;

/// Interval between two checks of the memory limit.
pub(super) const LIMIT_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// The timed work of the native thread.
pub(super) struct Reporter {
    pub(super) reports: ReportSender,
    record: &'static Record,
    meter: Meter,
    family: FamilyMeter,
    /// The state at the last tick. Only the number of the job matters.
    seen: u64,
    reported: Instant,
    has_complained: bool,
}

impl Reporter {
    pub(super) fn new(reports: ReportSender, record: &'static Record, state: u64) -> Self {
        Self {
            reports,
            record,
            meter: Meter::default(),
            family: FamilyMeter::new(),
            seen: state,
            reported: Instant::now(),
            has_complained: false,
        }
    }

    /// Restart the report interval after a sleep.
    pub(super) fn begin(&mut self) {
        self.reported = Instant::now();
    }

    /// Do the work of one tick. Return true if a job runs, or has run since the last tick.
    pub(super) fn look(&mut self, config: &SentinelConfig, activity: &ActivityCell, now: Instant) -> bool {
        let state = activity.state.load(Ordering::SeqCst);
        let begun = state / ONE_JOB != std::mem::replace(&mut self.seen, state) / ONE_JOB;
        if activity_in(state) != Activity::Busy {
            return begun;
        }
        if let Some(limit) = config.memory_limit
            && let Some(reached) = self.family.above(limit)
            && activity.seal(state)
        {
            self.record.memory_limit(limit, reached);
            end_now(exit::MEMORY_LIMIT);
        }
        if config.memory_limit.is_some() && !self.has_complained && !meter::has_proc() {
            self.has_complained = true;
            let _ =
                writeln!(io::stderr(), "trio-offload-worker: memory_limit is not watched, because /proc cannot be read any more");
        }
        // Report half a tick early rather than late: the interval is a multiple of the tick.
        if config.report_interval.is_some_and(|interval| now.duration_since(self.reported) + LIMIT_CHECK_INTERVAL / 2 >= interval)
        {
            self.reported = now;
            if let Some(figures) = self.meter.read() {
                self.reports.send_at_once(Message::Report(figures), || activity.get() == Activity::Busy);
            }
        }
        true
    }
}

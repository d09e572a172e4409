//! What the native thread does at a tick: report, and enforce the memory limit.

#![forbid(unsafe_code)]

use std::io::{self, Write as _};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::exit;
use crate::process::meter;
use crate::process::meter::{FamilyMeter, Meter};
use crate::process::record::Record;
use crate::protocol::message::Message;
use crate::sentinel::activity::{Activity, Doing, Duty, ONE_JOB, doing_in};
use crate::sentinel::end_now;
use crate::transport::reports::Outlet;

/// How often a running job's memory is compared with its ceiling.
pub(super) const CEILING_TICK: Duration = Duration::from_millis(100);

/// What the thread does at a tick.
pub(super) struct Reporter {
    pub(super) outlet: Outlet,
    record: &'static Record,
    meter: Meter,
    family: FamilyMeter,
    /// The state at the last look, of which the number of the job counts.
    seen: u64,
    reported: Instant,
    has_complained: bool,
}

impl Reporter {
    pub(super) fn new(outlet: Outlet, record: &'static Record, state: u64) -> Self {
        Self {
            outlet,
            record,
            meter: Meter::default(),
            family: FamilyMeter::new(),
            seen: state,
            reported: Instant::now(),
            has_complained: false,
        }
    }

    /// The thread has woken: the time until the next report counts from now.
    pub(super) fn begin(&mut self) {
        self.reported = Instant::now();
    }

    /// Whether a job runs, or has run since the last look.
    pub(super) fn look(&mut self, duty: &Duty, activity: &Activity, now: Instant) -> bool {
        let state = activity.state.load(Ordering::SeqCst);
        let begun = state / ONE_JOB != std::mem::replace(&mut self.seen, state) / ONE_JOB;
        if doing_in(state) != Doing::Busy {
            return begun;
        }
        if let Some(limit) = duty.memory_limit
            && let Some(reached) = self.family.above(limit)
            && activity.seal(state)
        {
            self.record.memory_limit(limit, reached);
            end_now(exit::MEMORY_LIMIT);
        }
        if duty.memory_limit.is_some() && !self.has_complained && !meter::is_told() {
            self.has_complained = true;
            let _ =
                writeln!(io::stderr(), "trio-offload-worker: memory_limit is not watched, because /proc cannot be read any more");
        }
        // A tick early is better than a tick late: the interval is a multiple of the tick or the tick itself.
        if duty.report_interval.is_some_and(|interval| now.duration_since(self.reported) + CEILING_TICK / 2 >= interval) {
            self.reported = now;
            if let Some(figures) = self.meter.read() {
                self.outlet.send_at_once(Message::Report(figures), || activity.get() == Doing::Busy);
            }
        }
        true
    }
}

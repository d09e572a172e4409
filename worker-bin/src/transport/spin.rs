//! Adaptive spinning before a blocking read.

#![forbid(unsafe_code)]

use std::io;
use std::os::unix::net::UnixStream;
use std::thread::{available_parallelism, yield_now};
use std::time::{Duration, Instant};

use crate::transport::carried::CarriedQueue;

const SPIN_LIMIT: Duration = Duration::from_micros(600);

/// Messages with longer pauses are not worth a processor.
const SPIN_WINDOW: Duration = Duration::from_micros(300);

/// So many messages in quick succession start the spinning: one call, or a handshake, does not.
const BURST: u32 = 4;

/// So many late messages end the longest burst.
const LATE_LIMIT: u32 = 4;

/// Time that a successful spin saves. A call that wakes its worker takes 50 to 75 µs longer
/// (docs/speed.md).
const WAKEUP_COST: Duration = Duration::from_micros(60);

/// Factor from excess cost to the time until it is paid back.
const REPAYMENT_FACTOR: u32 = 8;

/// Debt up to which spinning starts: 4 ms of processor time, enough for a short burst of calls.
const MAX_DEBT: Duration = Duration::from_millis(4).saturating_mul(REPAYMENT_FACTOR);

/// One step of spinning takes about 1 µs. In a longer one, other processes had the processor.
const MAX_STEP: Duration = Duration::from_micros(10);

/// Adaptive spinning before a blocking read.
///
/// Waking a sleeping thread takes longer than a small job, its caches go cold, and the parent has
/// to wake the processor. Where several tasks share few workers, that is half of a call. So after a
/// few messages in quick succession this polls for up to `SPIN_LIMIT` before it blocks. The
/// [`SpinBudget`] bounds the cost.
#[derive(Debug, Default)]
pub(super) struct AdaptiveSpin {
    /// Recent messages that came soon, minus `BURST` for each late one.
    recent: u32,
    budget: SpinBudget,
    /// True if there is a second processor. `None` before the first check.
    has_spare_cpu: Option<bool>,
}

/// The budget for spinning: the time that it saves, plus an eighth of a processor.
///
/// A spin that finds a message saves `WAKEUP_COST`. A worker that is called every 100 µs spins 100
/// µs to save 60 µs. Without a budget it would occupy a whole processor, and with a CPU quota
/// (`cpu.max`) it would take that time from the parent. (`has_spare_cpu` covers quotas below two
/// processors, which `available_parallelism` includes.)
#[derive(Debug, Default)]
struct SpinBudget {
    /// When the cost beyond the savings is paid back. `None` means that it has never spun.
    debt_free_at: Option<Instant>,
}

impl SpinBudget {
    fn allows(&self, now: Instant) -> bool {
        self.debt_free_at.is_none_or(|at| at.saturating_duration_since(now) <= MAX_DEBT)
    }

    /// Account for a spin. Savings reduce the debt; they are not stored beyond that.
    fn account(&mut self, now: Instant, cost: Duration, worth: Duration) {
        let from = self.debt_free_at.map_or(now, |at| at.max(now));
        self.debt_free_at = if cost > worth {
            from.checked_add((cost - worth) * REPAYMENT_FACTOR)
        } else {
            from.checked_sub((worth - cost) * REPAYMENT_FACTOR)
        };
    }
}

impl AdaptiveSpin {
    /// Receive, after spinning if that pays. `sleep` waits for input.
    pub(super) fn spin_then_receive(
        &mut self,
        stream: &UnixStream,
        carried: &mut CarriedQueue,
        into: &mut [u8],
        sleep: impl FnOnce(&UnixStream) -> io::Result<()>,
    ) -> io::Result<usize> {
        let since = Instant::now();
        if self.pays(since) {
            if let Some(received) = self.spin(since, || carried.receive(stream, into, false)) {
                return received;
            }
            sleep(stream)?;
            return carried.receive(stream, into, true);
        }
        sleep(stream)?;
        let received = carried.receive(stream, into, true);
        self.record_pause(since.elapsed());
        received
    }

    /// Receive at once, or spin if that pays. `WouldBlock` means that nothing came.
    pub(super) fn receive_or_spin(
        &mut self,
        stream: &UnixStream,
        carried: &mut CarriedQueue,
        into: &mut [u8],
        since: Instant,
        spins: bool,
    ) -> io::Result<usize> {
        let received = carried.receive(stream, into, false);
        if !is_nothing(&received) {
            self.record_pause(since.elapsed());
            return received;
        }
        if spins
            && self.pays(since)
            && let Some(received) = self.spin(since, || carried.receive(stream, into, false))
        {
            return received;
        }
        received
    }

    /// True if spinning pays now.
    fn pays(&mut self, now: Instant) -> bool {
        self.recent >= BURST
            && *self.has_spare_cpu.get_or_insert_with(|| available_parallelism().is_ok_and(|count| count.get() > 1))
            && self.budget.allows(now)
    }

    /// Spin for a message since that moment. `None` means that nothing came.
    fn spin(&mut self, since: Instant, mut receive: impl FnMut() -> io::Result<usize>) -> Option<io::Result<usize>> {
        let mut last = since;
        let mut cost = Duration::ZERO;
        loop {
            let received = receive();
            let now = Instant::now();
            cost += now.saturating_duration_since(last).min(MAX_STEP);
            let pause = now.saturating_duration_since(since);
            let found = !is_nothing(&received);
            if found || pause >= SPIN_LIMIT {
                self.budget.account(now, cost, if found { WAKEUP_COST } else { Duration::ZERO });
                if found {
                    self.record_pause(pause);
                    return Some(received);
                }
                self.recent = 0;
                return None;
            }
            last = now;
            // On a machine with few processors, other processes go first.
            yield_now();
        }
    }

    /// Note the pause before a message.
    fn record_pause(&mut self, pause: Duration) {
        self.recent =
            if pause <= SPIN_WINDOW { (self.recent + 1).min(LATE_LIMIT * BURST) } else { self.recent.saturating_sub(BURST) };
    }
}

fn is_nothing(received: &io::Result<usize>) -> bool {
    matches!(received, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn spinning_begins_after_a_burst_and_ends_after_a_pause() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut spin = AdaptiveSpin::default();
        let mut buffer = [0; 16];
        // A busy machine may make any of them late.
        while spin.recent < BURST {
            theirs.write_all(b"x").unwrap();
            assert_eq!(spin.spin_then_receive(&ours, &mut CarriedQueue::default(), &mut buffer, |_| Ok(())).unwrap(), 1);
        }
        theirs.write_all(b"xy").unwrap();
        assert_eq!(spin.spin_then_receive(&ours, &mut CarriedQueue::default(), &mut buffer, |_| Ok(())).unwrap(), 2);
        ours.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
        spin.recent = BURST;
        let error = spin.spin_then_receive(&ours, &mut CarriedQueue::default(), &mut buffer, |_| Ok(())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(spin.recent, 0);
        assert_eq!(
            spin.spin_then_receive(&ours, &mut CarriedQueue::default(), &mut buffer, |_| Ok(())).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        assert_eq!(spin.recent, 0);
        spin.recent = BURST;
        drop(theirs);
        assert_eq!(spin.spin_then_receive(&ours, &mut CarriedQueue::default(), &mut buffer, |_| Ok(())).unwrap(), 0);
    }

    /// The shares of time spent spinning, and of messages found by it. Messages come `pause` after
    /// the last answer, a job takes 20 µs, and waking takes `WAKEUP_COST`.
    fn shares(pause: Duration) -> (f64, f64) {
        let mut budget = SpinBudget::default();
        let begin = Instant::now();
        let mut now = begin;
        let (mut spent, mut found) = (Duration::ZERO, 0);
        for _ in 0..100_000 {
            if budget.allows(now) {
                now += pause;
                budget.account(now, pause, WAKEUP_COST);
                spent += pause;
                found += 1_u32;
            } else {
                now += pause + WAKEUP_COST;
            }
            now += Duration::from_micros(20);
        }
        (spent.as_secs_f64() / (now - begin).as_secs_f64(), f64::from(found) / 100_000.0)
    }

    #[test]
    fn short_pauses_are_always_spun_and_long_ones_within_budget() {
        for pause in [0, 10, 40, 60] {
            assert_eq!(shares(Duration::from_micros(pause)).1, 1.0, "{pause}");
        }
        for pause in [100, 150, 200, 300] {
            let (spent, found) = shares(Duration::from_micros(pause));
            assert!(spent < 0.33, "{pause}: {spent}");
            assert!(found > 0.05, "{pause}: {found}");
            let beyond = spent * (1.0 - WAKEUP_COST.as_secs_f64() / Duration::from_micros(pause).as_secs_f64());
            assert!((0.12..0.13).contains(&beyond), "{pause}: {beyond}");
        }
    }

    /// How many messages in a row, each as late as `SPIN_WINDOW`, are found by spinning from now
    /// on.
    fn burst(budget: &mut SpinBudget, now: &mut Instant) -> u32 {
        let mut found = 0;
        while budget.allows(*now) {
            *now += SPIN_WINDOW;
            budget.account(*now, SPIN_WINDOW, WAKEUP_COST);
            found += 1;
        }
        found
    }

    #[test]
    fn a_burst_is_spun_up_to_the_debt_limit_without_savings() {
        let mut budget = SpinBudget::default();
        let mut now = Instant::now();
        let first = burst(&mut budget, &mut now);
        assert!((10..40).contains(&first), "{first}");
        now += Duration::from_secs(3600);
        assert_eq!(burst(&mut budget, &mut now), first);
        for _ in 0..100_000 {
            now += Duration::from_millis(36);
            budget.account(now, Duration::ZERO, WAKEUP_COST);
        }
        assert!(burst(&mut budget, &mut now).abs_diff(first) <= 1);
    }

    #[test]
    fn missed_spins_add_debt_and_hits_repay_it() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        let mut buffer = [0; 16];
        let mut spin = AdaptiveSpin { recent: BURST, has_spare_cpu: Some(true), ..AdaptiveSpin::default() };
        let before = Instant::now();
        let error = spin.spin_then_receive(&ours, &mut CarriedQueue::default(), &mut buffer, |_| Ok(())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        let owed_until = spin.budget.debt_free_at.unwrap();
        // On a busy machine a spin costs less: other processes have the processor.
        assert!(owed_until > before + SPIN_LIMIT);
        assert!(owed_until <= Instant::now() + (SPIN_LIMIT + MAX_STEP) * REPAYMENT_FACTOR);

        let owed_until = Instant::now() + MAX_DEBT;
        spin.budget.debt_free_at = Some(owed_until);
        spin.recent = BURST;
        theirs.write_all(b"x").unwrap();
        assert_eq!(spin.spin_then_receive(&ours, &mut CarriedQueue::default(), &mut buffer, |_| Ok(())).unwrap(), 1);
        assert!(spin.budget.debt_free_at.unwrap() < owed_until);

        let too_much = Instant::now() + MAX_DEBT + Duration::from_secs(3600);
        spin.budget.debt_free_at = Some(too_much);
        theirs.write_all(b"x").unwrap();
        assert_eq!(spin.spin_then_receive(&ours, &mut CarriedQueue::default(), &mut buffer, |_| Ok(())).unwrap(), 1);
        assert_eq!(spin.budget.debt_free_at, Some(too_much), "looked for it");
    }

    #[test]
    fn only_several_late_messages_end_the_spinning() {
        let mut spin = AdaptiveSpin::default();
        for _ in 0..100 {
            for _ in 0..BURST {
                spin.record_pause(SPIN_WINDOW);
            }
            spin.record_pause(SPIN_LIMIT);
        }
        assert_eq!(spin.recent, 0, "every fifth is too many: what they gain the late one takes");
        for _ in 0..100 {
            spin.record_pause(SPIN_WINDOW);
        }
        for _ in 1..LATE_LIMIT {
            spin.record_pause(SPIN_LIMIT);
            assert!(spin.recent >= BURST);
        }
        spin.record_pause(SPIN_LIMIT);
        assert_eq!(spin.recent, 0);
        spin.record_pause(SPIN_LIMIT);
        assert_eq!(spin.recent, 0);
    }
}

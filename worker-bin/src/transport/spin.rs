//! Adaptive spinning before a blocking read.

#![forbid(unsafe_code)]

use std::io::{self};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::thread::{available_parallelism, yield_now};
use std::time::{Duration, Instant};

use crate::os;

/// Whether the next message is expected at once: then it is looked for a while before this thread sleeps.
///
/// To be woken takes longer than a small job, and meanwhile the processor forgets what it knew of the worker (that of a virtual
/// machine is given to others). It costs the parent too, who has to wake the processor: where several tasks share few workers
/// that is half of a call, and calls that are further apart for it let the workers sleep again. What it costs at most, the
/// [`Budget`] says.
#[derive(Debug, Default)]
pub(super) struct Expectation {
    /// How many more messages of late came soon than did not, the latter counted as a row each.
    quick: u32,
    budget: Budget,
    /// Whether there is a processor for this beside the parent's; found out when it is asked for first.
    pays: Option<bool>,
}

const LOOKED_FOR: Duration = Duration::from_micros(600);

/// Messages with longer pauses in between are not worth a processor. To a worker that sleeps the next call comes later than to one
/// that looks for it, by what it takes to be woken.
const SOON: Duration = Duration::from_micros(300);

/// A single call, or the messages of a start, are no row.
const ROW: u32 = 4;

/// So many late ones in a row end the longest.
const LATE: u32 = 4;

/// What looking may cost: what it saves, and an eighth of a processor beyond that.
///
/// A message that is found saves a wake-up, `WORTH`. A worker that is called every 100 us looks for 100 us to save 60, so without a
/// budget it takes a whole processor however little it works; and where the processors have a quota (`cpu.max`), what one worker
/// takes is missing in the parent. (`pays` sees to quotas of less than two processors: `available_parallelism` counts them.)
#[derive(Debug, Default)]
struct Budget {
    /// When all that looks have cost beyond their worth is paid back; `None`: nothing has been looked for yet.
    clear_at: Option<Instant>,
}

/// What a message that was found may have cost. A call that wakes its worker takes 50 to 75 us longer (docs/speed.md).
const WORTH: Duration = Duration::from_micros(60);

/// How many times what looks have cost beyond their worth has to pass until that is paid back.
const PAID_BACK_IN: u32 = 8;

/// What may be owed before a look begins: 4 ms of a processor, so that a short burst of calls is looked for.
const ALLOWANCE: Duration = Duration::from_millis(4).saturating_mul(PAID_BACK_IN);

/// One turn of looking takes about a microsecond. In one that takes more than this, others had the processor.
const TURN: Duration = Duration::from_micros(10);

impl Budget {
    fn allows(&self, now: Instant) -> bool {
        self.clear_at.is_none_or(|at| at.saturating_duration_since(now) <= ALLOWANCE)
    }

    /// Looks that cost so much have found something that is worth so much. What is saved pays back what is owed and is no stock.
    fn settle(&mut self, now: Instant, cost: Duration, worth: Duration) {
        let from = self.clear_at.map_or(now, |at| at.max(now));
        self.clear_at = if cost > worth {
            from.checked_add((cost - worth) * PAID_BACK_IN)
        } else {
            from.checked_sub((worth - cost) * PAID_BACK_IN)
        };
    }
}

impl Expectation {
    /// `sleep` waits until there is something to read.
    pub(super) fn receive(
        &mut self,
        stream: &mut UnixStream,
        into: &mut [u8],
        sleep: impl FnOnce(&UnixStream) -> io::Result<()>,
    ) -> io::Result<usize> {
        let since = Instant::now();
        if self.quick >= ROW
            && *self.pays.get_or_insert_with(|| available_parallelism().is_ok_and(|count| count.get() > 1))
            && self.budget.allows(since)
        {
            let mut last = since;
            let mut cost = Duration::ZERO;
            loop {
                let received = os::socket::receive_at_once(stream.as_fd(), into);
                let now = Instant::now();
                cost += now.saturating_duration_since(last).min(TURN);
                let pause = now.saturating_duration_since(since);
                let found = !matches!(&received, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
                if found || pause >= LOOKED_FOR {
                    self.budget.settle(now, cost, if found { WORTH } else { Duration::ZERO });
                    if found {
                        self.note(pause);
                        return received;
                    }
                    break;
                }
                last = now;
                // Where there are fewer processors than processes that want one, those go first.
                yield_now();
            }
            self.quick = 0;
            sleep(stream)?;
            return io::Read::read(stream, into);
        }
        sleep(stream)?;
        let received = io::Read::read(stream, into);
        self.note(since.elapsed());
        received
    }

    /// A message has come after such a pause.
    fn note(&mut self, pause: Duration) {
        self.quick = if pause <= SOON { (self.quick + 1).min(LATE * ROW) } else { self.quick.saturating_sub(ROW) };
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn the_next_message_is_looked_for_after_a_row_of_quick_ones_and_not_after_a_pause() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        let mut expectation = Expectation::default();
        let mut buffer = [0; 16];
        // A busy machine may make any of them late.
        while expectation.quick < ROW {
            theirs.write_all(b"x").unwrap();
            assert_eq!(expectation.receive(&mut ours, &mut buffer, |_| Ok(())).unwrap(), 1);
        }
        theirs.write_all(b"xy").unwrap();
        assert_eq!(expectation.receive(&mut ours, &mut buffer, |_| Ok(())).unwrap(), 2);
        ours.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
        expectation.quick = ROW;
        let error = expectation.receive(&mut ours, &mut buffer, |_| Ok(())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(expectation.quick, 0);
        assert_eq!(expectation.receive(&mut ours, &mut buffer, |_| Ok(())).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(expectation.quick, 0);
        expectation.quick = ROW;
        drop(theirs);
        assert_eq!(expectation.receive(&mut ours, &mut buffer, |_| Ok(())).unwrap(), 0);
    }

    /// What a worker spends on looking, and how many of its messages it looks for: shares of the time and of the messages. They
    /// come `pause` after the last answer, the job takes 20 us, and a worker that sleeps is woken in `WORTH`.
    fn shares(pause: Duration) -> (f64, f64) {
        let mut budget = Budget::default();
        let begin = Instant::now();
        let mut now = begin;
        let (mut spent, mut found) = (Duration::ZERO, 0);
        for _ in 0..100_000 {
            if budget.allows(now) {
                now += pause;
                budget.settle(now, pause, WORTH);
                spent += pause;
                found += 1_u32;
            } else {
                now += pause + WORTH;
            }
            now += Duration::from_micros(20);
        }
        (spent.as_secs_f64() / (now - begin).as_secs_f64(), f64::from(found) / 100_000.0)
    }

    #[test]
    fn what_is_worth_looking_for_is_always_looked_for_and_the_rest_within_a_budget() {
        for pause in [0, 10, 40, 60] {
            assert_eq!(shares(Duration::from_micros(pause)).1, 1.0, "{pause}");
        }
        for pause in [100, 150, 200, 300] {
            let (spent, found) = shares(Duration::from_micros(pause));
            assert!(spent < 0.33, "{pause}: {spent}");
            assert!(found > 0.05, "{pause}: {found}");
            let beyond = spent * (1.0 - WORTH.as_secs_f64() / Duration::from_micros(pause).as_secs_f64());
            assert!((0.12..0.13).contains(&beyond), "{pause}: {beyond}");
        }
    }

    /// How many messages in a row, as late as any that come soon, are looked for from now on.
    fn burst(budget: &mut Budget, now: &mut Instant) -> u32 {
        let mut found = 0;
        while budget.allows(*now) {
            *now += SOON;
            budget.settle(*now, SOON, WORTH);
            found += 1;
        }
        found
    }

    #[test]
    fn a_burst_is_looked_for_until_the_allowance_is_spent_and_what_was_saved_before_is_no_stock() {
        let mut budget = Budget::default();
        let mut now = Instant::now();
        let first = burst(&mut budget, &mut now);
        assert!((10..40).contains(&first), "{first}");
        now += Duration::from_secs(3600);
        assert_eq!(burst(&mut budget, &mut now), first);
        for _ in 0..100_000 {
            now += Duration::from_millis(36);
            budget.settle(now, Duration::ZERO, WORTH);
        }
        assert!(burst(&mut budget, &mut now).abs_diff(first) <= 1);
    }

    #[test]
    fn looks_in_vain_are_owed_those_that_find_something_pay_back_and_none_begins_with_too_much_owed() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        let mut buffer = [0; 16];
        let mut expectation = Expectation { quick: ROW, pays: Some(true), ..Expectation::default() };
        let before = Instant::now();
        let error = expectation.receive(&mut ours, &mut buffer, |_| Ok(())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        let owed_until = expectation.budget.clear_at.unwrap();
        // On a busy machine a look costs less: others have the processor meanwhile.
        assert!(owed_until > before + LOOKED_FOR);
        assert!(owed_until <= Instant::now() + (LOOKED_FOR + TURN) * PAID_BACK_IN);

        let owed_until = Instant::now() + ALLOWANCE;
        expectation.budget.clear_at = Some(owed_until);
        expectation.quick = ROW;
        theirs.write_all(b"x").unwrap();
        assert_eq!(expectation.receive(&mut ours, &mut buffer, |_| Ok(())).unwrap(), 1);
        assert!(expectation.budget.clear_at.unwrap() < owed_until);

        let too_much = Instant::now() + ALLOWANCE + Duration::from_secs(3600);
        expectation.budget.clear_at = Some(too_much);
        theirs.write_all(b"x").unwrap();
        assert_eq!(expectation.receive(&mut ours, &mut buffer, |_| Ok(())).unwrap(), 1);
        assert_eq!(expectation.budget.clear_at, Some(too_much), "looked for it");
    }

    #[test]
    fn a_late_message_now_and_then_does_not_end_the_looking_and_a_row_of_late_ones_does() {
        let mut expectation = Expectation::default();
        for _ in 0..100 {
            for _ in 0..ROW {
                expectation.note(SOON);
            }
            expectation.note(LOOKED_FOR);
        }
        assert_eq!(expectation.quick, 0, "every fifth is too many: what they gain the late one takes");
        for _ in 0..100 {
            expectation.note(SOON);
        }
        for _ in 1..LATE {
            expectation.note(LOOKED_FOR);
            assert!(expectation.quick >= ROW);
        }
        expectation.note(LOOKED_FOR);
        assert_eq!(expectation.quick, 0);
        expectation.note(LOOKED_FOR);
        assert_eq!(expectation.quick, 0);
    }
}

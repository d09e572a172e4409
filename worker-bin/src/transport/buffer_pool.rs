//! Memory for large arguments, and what is kept of it for the next call.
//!
//! The system fills every page with zeros before a process may write to it, which for a large array takes half as long again as
//! to receive it. So memory that a job has let go of stays for the next call, if that comes at once:
//! * no longer than [`KEPT_FOR`], and no more of it than [`LIMIT`] in all;
//! * never while a job runs: what the call that has come does not use is given back before the job begins;
//! * it does not count as memory that the worker holds, because it is about to be given back.

#![forbid(unsafe_code)]

use std::fmt;
use std::mem::MaybeUninit;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::os::memory::Mapping;

/// How long a worker waits for the next call before it gives the memory back. A program that calls again and again does so
/// within a fraction of this.
pub const KEPT_FOR: Duration = Duration::from_secs(5);

/// The most that is kept, in bytes.
const LIMIT: usize = 1 << 29;

/// No more pieces than this are kept: to look for one that fits shall cost nothing.
const PIECES: usize = 16;

/// The memory that is kept. The regions that came from here come back when they are dropped.
#[derive(Debug, Clone, Default)]
pub struct Regions(Arc<Mutex<Vec<Mapping>>>);

impl Regions {
    /// Memory of so many bytes: some that is kept, or new. `None`: there is not so much.
    pub fn take(&self, length: usize) -> Option<Region> {
        let mut kept = self.lock();
        // The smallest that is large enough, but none of which more than half would lie idle.
        let fits = |mapping: &Mapping| (length..=length.saturating_mul(2)).contains(&mapping.length());
        let best = kept.iter().enumerate().filter(|(_, mapping)| fits(mapping)).min_by_key(|(_, mapping)| mapping.length());
        let best = best.map(|(index, _)| index);
        let found = best.map(|index| kept.swap_remove(index));
        drop(kept);
        let mapping = match found {
            Some(mapping) => mapping,
            None => Mapping::new(length)?,
        };
        Some(Region { mapping: Some(mapping), length, home: self.clone() })
    }

    /// How many bytes are kept.
    pub fn kept(&self) -> u64 {
        self.lock().iter().map(|mapping| mapping.length() as u64).sum()
    }

    /// Gives back to the system what is kept.
    pub fn release(&self) {
        let kept = std::mem::take(&mut *self.lock());
        drop(kept);
    }

    fn keep(&self, mapping: Mapping) {
        // In a process that a job forked off while another thread held the lock nobody would ever let go of it.
        let Ok(mut kept) = self.0.try_lock() else { return };
        let all: usize = kept.iter().map(Mapping::length).sum();
        if kept.len() < PIECES && all.saturating_add(mapping.length()) <= LIMIT {
            kept.push(mapping);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Mapping>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Memory that one object has to itself. When it is dropped it may be kept for the next.
pub struct Region {
    /// `None` only while it is dropped.
    mapping: Option<Mapping>,
    length: usize,
    home: Regions,
}

impl Region {
    /// The bytes; those that have not been written to hold anything.
    pub fn memory(&mut self) -> &mut [MaybeUninit<u8>] {
        let memory = self.mapping.as_mut().map(Mapping::memory).unwrap_or_default();
        memory.get_mut(..self.length).unwrap_or_default()
    }

    pub fn length(&self) -> usize {
        self.length
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if let Some(mapping) = self.mapping.take() {
            self.home.keep(mapping);
        }
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Region({})", self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEGABYTE: usize = 1 << 20;

    #[test]
    fn what_is_dropped_is_there_for_the_next_that_it_fits() {
        let regions = Regions::default();
        let mut first = regions.take(4 * MEGABYTE).unwrap();
        first.memory().fill(MaybeUninit::new(7));
        let place = first.memory().as_ptr();
        drop(first);
        assert_eq!(regions.kept(), 4 << 20);
        assert_ne!(regions.take(MEGABYTE).unwrap().memory().as_ptr(), place, "most of it would lie idle");
        regions.release();
        drop(regions.take(4 * MEGABYTE));
        let place = regions.take(4 * MEGABYTE - 1).unwrap().memory().as_ptr();
        let mut again = regions.take(3 * MEGABYTE).unwrap();
        assert_eq!(again.memory().as_ptr(), place);
        assert_eq!(again.memory().len(), 3 * MEGABYTE);
        assert_eq!(regions.kept(), 0);
    }

    #[test]
    fn two_at_once_have_nothing_in_common() {
        let regions = Regions::default();
        let (mut one, mut other) = (regions.take(MEGABYTE).unwrap(), regions.take(MEGABYTE).unwrap());
        one.memory().fill(MaybeUninit::new(1));
        other.memory().fill(MaybeUninit::new(2));
        assert_ne!(one.memory().as_ptr(), other.memory().as_ptr());
        drop((one, other));
        assert_eq!(regions.kept(), 2 << 20);
        regions.release();
        assert_eq!(regions.kept(), 0);
    }

    #[test]
    fn no_more_is_kept_than_its_bounds_allow() {
        let regions = Regions::default();
        let many: Vec<_> = (0..2 * PIECES).map(|_| regions.take(MEGABYTE).unwrap()).collect();
        drop(many);
        assert_eq!(regions.kept(), (PIECES * MEGABYTE) as u64);
        regions.release();
        // Never written to, so that they take no memory.
        let large: Vec<_> = (0..3).map(|_| regions.take(LIMIT / 2).unwrap()).collect();
        drop(large);
        assert_eq!(regions.kept(), LIMIT as u64);
    }

    #[test]
    fn more_than_there_is_is_refused() {
        assert!(Regions::default().take(usize::MAX / 2).is_none());
    }
}

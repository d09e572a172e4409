//! Reuse memory between large arguments.
//!
//! The kernel zeroes fresh pages, which adds about 50 % to the time needed to receive a large
//! array. Memory that a job has released is kept for the next call:
//! * for [`KEEP_TIMEOUT`] at most, and [`MAX_KEPT`] bytes in all;
//! * never while a job runs: the rest is released before the job begins;
//! * without counting as the worker's memory use.

#![forbid(unsafe_code)]

use std::fmt;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::os::memory::Mapping;

/// Time that an idle worker keeps memory. A program in a loop calls again within a fraction of it.
pub const KEEP_TIMEOUT: Duration = Duration::from_secs(5);

/// Most bytes that are kept.
const MAX_KEPT: usize = 1 << 29;

/// Most pieces that are kept, so that a search costs nothing.
const MAX_PIECES: usize = 16;

/// The memory that is kept. Buffers taken from the pool return to it when they are dropped.
#[derive(Debug, Clone, Default)]
pub struct BufferPool(Arc<Kept>);

#[derive(Debug, Default)]
struct Kept {
    mappings: Mutex<Vec<Mapping>>,
    /// True if there may be one. Most workers keep nothing, and do not lock for that.
    may_exist: AtomicBool,
}

impl BufferPool {
    /// Return memory of this length, reused or new. `None` means out of memory.
    pub fn take(&self, length: usize) -> Option<PooledBuffer> {
        let mut kept = self.lock();
        // The smallest that fits, but none that would be less than half used.
        let fits = |mapping: &Mapping| (length..=length.saturating_mul(2)).contains(&mapping.length());
        let best = kept.iter().enumerate().filter(|(_, mapping)| fits(mapping)).min_by_key(|(_, mapping)| mapping.length());
        let best = best.map(|(index, _)| index);
        let found = best.map(|index| kept.swap_remove(index));
        drop(kept);
        let mapping = match found {
            Some(mapping) => mapping,
            None => Mapping::new(length)?,
        };
        Some(PooledBuffer { mapping: Some(mapping), length, home: self.clone() })
    }

    /// Bytes that are kept.
    #[inline]
    pub fn kept(&self) -> u64 {
        if self.0.may_exist.load(Ordering::Relaxed) { self.count() } else { 0 }
    }

    /// Return the kept memory to the system.
    #[inline]
    pub fn release(&self) {
        if self.0.may_exist.load(Ordering::Relaxed) {
            self.release_all();
        }
    }

    #[cold]
    fn count(&self) -> u64 {
        self.lock().iter().map(|mapping| mapping.length() as u64).sum()
    }

    #[cold]
    fn release_all(&self) {
        self.0.may_exist.store(false, Ordering::Relaxed);
        let kept = std::mem::take(&mut *self.lock());
        drop(kept);
    }

    fn keep(&self, mapping: Mapping) {
        // Another thread may have held the lock at a fork; the copy must not wait for it.
        let Ok(mut kept) = self.0.mappings.try_lock() else { return };
        let all: usize = kept.iter().map(Mapping::length).sum();
        if kept.len() < MAX_PIECES && all.saturating_add(mapping.length()) <= MAX_KEPT {
            kept.push(mapping);
            self.0.may_exist.store(true, Ordering::Relaxed);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Mapping>> {
        self.0.mappings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Memory owned by one object. A drop may return it to the pool.
pub struct PooledBuffer {
    /// `None` only during the drop.
    mapping: Option<Mapping>,
    length: usize,
    home: BufferPool,
}

impl PooledBuffer {
    /// The bytes. Unwritten ones have any value.
    pub fn memory(&mut self) -> &mut [MaybeUninit<u8>] {
        let memory = self.mapping.as_mut().map(Mapping::memory).unwrap_or_default();
        memory.get_mut(..self.length).unwrap_or_default()
    }

    pub fn length(&self) -> usize {
        self.length
    }
}

impl Drop for PooledBuffer {
    fn drop(&mut self) {
        if let Some(mapping) = self.mapping.take() {
            self.home.keep(mapping);
        }
    }
}

impl fmt::Debug for PooledBuffer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "PooledBuffer({})", self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEGABYTE: usize = 1 << 20;

    #[test]
    fn what_is_dropped_is_there_for_the_next_that_it_fits() {
        let pool = BufferPool::default();
        let mut first = pool.take(4 * MEGABYTE).unwrap();
        first.memory().fill(MaybeUninit::new(7));
        let place = first.memory().as_ptr();
        drop(first);
        assert_eq!(pool.kept(), 4 << 20);
        assert_ne!(pool.take(MEGABYTE).unwrap().memory().as_ptr(), place, "most of it would lie idle");
        pool.release();
        drop(pool.take(4 * MEGABYTE));
        let place = pool.take(4 * MEGABYTE - 1).unwrap().memory().as_ptr();
        let mut again = pool.take(3 * MEGABYTE).unwrap();
        assert_eq!(again.memory().as_ptr(), place);
        assert_eq!(again.memory().len(), 3 * MEGABYTE);
        assert_eq!(pool.kept(), 0);
    }

    #[test]
    fn two_at_once_have_nothing_in_common() {
        let pool = BufferPool::default();
        let (mut one, mut other) = (pool.take(MEGABYTE).unwrap(), pool.take(MEGABYTE).unwrap());
        one.memory().fill(MaybeUninit::new(1));
        other.memory().fill(MaybeUninit::new(2));
        assert_ne!(one.memory().as_ptr(), other.memory().as_ptr());
        drop((one, other));
        assert_eq!(pool.kept(), 2 << 20);
        pool.release();
        assert_eq!(pool.kept(), 0);
    }

    #[test]
    fn no_more_is_kept_than_its_bounds_allow() {
        let pool = BufferPool::default();
        let many: Vec<_> = (0..2 * MAX_PIECES).map(|_| pool.take(MEGABYTE).unwrap()).collect();
        drop(many);
        assert_eq!(pool.kept(), (MAX_PIECES * MEGABYTE) as u64);
        pool.release();
        // Never written to, so that they take no memory.
        let large: Vec<_> = (0..3).map(|_| pool.take(MAX_KEPT / 2).unwrap()).collect();
        drop(large);
        assert_eq!(pool.kept(), MAX_KEPT as u64);
    }

    #[test]
    fn more_than_there_is_is_refused() {
        assert!(BufferPool::default().take(usize::MAX / 2).is_none());
    }
}

//! The parent process.

#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;

use crate::os;
use crate::process::family;

/// A process by its pid.
#[derive(Debug)]
pub struct Parent {
    pid: u32,
}

impl Parent {
    /// `None`: this process's parent is another one by now, so the one that was meant has ended.
    pub fn watch(pid: u32) -> Option<Self> {
        (std::os::unix::process::parent_id() == pid).then_some(Self { pid })
    }

    /// The number that it is known by.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// An orphan always has another parent.
    pub fn is_dead(&self) -> bool {
        std::os::unix::process::parent_id() != self.pid
    }

    /// Whether it is dead, or on its way there. A process that ends closes its descriptors first, which wakes its workers, and its
    /// children get another parent later; on a busy machine they may have come to their end in between.
    pub fn is_ending(&self) -> bool {
        // The second time: the number may have been another process's by then.
        self.is_dead() || family::is_ending(self.pid) || self.is_dead()
    }

    /// A descriptor of it that only wakes whoever waits for it. To be followed by a look at [`Self::is_dead`]: it may be that of
    /// another process, which has got the number since.
    pub(super) fn open(&self) -> Option<OwnedFd> {
        os::process::open_process(self.pid)
    }
}

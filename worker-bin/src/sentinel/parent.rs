//! The parent process.

#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;

use crate::os;
use crate::process::family;

/// The parent, by its process ID.
#[derive(Debug)]
pub struct Parent {
    pid: u32,
}

impl Parent {
    /// Return `None` if this process has another parent by now: then the one meant has died.
    pub fn watch(pid: u32) -> Option<Self> {
        (std::os::unix::process::parent_id() == pid).then_some(Self { pid })
    }

    /// Process ID.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// True if the parent is dead: an orphan has another parent.
    pub fn is_dead(&self) -> bool {
        std::os::unix::process::parent_id() != self.pid
    }

    /// True if the parent is dead or exiting. An exiting process closes its descriptors first,
    /// which wakes its workers; its children get another parent later. On a busy machine the
    /// workers may have exited in between.
    pub fn is_ending(&self) -> bool {
        // Check twice: the process ID may have been reused in between.
        self.is_dead() || family::is_ending(self.pid) || self.is_dead()
    }

    /// Open a pidfd, which only wakes the caller. Check [`Self::is_dead`] afterwards: the process
    /// ID may have been reused.
    pub(super) fn open(&self) -> Option<OwnedFd> {
        os::process::open_process(self.pid)
    }
}

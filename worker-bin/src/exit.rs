//! The exit codes of PROTOCOL.md, and how a session can end.

#![forbid(unsafe_code)]

/// The command line was wrong, or descriptor 3 is not the parent's socket.
pub const WRONG_ARGUMENTS: i32 = 2;
/// The parent died while the worker was busy; the native thread ended it.
pub const ORPHANED: i32 = 6;
/// A job passed its context's `memory_limit`; the native thread ended it.
pub const MEMORY_LIMIT: i32 = 7;
/// Python's own code for «flushing standard output failed at exit».
pub const FLUSH_FAILED: i32 = 120;

/// How a session came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    Retired,
    ParentClosed,
    Refused,
    SetupFailed,
    Aborted,
    /// No end: this process is a worker now, which a template has forked, and has a session of its own before it.
    Forked,
}

impl Ending {
    pub fn code(self) -> i32 {
        match self {
            Self::Retired | Self::ParentClosed | Self::Forked => 0,
            Self::Refused => 3,
            Self::SetupFailed => 4,
            Self::Aborted => 5,
        }
    }
}

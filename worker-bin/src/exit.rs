//! The exit codes of PROTOCOL.md, and the endings of a session.

#![forbid(unsafe_code)]

/// Wrong command line, or descriptor 3 is not the parent's socket.
pub const WRONG_ARGUMENTS: i32 = 2;
/// The parent died while the worker was busy; the native thread ended it.
pub const ORPHANED: i32 = 6;
/// A job exceeded its context's `memory_limit`; the native thread ended it.
pub const MEMORY_LIMIT: i32 = 7;
/// Python could not flush standard output at exit; Python's own code.
pub const FLUSH_FAILED: i32 = 120;

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    Retired,
    ParentClosed,
    Refused,
    SetupFailed,
    Aborted,
    /// This process is a freshly forked worker, which begins its own session.
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

//! The front of the record (PROTOCOL.md, "The record"), which the worker shares with its parent.

#![forbid(unsafe_code)]

/// The length of the front in bytes. Text follows it.
pub const FRONT_SIZE: u64 = 1536;

/// The same in integers of eight bytes.
pub const FRONT_WORDS: usize = 192;

/// The place of the ID of the running call; 0 means none.
pub const RUNNING: usize = 115;

/// The place of the number of jobs that have been answered.
pub const JOBS: usize = 116;

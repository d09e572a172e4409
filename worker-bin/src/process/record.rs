//! What is written down before the worker dies, for the parent to read afterwards.
//!
//! The record is a file without a name (memfd_create(2)) that the parent makes and keeps open: it goes with the parent's
//! descriptor, however either of them ends, so nothing is ever left in a temporary directory. Into it write, each at the end:
//! Python's `faulthandler` (the stacks of all threads at a fault), a panic of this program, and the native thread when it
//! ends a job for its memory.

#![forbid(unsafe_code)]

use std::io::Write as _;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::os;

#[derive(Debug)]
pub struct Record {
    file: OwnedFd,
    identity: Option<os::descriptors::Identity>,
}

/// The line that explains a worker which was ended for its memory. The parent knows it by its first word.
#[derive(Debug, Serialize)]
struct MemoryLimit {
    memory_limit: u64,
    reached: u64,
}

/// The front of the file, in bytes: there a chunk of `map` counts its items (PROTOCOL.md, «The record»). Text comes behind it.
pub const PROGRESS_SIZE: u64 = 24;

/// How long the stacks of all threads may take to be written.
const STACK_PATIENCE: Duration = Duration::from_millis(150);
/// A dump that has not grown for so long is whole: it is written a line at a time by a thread that does nothing else.
const STACK_SETTLED: Duration = Duration::from_millis(15);

impl Record {
    pub fn new(file: OwnedFd) -> Self {
        let identity = os::descriptors::identity_of(file.as_fd());
        Self { file, identity }
    }

    /// As `Outlet::leave_unless_there`.
    pub fn leave_unless_there(&self) {
        if !self.is_there() {
            os::descriptors::close_in_own_table(self.descriptor());
        }
    }

    fn is_there(&self) -> bool {
        os::descriptors::identity_of(self.file.as_fd()) == self.identity
    }

    /// The number to hand to `faulthandler`.
    pub fn descriptor(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Says why the native thread ends this process, and which Python line each thread is at.
    ///
    /// The stacks cannot be read from here: the thread that runs Python writes them itself, in the handler of a signal that
    /// `faulthandler` was told to answer, wherever it is, in C code too. If it does not (the job has blocked the signal)
    /// there are none.
    pub fn memory_limit(&self, limit: u64, reached: u64) {
        if let Ok(line) = serde_json::to_string(&MemoryLimit { memory_limit: limit, reached }) {
            self.write(&format!("{line}\n"));
        }
        let begun = Instant::now();
        let mut grown = begun;
        let mut size = self.size();
        let empty = size;
        os::signals::ask_for_stacks();
        while begun.elapsed() < STACK_PATIENCE && (size == empty || grown.elapsed() < STACK_SETTLED) {
            thread::sleep(Duration::from_millis(1));
            let now = self.size();
            if now != size {
                (size, grown) = (now, Instant::now());
            }
        }
    }

    /// Not into what a job may have opened under the same number.
    fn write(&self, text: &str) {
        if self.is_there() {
            let _ = os::descriptors::append(self.file.as_fd(), text.as_bytes());
        }
    }

    fn size(&self) -> u64 {
        os::descriptors::size_of(self.descriptor())
    }
}

/// A panic is an error in this program. It is written down, and the process ends by SIGABRT, which `faulthandler` answers:
/// a thread that unwound instead would leave a worker that nobody watches, or a session that nobody serves.
pub fn report_panics(record: &'static Record) {
    std::panic::set_hook(Box::new(move |panic| {
        let text = format!("trio-offload-worker panicked, which is an error in trio-offload: {panic}\n");
        record.write(&text);
        let _ = std::io::stderr().write_all(text.as_bytes());
        std::process::abort();
    }));
}

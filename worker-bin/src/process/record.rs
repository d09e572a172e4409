//! The record of a dying worker, for the parent.
//!
//! The record is an anonymous file (memfd_create(2)) that the parent creates and keeps open. It
//! disappears with the parent's descriptor, and leaves the file system clean. Three writers append
//! to it: Python's `faulthandler` (the stacks of all threads), a panic of this program, and the
//! native thread at the memory limit.

#![forbid(unsafe_code)]

use std::io::Write as _;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::os;

/// Time for writing the stacks of all threads.
const STACK_TIMEOUT: Duration = Duration::from_millis(150);

/// Time without growth after which the stacks are complete: one thread writes them line by line.
const STACK_SETTLED: Duration = Duration::from_millis(15);

#[derive(Debug)]
pub struct Record {
    file: OwnedFd,
    identity: Option<os::descriptors::Identity>,
}

/// The line for a worker that exceeded its memory limit. The parent recognises its first word.
#[derive(Debug, Serialize)]
struct MemoryLimit {
    memory_limit: u64,
    reached: u64,
}

impl Record {
    pub fn new(file: OwnedFd) -> Self {
        let identity = os::descriptors::identity_of(file.as_fd());
        Self { file, identity }
    }

    /// As `ReportSender::close_unless_intact`.
    pub fn close_unless_intact(&self) {
        if !self.is_intact() {
            os::descriptors::close_in_own_table(self.descriptor());
        }
    }

    fn is_intact(&self) -> bool {
        os::descriptors::identity_of(self.file.as_fd()) == self.identity
    }

    /// The descriptor for `faulthandler`.
    pub fn descriptor(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Write why the native thread ends this process, and the Python stacks.
    ///
    /// The Python thread writes its stacks itself, in the handler of a signal that `faulthandler`
    /// has installed; that works in C code too. A job that has blocked the signal leaves none.
    pub fn memory_limit(&self, limit: u64, reached: u64) {
        if let Ok(line) = serde_json::to_string(&MemoryLimit { memory_limit: limit, reached }) {
            self.write(&format!("{line}\n"));
        }
        let begun = Instant::now();
        let mut grown = begun;
        let mut size = self.size();
        let empty = size;
        os::signals::ask_for_stacks();
        while begun.elapsed() < STACK_TIMEOUT && (size == empty || grown.elapsed() < STACK_SETTLED) {
            thread::sleep(Duration::from_millis(1));
            let now = self.size();
            if now != size {
                (size, grown) = (now, Instant::now());
            }
        }
    }

    /// Write unless a job has opened its own file under this number.
    fn write(&self, text: &str) {
        if self.is_intact() {
            let _ = os::descriptors::append(self.file.as_fd(), text.as_bytes());
        }
    }

    fn size(&self) -> u64 {
        os::descriptors::size_of(self.descriptor())
    }
}

/// Write a panic to the record and abort; `faulthandler` handles SIGABRT. An unwinding thread would
/// leave a worker without a sentinel or a session.
pub fn report_panics(record: &'static Record) {
    std::panic::set_hook(Box::new(move |panic| {
        let text = format!("trio-offload-worker panicked, which is an error in trio-offload: {panic}\n");
        record.write(&text);
        let _ = std::io::stderr().write_all(text.as_bytes());
        std::process::abort();
    }));
}

//! Copies of this process that a job forks: they lose the socket and the record.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use crate::os::fork::handlers;

static SOCKET_TO_DROP: AtomicI32 = AtomicI32::new(-1);
static RECORD_TO_REPLACE: AtomicI32 = AtomicI32::new(-1);
static FORKED: AtomicBool = AtomicBool::new(false);

/// Make children of this process close the socket before they run: a child that kept it would hide
/// this process's death. They lose the record too, since the way a copy dies is not the worker's.
pub fn drop_in_children(socket: BorrowedFd<'_>, record: BorrowedFd<'_>) -> io::Result<()> {
    SOCKET_TO_DROP.store(socket.as_raw_fd(), Ordering::Relaxed);
    RECORD_TO_REPLACE.store(record.as_raw_fd(), Ordering::Relaxed);
    // SAFETY: the function is `extern "C"`, lives as long as the program, and is async-signal-safe
    // (signal-safety(7)).
    let status = unsafe { libc::pthread_atfork(None, None, Some(after_fork_in_child)) };
    if status == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(status)) }
}

/// True in a copy that a job forked. It must not use the protocol.
pub fn is_forked_copy() -> bool {
    FORKED.load(Ordering::Relaxed)
}

extern "C" fn after_fork_in_child() {
    if handlers::is_forking() {
        // This is a worker that a template forks; it has its own socket and record.
        return;
    }
    FORKED.store(true, Ordering::Relaxed);
    let socket = SOCKET_TO_DROP.swap(-1, Ordering::Relaxed);
    if socket >= 0 {
        // SAFETY: the child's copy of the descriptor; its owner in this copy of the memory is never
        // used, because a forked copy exits by `exit_now`.
        unsafe { libc::close(socket) };
    }
    let record = RECORD_TO_REPLACE.swap(-1, Ordering::Relaxed);
    if record >= 0 {
        // Not closed: Python's `faulthandler` has the number, and would write into the next file
        // that the copy opens.
        // SAFETY: open and dup2 take a C string and integers, and may be called between fork and
        // exec (signal-safety(7)).
        unsafe {
            let null = libc::open(c"/dev/null".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            if null >= 0 {
                libc::dup2(null, record);
                libc::fcntl(record, libc::F_SETFD, libc::FD_CLOEXEC);
                libc::close(null);
            }
        }
    }
}

//! Fork a worker off a template: as a child of the template's parent, with everything that
//! `fork(3)` does.
//!
//! `clone(2)` with `CLONE_PARENT` creates a sibling. So the parent program reaps each worker itself
//! and learns its exact ending, a worker's `getppid` is the program, and a template may die without
//! an effect on its workers. The alternative is the C library's `fork` and a template that reports
//! endings. It loses the ending of every worker that outlives its template, and needs a second way
//! of reaping and watching in the parent.
//!
//! The C library's `fork` does more than the system call. These steps are done here:
//! * The control block contains the main thread's ID (used by `pthread_kill`, robust and
//!   error-checking mutexes, and more before glibc 2.34). `CLONE_CHILD_SETTID` writes the new ID
//!   there, as in `fork`. `cached_ids.rs` finds the place. A worker with wrong IDs exits at once.
//! * The list of robust mutexes is registered again (`set_robust_list(2)`).
//! * The handlers of `pthread_atfork(3)` run; OpenBLAS stops its threads in one. The C library does
//!   not expose them, so `handlers.rs` records them when they are registered: its symbol comes
//!   before the library's. Handlers of an unloaded library are forgotten at the same moment as in
//!   the C library, by an exit handler of that library (`__cxa_atexit`).
//! * With one thread the C library's locks are free. If there are allowed threads
//!   ([`AllowedThreads`]), the fork waits until they sleep: a sleeping thread is not inside an
//!   allocation. The C library's notes about them stay in the worker. Their stacks are not reused,
//!   and a call that waits for all threads (`setuid(2)`) finds that they are gone.

mod cached_ids;
pub(super) mod handlers;
pub mod pid_slot;
pub mod threads;

use std::ffi::{c_int, c_void};
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::sync::OnceLock;

use thiserror::Error;

use crate::os::fork::cached_ids::CachedIds;
use crate::os::fork::handlers::Prepared;
use crate::os::fork::pid_slot::PidSlot;
use crate::os::fork::threads::{AllowedThreads, refuse_threads};

/// The two processes after a fork.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Template,
    Worker,
}

#[derive(Debug, Error)]
pub enum ForkError {
    #[error("the template has {} beside the one that forks ({}), and a process with threads cannot be forked safely", count(.0.len()), .0.join(", "))]
    Threads(Vec<String>),
    #[error("the system cannot fork a worker off the template: {0}")]
    System(io::Error),
    #[error(
        "a worker cannot be forked with this C library, because the place of its thread ID is unknown ({0}). Use WorkerType.SPAWN, and report this"
    )]
    UnknownLibrary(String),
    #[error("a forkserver needs Linux and the GNU C library (glibc); use WorkerType.SPAWN")]
    Unsupported,
}

fn count(threads: usize) -> String {
    format!("{threads} {}", if threads == 1 { "thread" } else { "threads" })
}

/// Fork a worker. The kernel writes its process ID to the record before it runs at all. In the
/// worker, `begin` is called first, the process ID is written to `pid_pipe` and removed from the
/// record, and then `in_worker` is called. Call this between Python's own preparation for a fork
/// and its cleanup.
pub fn fork_sibling(
    pid_pipe: BorrowedFd<'_>,
    pid_slot: Option<PidSlot>,
    allowed: &AllowedThreads,
    begin: fn(),
    in_worker: impl FnOnce(),
) -> Result<Side, ForkError> {
    let handlers = Prepared::new();
    refuse_threads(allowed)?;
    let side = clone_sibling(pid_pipe, pid_slot, begin)?;
    if side == Side::Worker {
        in_worker();
    }
    handlers.finish(side);
    Ok(side)
}

/// Check whether this process could fork now, after all handlers have prepared.
pub fn dry_run(allowed: &AllowedThreads) -> Result<(), ForkError> {
    let _handlers = Prepared::new();
    refuse_threads(allowed)
}

/// The places are the same at every fork.
static CACHED_IDS: OnceLock<CachedIds> = OnceLock::new();

fn cached_ids() -> Result<CachedIds, ForkError> {
    if let Some(ids) = CACHED_IDS.get() {
        return Ok(*ids);
    }
    let found = CachedIds::find().ok_or_else(|| ForkError::UnknownLibrary(c_library()))?;
    Ok(*CACHED_IDS.get_or_init(|| found))
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn clone_sibling(pid_pipe: BorrowedFd<'_>, pid_slot: Option<PidSlot>, begin: fn()) -> Result<Side, ForkError> {
    const FLAGS: c_int = libc::CLONE_PARENT | libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID | libc::SIGCHLD;
    let ids = cached_ids()?;
    let number = ids.thread_id_address();
    let noted = pid_slot.as_ref().map_or(std::ptr::null_mut(), |pid_slot| pid_slot.0.as_ptr());
    let flags = if pid_slot.is_some() { FLAGS | libc::CLONE_PARENT_SETTID } else { FLAGS };
    let robust = robust_list();
    // SAFETY: without CLONE_VM the new process has a copy of all memory and continues here on its
    // own stack, as after fork(2). The kernel writes to two places: the C library's thread ID, and
    // the front of the record. Other threads sleep, if they exist, so every lock's holder is
    // copied.
    let pid = unsafe {
        // The order of the arguments depends on the processor (clone(2), "C library/kernel
        // differences").
        #[cfg(target_arch = "x86_64")]
        let pid = libc::syscall(libc::SYS_clone, flags, 0_usize, noted, number, 0_usize);
        #[cfg(target_arch = "s390x")]
        let pid = libc::syscall(libc::SYS_clone, 0_usize, flags, noted, number, 0_usize);
        #[cfg(not(any(target_arch = "x86_64", target_arch = "s390x")))]
        let pid = libc::syscall(libc::SYS_clone, flags, 0_usize, noted, 0_usize, number);
        pid
    };
    match pid {
        0 => {
            // First: the parent may end this process once it has the process ID, and relies on the
            // mark.
            begin();
            if send_pid(pid_pipe)
                && let Some(pid_slot) = pid_slot
            {
                pid_slot.clear();
            }
            if !ids.update() {
                let _ = writeln!(io::stderr(), "trio-offload-worker: {}", ForkError::UnknownLibrary(c_library()));
                crate::os::process::exit_now(crate::exit::WRONG_ARGUMENTS);
            }
            if let Some((head, length)) = robust {
                // SAFETY: the same list, in this process's own copy of the memory.
                unsafe { libc::syscall(libc::SYS_set_robust_list, head, length) };
            }
            Ok(Side::Worker)
        }
        1.. => Ok(Side::Template),
        _ => Err(ForkError::System(io::Error::last_os_error())),
    }
}

/// Other C libraries call the handlers of `pthread_atfork` in unknown ways.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn clone_sibling(_birth: BorrowedFd<'_>, _front: Option<PidSlot>, _begin: fn()) -> Result<Side, ForkError> {
    Err(ForkError::Unsupported)
}

/// Send the process ID from the worker itself: the template may die at this moment. Return true on
/// success.
fn send_pid(pid_pipe: BorrowedFd<'_>) -> bool {
    let bytes = cached_ids::kernel_process_id().to_be_bytes();
    // SAFETY: the pointer and the length belong to the array. A pipe takes so few bytes as a whole;
    // a parent that is gone is found out a moment later.
    let written = unsafe { libc::write(pid_pipe.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
    usize::try_from(written).is_ok_and(|written| written == bytes.len())
}

/// Name and release, for people.
fn c_library() -> String {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: a string that the C library has for good.
        let release = unsafe { std::ffi::CStr::from_ptr(libc::gnu_get_libc_version()) };
        format!("glibc {}", release.to_string_lossy())
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    String::new()
}

#[cfg(target_os = "linux")]
fn robust_list() -> Option<(*mut c_void, usize)> {
    let mut head: *mut c_void = std::ptr::null_mut();
    let mut length = 0_usize;
    // SAFETY: the call writes a pointer and a length to the places given; 0 is the calling thread
    // (get_robust_list(2)).
    let status = unsafe { libc::syscall(libc::SYS_get_robust_list, 0, &raw mut head, &raw mut length) };
    (status == 0 && !head.is_null()).then_some((head, length))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    static PREPARED: AtomicUsize = AtomicUsize::new(0);
    static TOLD: AtomicUsize = AtomicUsize::new(0);

    extern "C" fn prepare() {
        PREPARED.fetch_add(1, Ordering::SeqCst);
    }

    extern "C" fn told() {
        TOLD.fetch_add(1, Ordering::SeqCst);
    }

    #[test]
    fn a_dry_run_with_threads_is_refused_and_undone() {
        // SAFETY: both functions live as long as the program and only count.
        assert_eq!(unsafe { libc::pthread_atfork(Some(prepare), Some(told), None) }, 0);
        // The test harness has one thread for each test.
        let error = dry_run(&AllowedThreads::default()).unwrap_err();
        assert!(error.to_string().contains("beside the one that forks"), "{error}");
        assert_eq!((PREPARED.load(Ordering::SeqCst), TOLD.load(Ordering::SeqCst)), (1, 1));
    }
}

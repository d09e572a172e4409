//! How a template makes a worker out of itself: a child of the template's own parent, with all done that `fork(3)` does.
//!
//! `clone(2)` with `CLONE_PARENT` makes a sibling. So the parent program reaps each worker itself and learns exactly how it
//! ended, a worker's `getppid` is the program, and a template may die without any effect on the workers.
//! The alternative, the C library's `fork` and a template that reports how its children ended, loses the ending of every
//! worker that outlives its template, and needs a second kind of reaping, orphan and pidfd on the parent's side.
//!
//! The C library's `fork` does some things that the bare call does not, and these are done here:
//! * The main thread's number is kept in its control block (`pthread_kill`, robust and error-checking mutexes and, before glibc
//!   2.34, more use it). `CLONE_CHILD_SETTID` writes the new one there, as `fork` has it. How the place is found, whatever the C
//!   library: `numbers.rs`. A worker that has wrong numbers afterwards ends before it does anything.
//! * The list of robust mutexes is registered anew (`set_robust_list(2)`).
//! * The handlers of `pthread_atfork(3)` are run: OpenBLAS stops its threads in one. The C library keeps them to itself, so they
//!   are noted when they are registered: the symbol below comes before the library's own, for all that is loaded. Those of a library
//!   that is unloaded are forgotten at the same moment as by the C library: by an exit handler of that library (`__cxa_atexit`).
//! * The locks of the C library need no care: there is one thread, and it holds none. Where there are others that may be there
//!   ([`AllowedThreads`]), the fork waits until they sleep: a thread that sleeps is not in the middle of an allocation. What the
//!   C library notes of them stays noted in the worker: their stacks are not used again, and a call that waits until all threads
//!   have done something (`setuid(2)`) finds that they are gone.

pub mod front;
pub(super) mod handlers;
mod numbers;
pub mod threads;

use std::ffi::{c_int, c_void};
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::sync::OnceLock;

use thiserror::Error;

use crate::os::fork::front::Front;
use crate::os::fork::handlers::Prepared;
use crate::os::fork::numbers::Numbers;
use crate::os::fork::threads::{AllowedThreads, refuse_threads};

/// Which of the two processes this is after a fork.
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
        "a worker cannot be forked with this C library, which keeps the number of a thread where no worker finds it ({0}); use WorkerType.SPAWN, and please report this"
    )]
    UnknownLibrary(String),
    #[error("a forkserver needs Linux and the GNU C library (glibc); use WorkerType.SPAWN")]
    Unsupported,
}

fn count(threads: usize) -> String {
    format!("{threads} {}", if threads == 1 { "thread" } else { "threads" })
}

/// Forks a worker off this process. Its number is in the front of its record before it runs at all. In the worker it is written to
/// `birth`, and taken back from there, before anything else is done, and then `born` is called. To be called between Python's own preparation for a fork and what it does after one.
pub fn fork_sibling(
    birth: BorrowedFd<'_>,
    front: Option<Front>,
    allowed: &AllowedThreads,
    begin: fn(),
    born: impl FnOnce(),
) -> Result<Side, ForkError> {
    let handlers = Prepared::new();
    refuse_threads(allowed)?;
    let side = clone_sibling(birth, front, begin)?;
    if side == Side::Worker {
        born();
    }
    handlers.finish(side);
    Ok(side)
}

/// Whether this process could fork now, once everybody has prepared for it.
pub fn rehearse(allowed: &AllowedThreads) -> Result<(), ForkError> {
    let _handlers = Prepared::new();
    refuse_threads(allowed)
}

/// Where the numbers are is the same at every fork.
static NUMBERS: OnceLock<Numbers> = OnceLock::new();

fn numbers() -> Result<Numbers, ForkError> {
    if let Some(numbers) = NUMBERS.get() {
        return Ok(*numbers);
    }
    let found = Numbers::find().ok_or_else(|| ForkError::UnknownLibrary(c_library()))?;
    Ok(*NUMBERS.get_or_init(|| found))
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn clone_sibling(birth: BorrowedFd<'_>, front: Option<Front>, begin: fn()) -> Result<Side, ForkError> {
    const FLAGS: c_int = libc::CLONE_PARENT | libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID | libc::SIGCHLD;
    let numbers = numbers()?;
    let number = numbers.of_thread();
    let noted = front.as_ref().map_or(std::ptr::null_mut(), |front| front.0.as_ptr());
    let flags = if front.is_some() { FLAGS | libc::CLONE_PARENT_SETTID } else { FLAGS };
    let robust = robust_list();
    // SAFETY: without CLONE_VM the new process has a copy of all memory and goes on behind this line on its own copy of the
    // stack, as after fork(2); what the kernel writes to are the place where the C library has the number, and the front of the record. There is one
    // thread, or others sleep, so no lock is held by somebody who is not copied.
    let pid = unsafe {
        // The order of the arguments differs between the processors (clone(2), «C library/kernel differences»).
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
            // First: whoever knows the number may end this process, and relies on what that arranges.
            begin();
            if announce(birth)
                && let Some(front) = front
            {
                front.clear();
            }
            if !numbers.settle() {
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

/// Other C libraries call the handlers of `pthread_atfork` in ways that are not known here.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn clone_sibling(_birth: BorrowedFd<'_>, _front: Option<Front>, _begin: fn()) -> Result<Side, ForkError> {
    Err(ForkError::Unsupported)
}

/// The parent learns the number from the worker itself: a template that dies at this moment has nothing to tell any more. False: it
/// does not.
fn announce(birth: BorrowedFd<'_>) -> bool {
    let bytes = numbers::process_number().to_be_bytes();
    // SAFETY: the pointer and the length are those of the array. A pipe takes so few bytes as a whole; a parent that is gone is
    // found out a moment later.
    let written = unsafe { libc::write(birth.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
    usize::try_from(written).is_ok_and(|written| written == bytes.len())
}

/// Its name and release, for people.
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
    // SAFETY: the call writes a pointer and a length to the places given; 0 is the calling thread (get_robust_list(2)).
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
    fn a_rehearsal_with_threads_is_refused_and_the_handlers_are_told() {
        // SAFETY: both functions live as long as the program and do nothing that could go wrong.
        assert_eq!(unsafe { libc::pthread_atfork(Some(prepare), Some(told), None) }, 0);
        // The harness itself has a thread for each test.
        let error = rehearse(&AllowedThreads::default()).unwrap_err();
        assert!(error.to_string().contains("beside the one that forks"), "{error}");
        assert_eq!((PREPARED.load(Ordering::SeqCst), TOLD.load(Ordering::SeqCst)), (1, 1));
    }
}

//! Namespace changes that the kernel allows only in a process with one thread.
//!
//! A job's process has a second thread, the native one. So the executable defines `unshare` and
//! `setns`, which libraries and Python find first. If the kernel refuses, the native thread is
//! suspended and the call repeated. Direct system calls, and libraries that look the functions up
//! in the C library's file, bypass this. For them jobs have `trio_offload_worker.single_threaded`,
//! which uses [`trio_offload_single_threaded`].

use std::ffi::c_int;
use std::io;
use std::sync::OnceLock;

/// Functions that suspend and resume the other thread.
#[derive(Debug, Clone, Copy)]
pub struct SingleThread {
    /// Return true if it had another thread to suspend.
    pub suspend: fn() -> bool,
    pub resume: fn() -> io::Result<()>,
}

/// Unset while the process has one thread.
static SINGLE_THREAD: OnceLock<SingleThread> = OnceLock::new();

/// Set the functions for namespace changes. The first call counts.
pub fn suspend_with(single: SingleThread) {
    let _ = SINGLE_THREAD.set(single);
}

fn suspend() -> bool {
    SINGLE_THREAD.get().is_some_and(|single| (single.suspend)())
}

fn resume() -> io::Result<()> {
    SINGLE_THREAD.get().map_or(Ok(()), |single| (single.resume)())
}

/// # Safety
/// As unshare(2): the caller is responsible for the effect.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn unshare(flags: c_int) -> c_int {
    // A process that has requested a new pid namespace cannot start threads (clone(2), EINVAL), so
    // request that last.
    let last = if flags & libc::CLONE_NEWUSER == 0 { 0 } else { flags & libc::CLONE_NEWPID };
    // SAFETY: unshare takes an integer; for the rest the caller answers.
    let alone = |flags: c_int| unsafe { libc::syscall(libc::SYS_unshare, flags) };
    let status = with_one_thread(&|| if last == 0 { alone(flags) } else { alone(flags & !last) });
    if status != 0 || last == 0 { status } else { narrowed(alone(last)) }
}

/// # Safety
/// As setns(2).
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn setns(descriptor: c_int, kind: c_int) -> c_int {
    // SAFETY: setns takes two integers; for the rest the caller answers.
    with_one_thread(&|| unsafe { libc::syscall(libc::SYS_setns, descriptor, kind) })
}

/// Suspend (1) or resume (0) the native thread. Return 0 on success, or without such a thread.
#[unsafe(no_mangle)]
pub(super) extern "C" fn trio_offload_single_threaded(wanted: c_int) -> c_int {
    if wanted != 0 {
        suspend();
        return 0;
    }
    c_int::from(resume().is_err())
}

fn with_one_thread(call: &dyn Fn() -> libc::c_long) -> c_int {
    let status = call();
    if status == 0 || error() != Some(libc::EINVAL) || !suspend() {
        return narrowed(status);
    }
    let status = call();
    let kept = error();
    // If this fails, the end of the job tries again; a worker without the native thread retires.
    let _ = resume();
    if let Some(kept) = kept.filter(|_| status != 0) {
        set_error(kept);
    }
    narrowed(status)
}

fn narrowed(status: libc::c_long) -> c_int {
    c_int::try_from(status).unwrap_or(-1)
}

fn error() -> Option<i32> {
    io::Error::last_os_error().raw_os_error()
}

fn set_error(number: i32) {
    #[cfg(target_os = "linux")]
    // SAFETY: the C library gives the place of the calling thread's own `errno`.
    unsafe {
        *libc::__errno_location() = number;
    }
    #[cfg(not(target_os = "linux"))]
    let _ = number;
}

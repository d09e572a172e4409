//! Changes of namespaces that the kernel allows a process with one thread only.
//!
//! A job's process has a second one, the native thread. So the executable comes first where a library or Python looks for
//! `unshare` and `setns`: where the kernel refuses, the native thread steps aside and the call is made again. A library that asks
//! the C library by its file's name, or calls the kernel itself, does not come by here; for that jobs have
//! `trio_offload_worker.single_threaded`, which uses [`trio_offload_single_threaded`].

use std::ffi::c_int;
use std::io;
use std::sync::OnceLock;

/// How this process is left with one thread, and how it gets the others back.
#[derive(Debug, Clone, Copy)]
pub struct Aside {
    /// Whether there was another thread.
    pub step_aside: fn() -> bool,
    pub come_back: fn() -> io::Result<()>,
}

/// Unset as long as there is one thread.
static ASIDE: OnceLock<Aside> = OnceLock::new();

/// From now on a change of namespaces may call these. The first ones count.
pub fn step_aside_by(aside: Aside) {
    let _ = ASIDE.set(aside);
}

fn step_aside() -> bool {
    ASIDE.get().is_some_and(|aside| (aside.step_aside)())
}

fn come_back() -> io::Result<()> {
    ASIDE.get().map_or(Ok(()), |aside| (aside.come_back)())
}

/// # Safety
/// As unshare(2): the caller answers for what it wants to share no longer.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn unshare(flags: c_int) -> c_int {
    // A process that has asked for a new pid namespace can start no thread any more (clone(2), EINVAL), and may have several.
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

/// Ends the native thread (1), or starts it again (0). 0: done, or there is none.
#[unsafe(no_mangle)]
pub(super) extern "C" fn trio_offload_single_threaded(wanted: c_int) -> c_int {
    if wanted != 0 {
        step_aside();
        return 0;
    }
    c_int::from(come_back().is_err())
}

fn with_one_thread(call: &dyn Fn() -> libc::c_long) -> c_int {
    let status = call();
    if status == 0 || error() != Some(libc::EINVAL) || !step_aside() {
        return narrowed(status);
    }
    let status = call();
    let kept = error();
    // At the end of the job it is tried again, and a worker that nobody can watch takes no other.
    let _ = come_back();
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

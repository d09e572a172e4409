//! Process marks, which all descendants of a worker inherit, and the ways to end such processes.
//!
//! A mark is a number in the soft limit RLIMIT_LOCKS. The kernel copies limits at a fork, keeps
//! them at an exec, and has not enforced this one since Linux 2.4.25 (getrlimit(2)). Any process of
//! the same user can read it with prlimit(2), without a descriptor or `/proc`.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

/// Set the mark of this process. Return false if the hard limit is lower, or the system has no such
/// limit.
#[cfg(target_os = "linux")]
pub fn set(mark: u64) -> bool {
    let Some(mut limits) = limits_of(0) else { return false };
    if limits.rlim_max < mark {
        return false;
    }
    limits.rlim_cur = mark;
    // SAFETY: prlimit reads one `rlimit64`; pid 0 is this process, and a null pointer omits the
    // copy of the old limits.
    let status = unsafe { libc::prlimit64(0, libc::RLIMIT_LOCKS, &raw const limits, std::ptr::null_mut()) };
    status == 0 && of(0) == Some(mark)
}

/// The soft limit of a process, which may be a mark. `None` if the process does not exist, or
/// belongs to another user.
#[cfg(target_os = "linux")]
pub fn of(pid: i32) -> Option<u64> {
    limits_of(pid).map(|limits| limits.rlim_cur)
}

#[cfg(target_os = "linux")]
fn limits_of(pid: i32) -> Option<libc::rlimit64> {
    let mut limits = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: prlimit writes one `rlimit64` to the place given; a null pointer sets nothing.
    let status = unsafe { libc::prlimit64(pid, libc::RLIMIT_LOCKS, std::ptr::null(), &raw mut limits) };
    (status == 0).then_some(limits)
}

#[cfg(not(target_os = "linux"))]
pub fn set(_mark: u64) -> bool {
    false
}

#[cfg(not(target_os = "linux"))]
pub fn of(_pid: i32) -> Option<u64> {
    None
}

/// The process ID from the kernel. Before glibc 2.25 the C library may have cached the template's.
pub fn own_number() -> u32 {
    // SAFETY: getpid is always safe to call.
    u32::try_from(unsafe { libc::syscall(libc::SYS_getpid) }).unwrap_or_default()
}

/// Milliseconds since boot.
pub fn boot_time() -> u64 {
    #[cfg(target_os = "linux")]
    const CLOCK: libc::clockid_t = libc::CLOCK_BOOTTIME;
    #[cfg(not(target_os = "linux"))]
    const CLOCK: libc::clockid_t = libc::CLOCK_MONOTONIC;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: clock_gettime writes one `timespec` to the place given.
    unsafe { libc::clock_gettime(CLOCK, &raw mut time) };
    let part = |value: i64| u64::try_from(value).unwrap_or_default();
    part(time.tv_sec) * 1000 + part(time.tv_nsec) / 1_000_000
}

/// Have the kernel resume this process (SIGCONT) when its parent ends.
///
/// A parent that ends a worker stops it first. If the parent is killed in between, the worker would
/// stay stopped forever; resumed, it finds itself an orphan. The signal also comes when only the
/// thread that started the worker ends. A running worker ignores it.
pub fn resume_without_parent() {
    #[cfg(target_os = "linux")]
    // SAFETY: PR_SET_PDEATHSIG takes one integer. It fails for no signal that exists.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGCONT, 0, 0, 0);
    }
}

/// Forbid forks in all threads of this process, for good. Return false if the system has no filters
/// (seccomp(2)), or a job has given one thread its own filter.
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
pub fn forbid_forks() -> bool {
    const NUMBER: u32 = std::mem::offset_of!(libc::seccomp_data, nr) as u32;
    const ARCHITECTURE: u32 = std::mem::offset_of!(libc::seccomp_data, arch) as u32;
    #[cfg(target_arch = "x86_64")]
    const THIS: u32 = 0xc000_003e;
    #[cfg(target_arch = "x86_64")]
    const STARTS: [libc::c_long; 4] = [libc::SYS_clone, libc::SYS_clone3, libc::SYS_fork, libc::SYS_vfork];
    #[cfg(target_arch = "aarch64")]
    const THIS: u32 = 0xc000_00b7;
    #[cfg(target_arch = "aarch64")]
    const STARTS: [libc::c_long; 2] = [libc::SYS_clone, libc::SYS_clone3];
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

    let step = |code: u32, jt: usize, jf: usize, k: u32| libc::sock_filter { code: code as u16, jt: jt as u8, jf: jf as u8, k };
    let mut program = vec![step(LOAD, 0, 0, ARCHITECTURE), step(EQUAL, 0, STARTS.len() + 1, THIS), step(LOAD, 0, 0, NUMBER)];
    for (index, number) in STARTS.iter().enumerate() {
        program.push(step(EQUAL, STARTS.len() - index, 0, u32::try_from(*number).unwrap_or(u32::MAX)));
    }
    program.push(step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW));
    program.push(step(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EAGAIN as u32));
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: PR_SET_NO_NEW_PRIVS takes integers. Without it only root may set a filter.
    unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    // SAFETY: the filter points to a program of the length beside it, which the kernel copies.
    let status = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_TSYNC, &raw const filter)
    };
    status == 0
}

#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
pub fn forbid_forks() -> bool {
    false
}

/// Minor page faults of reaped children; 0 if no child was ever reaped.
pub fn faults_of_children() -> i64 {
    // SAFETY: for this structure of numbers all zeros are a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: getrusage writes one `rusage` to the place given.
    unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage) };
    usage.ru_minflt
}

/// True if the kernel reaps this process's children itself, and so counts nothing (sigaction(2)).
pub fn reaps_children_itself() -> bool {
    // SAFETY: for this structure of numbers and pointers all zeros are a value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: sigaction writes one structure to the place given; a null pointer keeps the present
    // one.
    unsafe { libc::sigaction(libc::SIGCHLD, std::ptr::null(), &raw mut action) };
    action.sa_sigaction == libc::SIG_IGN || action.sa_flags & libc::SA_NOCLDWAIT != 0
}

/// True if this process may signal the other one, which then exists.
pub fn may_signal(pid: i32) -> bool {
    // SAFETY: kill takes two integers; 0 only checks.
    pid > 1 && unsafe { libc::kill(pid, 0) == 0 }
}

/// A process held by a pidfd, if available, so that its ID cannot be reused.
#[derive(Debug)]
pub struct Target {
    pid: i32,
    handle: Option<OwnedFd>,
}

impl Target {
    /// Return `None` if the caller's check fails.
    pub fn new(pid: i32, is_meant: impl FnOnce() -> bool) -> Option<Self> {
        // Open first, then check: so the check is of the process that is held.
        let handle = u32::try_from(pid).ok().and_then(crate::os::process::open_process);
        (pid > 1 && is_meant()).then_some(Self { pid, handle })
    }

    /// Send SIGKILL.
    ///
    /// The process cannot fork afterwards: copy_process() in kernel/fork.c fails with a pending
    /// SIGKILL, and checks for it under the same lock under which signals are sent.
    pub fn kill(self) {
        #[cfg(target_os = "linux")]
        if let Some(handle) = self.handle {
            // SAFETY: pidfd_send_signal takes integers and a null pointer, which stands for the
            // signal's usual information.
            let status = unsafe {
                let number = handle.as_raw_fd();
                libc::syscall(libc::SYS_pidfd_send_signal, number, libc::SIGKILL, std::ptr::null::<libc::siginfo_t>(), 0)
            };
            if status == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ENOSYS) {
                return;
            }
        }
        // Without a pidfd: an old kernel, or a full descriptor table. The number was looked at a
        // moment ago.
        // SAFETY: kill takes two integers.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
    }
}

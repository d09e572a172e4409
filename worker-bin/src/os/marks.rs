//! Process marks: what a worker's descendants inherit, whatever becomes of their parents, and how such processes are ended.
//!
//! A mark is a number in the soft limit RLIMIT_LOCKS. The kernel copies limits at a fork and keeps them at an exec, and it has
//! not enforced this one since Linux 2.4.25 (getrlimit(2)). Any process of the same user can read it with prlimit(2), which
//! needs neither a descriptor nor `/proc`.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

/// The soft limit of this process becomes `mark`. False: the hard limit is lower, or the system has no such limit.
#[cfg(target_os = "linux")]
pub fn set(mark: u64) -> bool {
    let Some(mut limits) = limits_of(0) else { return false };
    if limits.rlim_max < mark {
        return false;
    }
    limits.rlim_cur = mark;
    // SAFETY: prlimit reads one `rlimit64`; pid 0 is this process, and a null pointer asks for no copy of the old limits.
    let status = unsafe { libc::prlimit64(0, libc::RLIMIT_LOCKS, &raw const limits, std::ptr::null_mut()) };
    status == 0 && of(0) == Some(mark)
}

/// The soft limit of a process, which may be a mark. `None`: there is no such process, or it belongs to another user.
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

/// The number of this process, also where the C library remembers that of the template which forked it (glibc before 2.25).
pub fn own_number() -> u32 {
    // SAFETY: getpid takes nothing.
    u32::try_from(unsafe { libc::syscall(libc::SYS_getpid) }).unwrap_or_default()
}

/// Milliseconds since the system was booted.
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

/// Has the kernel resume this process (SIGCONT) when its parent ends.
///
/// A parent that ends a worker stops it first. Killed before it can go on, it would leave a stopped process for ever; resumed,
/// the worker finds that its parent is gone. The signal also comes when only the thread that started the worker ends, and
/// then changes nothing: a process that runs ignores it.
pub fn resume_without_parent() {
    #[cfg(target_os = "linux")]
    // SAFETY: PR_SET_PDEATHSIG takes one integer and touches no memory. It fails for no signal that exists.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGCONT, 0, 0, 0);
    }
}

/// From now on no thread of this process can start a process, for good. False: the system has no filters (seccomp(2)), or a
/// job has given one of the threads a filter that the others do not have.
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

/// What the children of this process that were waited for have had of minor page faults: 0 if none was ever waited for.
pub fn faults_of_children() -> i64 {
    // SAFETY: for this structure of numbers all zeros are a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: getrusage writes one `rusage` to the place given.
    unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage) };
    usage.ru_minflt
}

/// Whether the kernel reaps this process's children itself, and counts nothing of them (sigaction(2)).
pub fn reaps_children_itself() -> bool {
    // SAFETY: for this structure of numbers and pointers all zeros are a value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: sigaction writes one structure to the place given; a null pointer changes nothing.
    unsafe { libc::sigaction(libc::SIGCHLD, std::ptr::null(), &raw mut action) };
    action.sa_sigaction == libc::SIG_IGN || action.sa_flags & libc::SA_NOCLDWAIT != 0
}

/// Whether this process may send signals to the other, which exists then.
pub fn may_signal(pid: i32) -> bool {
    // SAFETY: kill takes two integers; 0 is no signal and is not sent.
    pid > 1 && unsafe { libc::kill(pid, 0) == 0 }
}

/// A process that nobody else can have the number of, as far as the system has handles for that.
#[derive(Debug)]
pub struct Target {
    pid: i32,
    handle: Option<OwnedFd>,
}

impl Target {
    /// `None`: it is not the one that is meant, by the caller's look at it.
    pub fn new(pid: i32, is_meant: impl FnOnce() -> bool) -> Option<Self> {
        // In this order: what is looked at has the handle already.
        let handle = u32::try_from(pid).ok().and_then(crate::os::process::open_process);
        (pid > 1 && is_meant()).then_some(Self { pid, handle })
    }

    /// Sends SIGKILL.
    ///
    /// After it the process starts nothing more: copy_process() in kernel/fork.c gives a fork up under a pending SIGKILL, and
    /// looks for one behind the same lock under which the signal is sent.
    pub fn kill(self) {
        #[cfg(target_os = "linux")]
        if let Some(handle) = self.handle {
            // SAFETY: pidfd_send_signal takes integers and a null pointer, which stands for the signal's usual information.
            let status = unsafe {
                let number = handle.as_raw_fd();
                libc::syscall(libc::SYS_pidfd_send_signal, number, libc::SIGKILL, std::ptr::null::<libc::siginfo_t>(), 0)
            };
            if status == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ENOSYS) {
                return;
            }
        }
        // No handle: an old kernel, or no descriptor to spare. The number was looked at a moment ago.
        // SAFETY: kill takes two integers.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
    }
}

//! Processes: environment, waiting, processor time, exit.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use crate::os::check;

/// Make this process the new parent of its orphaned descendants (prctl(2)), so that it can find
/// them.
pub fn become_subreaper() -> io::Result<()> {
    #[cfg(target_os = "linux")]
    // SAFETY: PR_SET_CHILD_SUBREAPER takes one integer.
    check(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) })?;
    Ok(())
}

/// Set or unset a variable. Call this while the process has one thread: others could be reading.
pub fn set_environment(name: &CStr, value: Option<&CStr>) -> io::Result<()> {
    let status = match value {
        // SAFETY: both are C strings, which setenv copies; the caller answers for the single
        // thread.
        Some(value) => unsafe { libc::setenv(name.as_ptr(), value.as_ptr(), 1) },
        // SAFETY: as above.
        None => unsafe { libc::unsetenv(name.as_ptr()) },
    };
    check(status).map(drop)
}

/// Open a pidfd, which becomes readable when the process ends. `None` if the system or the process
/// does not exist for that.
pub fn open_process(pid: u32) -> Option<OwnedFd> {
    #[cfg(target_os = "linux")]
    {
        let pid = libc::pid_t::try_from(pid).ok()?;
        // SAFETY: pidfd_open takes two integers.
        let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let descriptor = RawFd::try_from(descriptor).ok().filter(|descriptor| *descriptor >= 0)?;
        // SAFETY: the system has just made it for this process (close-on-exec, pidfd_open(2)), so
        // this is the only owner.
        Some(unsafe { OwnedFd::from_raw_fd(descriptor) })
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = pid;
        None
    }
}

/// The events that [`wait_for`] returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WaitEvents {
    /// The other end of the socket is closed.
    pub hang_up: bool,
    /// The process has ended.
    pub process_exit: bool,
    /// The thread has been woken.
    pub wakeup: bool,
}

/// The parent of this process, perhaps a former one.
#[derive(Debug)]
pub struct ParentWatch {
    pid: u32,
    handle: Option<OwnedFd>,
}

impl ParentWatch {
    /// Watch the parent with this process ID. It may have died already; then the pidfd would belong
    /// to another process.
    pub fn of(pid: u32) -> Self {
        let handle = open_process(pid).filter(|_| std::os::unix::process::parent_id() == pid);
        Self { pid, handle }
    }

    /// Wait for input or the end of the stream. Return false if the parent has died.
    pub fn wait_for_input(&self, socket: BorrowedFd<'_>) -> io::Result<bool> {
        /// Milliseconds between two checks without a pidfd.
        const WITHOUT_HANDLE: libc::c_int = 200;
        let handle = self.handle.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        let timeout = if handle < 0 { WITHOUT_HANDLE } else { -1 };
        loop {
            // poll(2) ignores a negative descriptor.
            let mut entries = [
                libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLIN, revents: 0 },
                libc::pollfd { fd: handle, events: libc::POLLIN, revents: 0 },
            ];
            // SAFETY: the pointer and the count belong to the array.
            check(unsafe { libc::poll(entries.as_mut_ptr(), 2, timeout) })?;
            if entries[0].revents != 0 {
                return Ok(true);
            }
            if std::os::unix::process::parent_id() != self.pid {
                return Ok(false);
            }
        }
    }
}

/// Wait for a hang-up of the socket, the end of the process, or a wakeup, as far as they are given.
pub fn wait_for(
    socket: Option<RawFd>,
    process: Option<BorrowedFd<'_>>,
    waker: Option<BorrowedFd<'_>>,
    timeout: Option<Duration>,
) -> WaitEvents {
    #[cfg(target_os = "linux")]
    const HANG_UP: libc::c_short = libc::POLLRDHUP;
    #[cfg(not(target_os = "linux"))]
    const HANG_UP: libc::c_short = libc::POLLHUP;
    // poll(2) ignores a negative descriptor.
    let mut entries = [
        libc::pollfd { fd: socket.unwrap_or(-1), events: HANG_UP, revents: 0 },
        libc::pollfd { fd: process.map_or(-1, |process| process.as_raw_fd()), events: libc::POLLIN, revents: 0 },
        libc::pollfd { fd: waker.map_or(-1, |waker| waker.as_raw_fd()), events: libc::POLLIN, revents: 0 },
    ];
    // Round up: a shorter wait would be repeated until the time is over.
    let milliseconds =
        timeout.map_or(-1, |timeout| libc::c_int::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(libc::c_int::MAX));
    // SAFETY: the pointer and the count belong to the array.
    if unsafe { libc::poll(entries.as_mut_ptr(), 3, milliseconds) } <= 0 {
        return WaitEvents::default();
    }
    // Only a hang-up is requested. POLLHUP, POLLERR and POLLNVAL come unrequested and mean the
    // same.
    WaitEvents { hang_up: entries[0].revents != 0, process_exit: entries[1].revents != 0, wakeup: entries[2].revents != 0 }
}

/// Processor time of all threads of this process.
pub fn processor_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: clock_gettime writes one `timespec` to the place given.
    if unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) } != 0 {
        return Duration::ZERO;
    }
    Duration::new(u64::try_from(time.tv_sec).unwrap_or_default(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// Exit at once, without destructors, handlers or flushes.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit ends the process at once.
    unsafe { libc::_exit(code) }
}

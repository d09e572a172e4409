//! Processes: environment, waiting, processor time, the end.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use crate::os::check;

/// Makes this process the one that its orphaned descendants fall to, so that it can still find them (prctl(2)).
pub fn become_subreaper() -> io::Result<()> {
    #[cfg(target_os = "linux")]
    // SAFETY: PR_SET_CHILD_SUBREAPER takes one integer and touches no memory.
    check(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) })?;
    Ok(())
}

/// Sets a variable, or unsets it. To be called while the process has one thread: every other could be reading.
pub fn set_environment(name: &CStr, value: Option<&CStr>) -> io::Result<()> {
    let status = match value {
        // SAFETY: both are C strings, which setenv copies; the caller answers for the single thread.
        Some(value) => unsafe { libc::setenv(name.as_ptr(), value.as_ptr(), 1) },
        // SAFETY: as above.
        None => unsafe { libc::unsetenv(name.as_ptr()) },
    };
    check(status).map(drop)
}

/// A descriptor that becomes readable when the process ends; `None` where the system has none, or no such process.
pub fn open_process(pid: u32) -> Option<OwnedFd> {
    #[cfg(target_os = "linux")]
    {
        let pid = libc::pid_t::try_from(pid).ok()?;
        // SAFETY: pidfd_open takes two integers.
        let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let descriptor = RawFd::try_from(descriptor).ok().filter(|descriptor| *descriptor >= 0)?;
        // SAFETY: the system has just made it for this process (close-on-exec, pidfd_open(2)), so nobody else owns it.
        Some(unsafe { OwnedFd::from_raw_fd(descriptor) })
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = pid;
        None
    }
}

/// What [`wait_for`] saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seen {
    /// The other end of the socket is gone.
    pub hang_up: bool,
    /// The process has ended.
    pub death: bool,
    /// The bell has rung.
    pub bell: bool,
}

/// The process whose child this one is, or was.
#[derive(Debug)]
pub struct ParentWatch {
    pid: u32,
    handle: Option<OwnedFd>,
}

impl ParentWatch {
    /// Of the parent that is known by this number. It may have ended already: then this one is another's child by now, and whom the
    /// number belongs to is nobody's business.
    pub fn of(pid: u32) -> Self {
        let handle = open_process(pid).filter(|_| std::os::unix::process::parent_id() == pid);
        Self { pid, handle }
    }

    /// Waits until there is something to read, the end of the stream included. False: the process has ended before that.
    pub fn wait_for_input(&self, socket: BorrowedFd<'_>) -> io::Result<bool> {
        /// Milliseconds between two looks where the system cannot tell of a process's end.
        const WITHOUT_HANDLE: libc::c_int = 200;
        let handle = self.handle.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        let timeout = if handle < 0 { WITHOUT_HANDLE } else { -1 };
        loop {
            // poll(2) ignores a negative descriptor.
            let mut entries = [
                libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLIN, revents: 0 },
                libc::pollfd { fd: handle, events: libc::POLLIN, revents: 0 },
            ];
            // SAFETY: the pointer and the count are those of the array.
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

/// Waits until the socket's other end is closed, the process has ended or the bell rings, whichever of them is given.
pub fn wait_for(
    socket: Option<RawFd>,
    process: Option<BorrowedFd<'_>>,
    bell: Option<BorrowedFd<'_>>,
    timeout: Option<Duration>,
) -> Seen {
    #[cfg(target_os = "linux")]
    const HANG_UP: libc::c_short = libc::POLLRDHUP;
    #[cfg(not(target_os = "linux"))]
    const HANG_UP: libc::c_short = libc::POLLHUP;
    // poll(2) ignores a negative descriptor.
    let mut entries = [
        libc::pollfd { fd: socket.unwrap_or(-1), events: HANG_UP, revents: 0 },
        libc::pollfd { fd: process.map_or(-1, |process| process.as_raw_fd()), events: libc::POLLIN, revents: 0 },
        libc::pollfd { fd: bell.map_or(-1, |bell| bell.as_raw_fd()), events: libc::POLLIN, revents: 0 },
    ];
    // Rounded up: a wait that ended before its time would be begun again and again until it is over.
    let milliseconds =
        timeout.map_or(-1, |timeout| libc::c_int::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(libc::c_int::MAX));
    // SAFETY: the pointer and the count are those of the array.
    if unsafe { libc::poll(entries.as_mut_ptr(), 3, milliseconds) } <= 0 {
        return Seen::default();
    }
    // A hang-up is the only thing asked of the socket; POLLHUP, POLLERR and POLLNVAL come unasked and mean the same here.
    Seen { hang_up: entries[0].revents != 0, death: entries[1].revents != 0, bell: entries[2].revents != 0 }
}

/// What all threads of this process have had of the processors.
pub fn processor_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: clock_gettime writes one `timespec` to the place given.
    if unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) } != 0 {
        return Duration::ZERO;
    }
    Duration::new(u64::try_from(time.tv_sec).unwrap_or_default(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// Ends the process at once: no destructor, no handler, no flush.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit does not return and runs nothing of this process's.
    unsafe { libc::_exit(code) }
}

//! Socket operations that `std` lacks.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use crate::os::check;
use crate::os::signals::SignalsHeld;

/// Most descriptors in one message. `SCM_MAX_FD` is 253, and a request for a worker has seven.
#[cfg(target_os = "linux")]
const MAX_DESCRIPTORS: usize = 16;

/// Size of the pipe in bytes: the maximum without privileges.
#[cfg(target_os = "linux")]
const PIPE: libc::c_int = 1 << 20;

/// Send without waiting. Return the number of bytes sent.
pub fn send_at_once(socket: RawFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the pointer and the length belong to the slice.
    let count = unsafe { libc::send(socket, bytes.as_ptr().cast(), bytes.len(), libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// Receive into uninitialised memory. 0 means that the other end is closed.
pub fn receive(socket: BorrowedFd<'_>, into: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
    // SAFETY: the pointer and the length belong to the slice, and recv only writes to it.
    let count = unsafe { libc::recv(socket.as_raw_fd(), into.as_mut_ptr().cast(), into.len(), 0) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// Receive without waiting: `WouldBlock` if nothing is there. 0 means that the other end is closed.
pub fn receive_at_once(socket: BorrowedFd<'_>, into: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the pointer and the length belong to the slice, and recv only writes to it.
    let count = unsafe { libc::recv(socket.as_raw_fd(), into.as_mut_ptr().cast(), into.len(), libc::MSG_DONTWAIT) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// Descriptors that came with bytes. One receive has those of one message at most.
#[derive(Debug, Default)]
pub struct Carried {
    pub descriptors: Vec<OwnedFd>,
    /// True if this process had no room for all of them.
    pub is_truncated: bool,
}

impl Carried {
    pub fn is_empty(&self) -> bool {
        self.descriptors.is_empty() && !self.is_truncated
    }
}

/// Receive bytes and the descriptors that came with them (unix(7), `SCM_RIGHTS`), close-on-exec.
///
/// `waits` is false to return `WouldBlock` if nothing is there.
#[cfg(target_os = "linux")]
pub fn receive_with_descriptors(socket: BorrowedFd<'_>, into: &mut [u8], waits: bool) -> io::Result<(usize, Carried)> {
    let flags = if waits { libc::MSG_CMSG_CLOEXEC } else { libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT };
    let mut descriptors = Vec::new();
    // The control message's header and its descriptors, as u64 for alignment.
    let mut control = [0_u64; 2 + MAX_DESCRIPTORS / 2];
    let mut part = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    // SAFETY: for this structure of numbers and pointers all zeros are a value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    // SAFETY: every pointer in the message is to memory of the length given beside it, which lives
    // until the end of the function.
    let count = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the kernel has filled the message in.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR give a header inside of `control`, or null.
    while let Some(found) = unsafe { header.as_ref() } {
        if found.cmsg_level == libc::SOL_SOCKET && found.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: CMSG_LEN only counts.
            let bytes = found.cmsg_len.saturating_sub(unsafe { libc::CMSG_LEN(0) } as usize);
            // SAFETY: found is a header inside of `control`.
            let numbers = unsafe { libc::CMSG_DATA(header) }.cast::<RawFd>();
            for index in 0..bytes / std::mem::size_of::<RawFd>() {
                // SAFETY: so many numbers follow the header; they may be unaligned.
                let descriptor = unsafe { numbers.add(index).read_unaligned() };
                // SAFETY: the kernel has made it for this process a moment ago, so this is the only
                // owner.
                descriptors.push(unsafe { OwnedFd::from_raw_fd(descriptor) });
            }
        }
        // SAFETY: the kernel has filled in both.
        header = unsafe { libc::CMSG_NXTHDR(&raw const message, header) };
    }
    Ok((count, Carried { descriptors, is_truncated: message.msg_flags & libc::MSG_CTRUNC != 0 }))
}

/// Templates, and descriptors for jobs, need Linux.
#[cfg(not(target_os = "linux"))]
pub fn receive_with_descriptors(_socket: BorrowedFd<'_>, _into: &mut [u8], _waits: bool) -> io::Result<(usize, Carried)> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Set the time that a receive waits for its first byte before `WouldBlock`. `None` means no limit.
pub fn set_receive_timeout(socket: BorrowedFd<'_>, timeout: Option<Duration>) -> io::Result<()> {
    let mut value = libc::timeval { tv_sec: 0, tv_usec: 0 };
    if let Some(timeout) = timeout {
        // Beyond the range of time_t, wait forever.
        value.tv_sec = libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX);
        value.tv_usec = timeout.subsec_micros().into();
        // Zero means no limit to the system (socket(7)), and no wait to the caller.
        if value.tv_sec == 0 && value.tv_usec == 0 {
            value.tv_usec = 1;
        }
    }
    let size = libc::socklen_t::try_from(size_of_val(&value)).unwrap_or(0);
    // SAFETY: SO_RCVTIMEO reads one `timeval`, whose address and size these are.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVTIMEO, (&raw const value).cast(), size) })
        .map(drop)
}

/// Sends pages of memory to a socket. A write would copy them; here only the receiver copies
/// (vmsplice(2), splice(2)). So the memory must not change before the receiver has read it.
///
/// A socket takes pages only from a pipe. The pipe is created for one large segment and closed
/// after it. Its cost is negligible beside the segment, and it is closed while a job runs.
#[cfg(target_os = "linux")]
#[derive(Debug)]
pub struct Splice {
    read: OwnedFd,
    write: OwnedFd,
    /// Bytes in the pipe.
    inside: usize,
}

#[cfg(target_os = "linux")]
impl Splice {
    pub fn new() -> io::Result<Self> {
        let mut ends = [-1; 2];
        // SAFETY: pipe2 writes two descriptors to the array.
        check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) })?;
        // SAFETY: the system has just made both for this process, so this is the only owner.
        let [read, write] = ends.map(|end| unsafe { OwnedFd::from_raw_fd(end) });
        // Fewer system calls; where too much is in use by this user (pipe(7)), it is right without.
        // SAFETY: F_SETPIPE_SZ takes an int.
        unsafe { libc::fcntl(write.as_raw_fd(), libc::F_SETPIPE_SZ, PIPE) };
        Ok(Self { read, write, inside: 0 })
    }

    /// Send the front of `bytes`, and return its length. Call again with the rest: an error means
    /// that this call has failed as a whole.
    pub fn send(&mut self, socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
        if self.inside == 0 {
            let part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
            // SAFETY: one vector that describes the slice, whose memory is only read. The pipe is
            // empty, so this does not wait; it keeps the pages, not the addresses.
            let count = unsafe { libc::vmsplice(self.write.as_raw_fd(), &raw const part, 1, 0) };
            self.inside = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        }
        let flags = libc::SPLICE_F_MORE;
        // SAFETY: two descriptors and null pointers in the place of offsets, which neither of them
        // has.
        let count = unsafe {
            libc::splice(
                self.read.as_raw_fd(),
                std::ptr::null_mut(),
                socket.as_raw_fd(),
                std::ptr::null_mut(),
                self.inside,
                flags,
            )
        };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        self.inside = self.inside.saturating_sub(count);
        Ok(count)
    }
}

/// Most unread bytes that a socket holds. `None` means unknown.
pub fn send_buffer_size(socket: BorrowedFd<'_>) -> Option<usize> {
    let mut value: libc::c_int = 0;
    let mut size = libc::socklen_t::try_from(size_of_val(&value)).ok()?;
    // SAFETY: SO_SNDBUF writes one int, whose address and size these are.
    let status = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_SNDBUF, (&raw mut value).cast(), &raw mut size)
    };
    check(status).ok()?;
    usize::try_from(value).ok()
}

/// Wait for input or the end of the stream. Return false after the timeout or a signal.
pub fn wait_readable(socket: BorrowedFd<'_>, timeout: Duration) -> bool {
    let mut entry = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let milliseconds = libc::c_int::try_from(timeout.as_millis()).unwrap_or(libc::c_int::MAX);
    // SAFETY: the pointer is to one live structure, as the count says.
    unsafe { libc::poll(&raw mut entry, 1, milliseconds) > 0 }
}

/// Wait for input like [`wait_readable`], in a process with signal handlers. `timeout` is optional.
/// `run_handlers` runs the pending handlers first. A later signal interrupts the wait, even if it
/// comes just before it.
pub fn wait_readable_or_signal(socket: BorrowedFd<'_>, timeout: Option<Duration>, run_handlers: fn()) -> io::Result<bool> {
    run_handlers();
    let held = SignalsHeld::all()?;
    // A signal may have come between the two lines above; rarely so.
    run_handlers();
    wait_readable_with(socket, timeout, held)
}

/// Wait for input like [`wait_readable`]. `held` has blocked the signals; they come during the wait
/// and interrupt it, and are let through after it.
pub fn wait_readable_with(socket: BorrowedFd<'_>, timeout: Option<Duration>, held: SignalsHeld) -> io::Result<bool> {
    let mut entry = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    #[cfg(target_os = "linux")]
    let ready = {
        let limit = timeout.map(|timeout| libc::timespec {
            tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let limit = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: the pointers are to live structures, as the count says, or null; the mask is one
        // that the system gave.
        check(unsafe { libc::ppoll(&raw mut entry, 1, limit, &raw const held.before) })
    };
    #[cfg(not(target_os = "linux"))]
    let ready = {
        // ppoll is not available everywhere: check for signals ten times a second.
        drop(held);
        let limit = timeout.map_or(100, |timeout| libc::c_int::try_from(timeout.as_millis()).unwrap_or(100).min(100));
        // SAFETY: the pointer is to one live structure, as the count says.
        match check(unsafe { libc::poll(&raw mut entry, 1, limit) }) {
            Ok(0) => Err(io::ErrorKind::Interrupted.into()),
            ready => ready,
        }
    };
    Ok(ready? > 0)
}

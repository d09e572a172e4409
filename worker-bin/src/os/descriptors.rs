//! File descriptors: identity, inheritance, and tables of a thread's own.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::os::check;

/// Whether the descriptor is an open socket.
pub fn is_socket(descriptor: RawFd) -> bool {
    status_of(descriptor).is_some_and(|status| status.st_mode & libc::S_IFMT == libc::S_IFSOCK)
}

/// What an open file or socket has to itself among all that are open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity(libc::dev_t, libc::ino_t);

/// What the descriptor is open on; `None` if it is not open.
pub fn identity_of(descriptor: BorrowedFd<'_>) -> Option<Identity> {
    identity_of_number(descriptor.as_raw_fd())
}

/// The same for one of which only the number is known.
pub fn identity_of_number(descriptor: RawFd) -> Option<Identity> {
    status_of(descriptor).map(|status| Identity(status.st_dev, status.st_ino))
}

fn status_of(descriptor: RawFd) -> Option<libc::stat> {
    let mut status = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: fstat writes at most one `stat` to the place given and takes any number as a descriptor.
    if unsafe { libc::fstat(descriptor, status.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: fstat has succeeded, so it has filled the structure.
    Some(unsafe { status.assume_init() })
}

/// Takes possession of an inherited descriptor, which nothing else in this process may own, and keeps it from being
/// inherited further.
pub fn adopt(descriptor: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_SETFD takes an int and touches no memory.
    check(unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: the call above has shown that the descriptor is open; the caller answers for its being free.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Closes every descriptor from `first` on. Nothing in the process may own one of them.
pub fn close_from(first: RawFd) {
    if close_range(first, RawFd::MAX, 0) {
        return;
    }
    // Kernels before 5.9, and seccomp filters that do not know the call. The list is taken before the first close:
    // reading the directory needs a descriptor of its own.
    let directory = if cfg!(target_os = "linux") { "/proc/thread-self/fd" } else { "/dev/fd" };
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    let open: Vec<RawFd> = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for descriptor in open.into_iter().filter(|descriptor| *descriptor >= first) {
        // SAFETY: by the caller's word nobody owns it; the one that was the directory's own gives EBADF, which does no harm.
        unsafe { libc::close(descriptor) };
    }
}

/// Whether the kernel has closed all of these.
fn close_range(first: RawFd, last: RawFd, flags: libc::c_uint) -> bool {
    #[cfg(target_os = "linux")]
    // SAFETY: close_range takes three integers; by the word of the caller's caller nobody owns what it closes.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) == 0 };
    #[cfg(not(target_os = "linux"))]
    let closed = {
        let _ = (first, last, flags);
        false
    };
    closed
}

/// Gives the calling thread a table of descriptors of its own, with only those that are to be `kept` in it: what other threads
/// close and open from now on is nothing to it, and what it opens is nothing to them. Standard streams are the null device.
/// False: this system cannot do so, and nothing has changed.
///
/// To be called by a thread that owns no descriptor yet.
pub fn leave_descriptor_table(kept: &[RawFd]) -> bool {
    let Some(last) = kept.iter().max().copied() else { return false };
    // One call does both (Linux 5.9), and container sandboxes that forbid `unshare` let it pass.
    #[cfg(target_os = "linux")]
    // SAFETY: unshare takes an integer; with this flag it copies the table, as the call in front of it does.
    let left = close_range(last + 1, RawFd::MAX, libc::CLOSE_RANGE_UNSHARE) || unsafe { libc::unshare(libc::CLONE_FILES) } == 0;
    #[cfg(not(target_os = "linux"))]
    let left = false;
    if !left {
        return false;
    }
    close_from(last + 1);
    for number in (3..last).filter(|number| !kept.contains(number)) {
        // SAFETY: in a table that only this thread has, and by the caller's word it owns none in it.
        unsafe { libc::close(number) };
    }
    for stream in 0..3 {
        if put_null_in_place(stream).is_err() {
            // SAFETY: as above. Somebody may wait for the end of a pipe that this is.
            unsafe { libc::close(stream) };
        }
    }
    true
}

/// Closes a descriptor in a table that is the calling thread's own; there may be nothing under the number.
pub fn close_in_own_table(descriptor: RawFd) {
    // SAFETY: close takes any number. The main thread's descriptor of that number, and who owns it, are not concerned.
    unsafe { libc::close(descriptor) };
}

/// Writes to a file where its last writer left off. Those that hold it share the place (open(2), «open file description»).
pub fn append(file: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        // SAFETY: the pointer and the length are those of the slice.
        let count = unsafe { libc::write(file.as_raw_fd(), rest.as_ptr().cast(), rest.len()) };
        match usize::try_from(count) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => rest = rest.get(count..).unwrap_or_default(),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

/// The length of an open file, in bytes; 0 if it is not open. May be called in a signal's handler.
pub fn size_of(descriptor: RawFd) -> u64 {
    status_of(descriptor).and_then(|status| u64::try_from(status.st_size).ok()).unwrap_or_default()
}

/// Puts a copy of the descriptor where `number` is, whatever was open there. Above 2 it is closed on exec.
///
/// What owned the number owns the new one.
pub fn put_in_place(descriptor: BorrowedFd<'_>, number: RawFd) -> io::Result<()> {
    if descriptor.as_raw_fd() == number {
        return Ok(());
    }
    // SAFETY: dup2 takes two integers; by the caller's word nobody relies on what was open there.
    check(unsafe { libc::dup2(descriptor.as_raw_fd(), number) })?;
    if number > 2 {
        // SAFETY: F_SETFD takes an int and touches no memory.
        check(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    }
    Ok(())
}

/// Opens the null device where the parent has no standard stream, as Rust's runtime does it in a worker that is started: else
/// the number would go to what is opened next.
pub fn put_null_in_place(number: RawFd) -> io::Result<()> {
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    put_in_place(null.as_fd(), number)
}

/// Changes the working directory to the one that is open as `directory`.
pub fn change_directory(directory: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: fchdir takes an integer.
    check(unsafe { libc::fchdir(directory.as_raw_fd()) }).map(drop)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn a_thread_with_a_table_of_its_own_keeps_what_others_close_and_opens_nothing_of_theirs() {
        let (ours, theirs) = io::pipe().unwrap();
        let (kept, closed) = (theirs.as_fd(), ours.as_fd());
        let kept = std::os::fd::AsRawFd::as_raw_fd(&kept);
        let closed = std::os::fd::AsRawFd::as_raw_fd(&closed);
        let before = identity_of_number(kept);
        let (go_on, may_go_on) = mpsc::channel::<()>();
        let (ready, is_ready) = mpsc::channel();
        let thread = thread::spawn(move || {
            let is_apart = leave_descriptor_table(&[kept]);
            ready.send((is_apart, identity_of_number(closed).is_some())).unwrap();
            let _ = may_go_on.recv();
            identity_of_number(kept)
        });
        assert_eq!(is_ready.recv().unwrap(), (true, false));
        drop((ours, theirs));
        drop(go_on);
        assert_eq!(thread.join().unwrap(), before);
    }
}

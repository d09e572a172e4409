//! File descriptors: identity, inheritance, and descriptor tables.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::os::check;

/// True if the descriptor is an open socket.
pub fn is_socket(descriptor: RawFd) -> bool {
    status_of(descriptor).is_some_and(|status| status.st_mode & libc::S_IFMT == libc::S_IFSOCK)
}

/// Identifies an open file or socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity(libc::dev_t, libc::ino_t);

/// The identity of an open descriptor.
pub fn identity_of(descriptor: BorrowedFd<'_>) -> Option<Identity> {
    identity_of_number(descriptor.as_raw_fd())
}

/// The identity of a descriptor number; `None` if it is not open.
pub fn identity_of_number(descriptor: RawFd) -> Option<Identity> {
    status_of(descriptor).map(|status| Identity(status.st_dev, status.st_ino))
}

fn status_of(descriptor: RawFd) -> Option<libc::stat> {
    let mut status = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: fstat writes at most one `stat` to the place given and takes any number as a
    // descriptor.
    if unsafe { libc::fstat(descriptor, status.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: fstat has succeeded, so it has filled the structure.
    Some(unsafe { status.assume_init() })
}

/// Take ownership of an inherited descriptor, and make it close-on-exec. No other code may own it.
pub fn adopt(descriptor: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_SETFD takes an int.
    check(unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: the call above has shown that the descriptor is open; the caller answers for its
    // being free.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Close every descriptor from `first` on. No code in the process may own one of them.
pub fn close_from(first: RawFd) {
    if close_range(first, RawFd::MAX, 0) {
        return;
    }
    // For kernels before 5.9, and for seccomp filters that refuse the call. List first, then close:
    // reading the directory takes a descriptor.
    let directory = if cfg!(target_os = "linux") { "/proc/thread-self/fd" } else { "/dev/fd" };
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    let open: Vec<RawFd> = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for descriptor in open.into_iter().filter(|descriptor| *descriptor >= first) {
        // SAFETY: by the caller's word nobody owns it; the one that was the directory's own gives
        // EBADF, which does no harm.
        unsafe { libc::close(descriptor) };
    }
}

/// Return true if the kernel has closed the range.
fn close_range(first: RawFd, last: RawFd, flags: libc::c_uint) -> bool {
    #[cfg(target_os = "linux")]
    // SAFETY: close_range takes three integers; by the word of the caller's caller nobody owns what
    // it closes.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) == 0 };
    #[cfg(not(target_os = "linux"))]
    let closed = {
        let _ = (first, last, flags);
        false
    };
    closed
}

/// Give the calling thread its own descriptor table, with only the `kept` ones in it and null
/// devices as standard streams. Other threads' opens and closes no longer affect it. Return false
/// if the system cannot do this; then nothing has changed.
///
/// The calling thread must not own a descriptor yet.
pub fn unshare_descriptor_table(kept: &[RawFd]) -> bool {
    let Some(last) = kept.iter().max().copied() else { return false };
    // One call does both (Linux 5.9). Sandboxes that forbid `unshare` allow it.
    if !close_range(last + 1, RawFd::MAX, CLOSE_RANGE_UNSHARE) {
        if !unshare_files() {
            return false;
        }
        close_from(last + 1);
    }
    for number in (3..last).filter(|number| !kept.contains(number)) {
        // SAFETY: in a table that only this thread has, and by the caller's word it owns none in
        // it.
        unsafe { libc::close(number) };
    }
    let null = open_null();
    for stream in 0..3 {
        let replaced = null.as_ref().is_ok_and(|null| put_in_place(null.as_fd(), stream).is_ok());
        if !replaced {
            // SAFETY: as above. Somebody may wait for the end of a pipe that this is.
            unsafe { libc::close(stream) };
        }
    }
    true
}

#[cfg(target_os = "linux")]
const CLOSE_RANGE_UNSHARE: libc::c_uint = libc::CLOSE_RANGE_UNSHARE;
#[cfg(not(target_os = "linux"))]
const CLOSE_RANGE_UNSHARE: libc::c_uint = 0;

/// Copy the calling thread's descriptor table. Return false if the system cannot do this.
fn unshare_files() -> bool {
    #[cfg(target_os = "linux")]
    // SAFETY: unshare takes an integer; with this flag it copies the table.
    let left = unsafe { libc::unshare(libc::CLONE_FILES) } == 0;
    #[cfg(not(target_os = "linux"))]
    let left = false;
    left
}

/// Close a number in the calling thread's own table, if it is open.
pub fn close_in_own_table(descriptor: RawFd) {
    // SAFETY: close takes any number. The main thread's descriptor of that number, and who owns it,
    // are not concerned.
    unsafe { libc::close(descriptor) };
}

/// Append to a file. All holders of it share the position (open(2), "open file description").
pub fn append(file: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        // SAFETY: the pointer and the length belong to the slice.
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

/// The size of an open file in bytes; 0 if it is not open. Async-signal-safe.
pub fn size_of(descriptor: RawFd) -> u64 {
    status_of(descriptor).and_then(|status| u64::try_from(status.st_size).ok()).unwrap_or_default()
}

/// Duplicate a descriptor to `number`, replacing what was open there. Above 2 it is close-on-exec.
///
/// The owner of the number owns the new descriptor.
pub fn put_in_place(descriptor: BorrowedFd<'_>, number: RawFd) -> io::Result<()> {
    if descriptor.as_raw_fd() == number {
        return Ok(());
    }
    // SAFETY: dup2 takes two integers; by the caller's word nobody relies on what was open there.
    check(unsafe { libc::dup2(descriptor.as_raw_fd(), number) })?;
    if number > 2 {
        // SAFETY: F_SETFD takes an int.
        check(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    }
    Ok(())
}

/// Open the null device in place of a standard stream that the parent lacks, as Rust's runtime does
/// at a start. Otherwise the next file opened would get the number.
pub fn put_null_in_place(number: RawFd) -> io::Result<()> {
    put_in_place(open_null()?.as_fd(), number)
}

fn open_null() -> io::Result<std::fs::File> {
    std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")
}

/// Change the working directory to an open one.
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
    fn an_unshared_table_is_independent_of_other_threads() {
        let (ours, theirs) = io::pipe().unwrap();
        let (kept, closed) = (theirs.as_fd(), ours.as_fd());
        let kept = std::os::fd::AsRawFd::as_raw_fd(&kept);
        let closed = std::os::fd::AsRawFd::as_raw_fd(&closed);
        let before = identity_of_number(kept);
        let (go_on, may_go_on) = mpsc::channel::<()>();
        let (ready, is_ready) = mpsc::channel();
        let thread = thread::spawn(move || {
            let is_apart = unshare_descriptor_table(&[kept]);
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

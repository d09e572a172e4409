//! `/proc`, read through a descriptor that is held from the start.
//!
//! A job may change its root directory or unmount `/proc`, and the native thread must still read
//! it. So the folder stays open, together with a reserve descriptor. If all descriptors are in use
//! (the system's table may be full), the reserve is closed during a read. The native thread holds
//! both in its own table. Threads with another table notice by the identity that they are missing,
//! and use the path.

use std::ffi::CString;
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, IntoRawFd as _, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use crate::os::check;
use crate::os::descriptors::{Identity, identity_of_number};

/// A descriptor that a job can close.
#[derive(Debug, Clone, Copy)]
struct Held {
    number: RawFd,
    identity: Identity,
}

impl Held {
    fn new(descriptor: OwnedFd) -> Option<Self> {
        let identity = identity_of_number(descriptor.as_raw_fd())?;
        // Not owned: the identity is checked before each use.
        Some(Self { number: descriptor.into_raw_fd(), identity })
    }

    fn is_ours(self) -> bool {
        identity_of_number(self.number) == Some(self.identity)
    }

    fn close(self) {
        if self.is_ours() {
            // SAFETY: this module has opened the descriptor, and is its only user.
            drop(unsafe { OwnedFd::from_raw_fd(self.number) });
        }
    }
}

static FOLDER: Mutex<Option<Held>> = Mutex::new(None);
static RESERVE: Mutex<Option<Held>> = Mutex::new(None);

/// Hold `/proc` open. The calling thread must have its own descriptor table.
pub fn hold() {
    let folder = open_at(None, "").ok().and_then(Held::new);
    *FOLDER.lock().unwrap_or_else(PoisonError::into_inner) = folder;
    *RESERVE.lock().unwrap_or_else(PoisonError::into_inner) = new_reserve();
}

/// A unique file, so that it is not mistaken for a job's.
#[cfg(target_os = "linux")]
fn new_reserve() -> Option<Held> {
    // SAFETY: memfd_create takes a C string and an integer.
    let descriptor = unsafe { libc::syscall(libc::SYS_memfd_create, c"trio-offload-reserve".as_ptr(), libc::MFD_CLOEXEC) };
    let descriptor = RawFd::try_from(descriptor).ok().filter(|descriptor| *descriptor >= 0)?;
    // SAFETY: the system has just made it, so this is the only owner.
    Held::new(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

#[cfg(not(target_os = "linux"))]
fn new_reserve() -> Option<Held> {
    None
}

/// Read a file below `/proc`.
pub fn read(path: &str) -> io::Result<Vec<u8>> {
    with_reserve(|| {
        let mut content = Vec::new();
        std::fs::File::from(open(path)?).read_to_end(&mut content)?;
        Ok(content)
    })
}

/// The numeric names in a folder below `/proc`: processes, or threads.
pub fn numbers_in(path: &str) -> io::Result<Vec<i32>> {
    with_reserve(|| {
        let folder = open(path)?;
        let mut found = Vec::new();
        let mut entries = vec![0_u8; 32 * 1024];
        loop {
            let length = read_entries(folder.as_raw_fd(), &mut entries)?;
            if length == 0 {
                return Ok(found);
            }
            numbers_among(entries.get(..length).unwrap_or_default(), &mut found);
        }
    })
}

/// Release the reserve if all descriptors are in use. The work must close its own descriptors.
fn with_reserve<T>(work: impl Fn() -> io::Result<T>) -> io::Result<T> {
    match work() {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
            let mut reserve = RESERVE.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(held) = reserve.take() else { return Err(error) };
            held.close();
            let result = work();
            *reserve = new_reserve();
            result
        }
        result => result,
    }
}

fn open(path: &str) -> io::Result<OwnedFd> {
    let folder = FOLDER.lock().unwrap_or_else(PoisonError::into_inner).filter(|held| held.is_ours());
    open_at(folder.map(|held| held.number), path)
}

fn open_at(folder: Option<RawFd>, path: &str) -> io::Result<OwnedFd> {
    let (folder, path) = match folder {
        Some(number) if path.is_empty() => (number, ".".to_owned()),
        Some(number) => (number, path.to_owned()),
        None => (libc::AT_FDCWD, format!("/proc/{path}")),
    };
    let path = CString::new(path)?;
    // SAFETY: openat takes integers and a C string.
    let descriptor = check(unsafe { libc::openat(folder, path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) })?;
    // SAFETY: the system has just made it, so this is the only owner.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

#[cfg(target_os = "linux")]
fn read_entries(folder: RawFd, entries: &mut [u8]) -> io::Result<usize> {
    // SAFETY: getdents64 writes at most so many bytes to the place given.
    let length = unsafe { libc::syscall(libc::SYS_getdents64, folder, entries.as_mut_ptr(), entries.len()) };
    usize::try_from(length).map_err(|_| io::Error::last_os_error())
}

#[cfg(not(target_os = "linux"))]
fn read_entries(_folder: RawFd, _entries: &mut [u8]) -> io::Result<usize> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Parse directory entries (getdents(2), `linux_dirent64`): the length at offset 16, the name at
/// 19.
fn numbers_among(mut entries: &[u8], found: &mut Vec<i32>) {
    while let Some((low, high)) = entries.get(16).zip(entries.get(17)) {
        let length = usize::from(u16::from_ne_bytes([*low, *high]));
        let name = entries.get(19..length).unwrap_or_default().split(|byte| *byte == 0).next().unwrap_or_default();
        found.extend(str::from_utf8(name).ok().and_then(|name| name.parse::<i32>().ok()));
        match entries.get(length.max(20)..) {
            Some(rest) => entries = rest,
            None => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_and_its_threads_are_listed() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(numbers_in("").unwrap().contains(&own));
        assert!(numbers_in("self/task").unwrap().contains(&own));
        assert!(numbers_in("0/task").is_err());
        assert!(read("self/stat").unwrap().starts_with(own.to_string().as_bytes()));
    }

    #[test]
    fn damaged_entries_give_no_numbers_and_end() {
        let mut found: Vec<i32> = Vec::new();
        for length in 0..64 {
            numbers_among(&vec![0xff; length], &mut found);
            numbers_among(&vec![0; length], &mut found);
            numbers_among(&vec![1; length], &mut found);
        }
        assert!(found.is_empty(), "{found:?}");
    }
}

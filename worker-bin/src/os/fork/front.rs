//! The front of a worker's record, to which the kernel writes its number.

use std::ffi::c_int;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::ptr::NonNull;

/// The front of a record, in memory that is shared with the file, and so with the parent. The kernel writes the number of a new
/// process there (`CLONE_PARENT_SETTID`) when it has made it and before it lets it run. So whoever is killed, and when, the
/// parent knows of every child that it has.
#[derive(Debug)]
pub struct Front(pub(super) NonNull<c_int>);

impl Front {
    /// `None`: it is no file that can be in memory. Then a worker that dies before it has told its number stays a zombie.
    pub fn of(record: BorrowedFd<'_>) -> Option<Self> {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a null pointer leaves the place to the system, which takes none that is in use.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), size_of::<c_int>(), protection, flags, record.as_raw_fd(), 0) };
        if address == libc::MAP_FAILED {
            return None;
        }
        let front = Self(NonNull::new(address.cast())?);
        // The page is there when the kernel writes to it.
        front.clear();
        Some(front)
    }

    pub(super) fn clear(&self) {
        // SAFETY: a mapping of a file that has as much, at its beginning: an int's place, and nobody here has a reference to it.
        unsafe { self.0.as_ptr().write_volatile(0) };
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        // SAFETY: what `of` has mapped, in this process or in a copy that has the mapping too; nobody else knows it.
        unsafe { libc::munmap(self.0.as_ptr().cast(), size_of::<c_int>()) };
    }
}

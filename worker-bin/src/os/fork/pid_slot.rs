//! The place in a worker's record to which the kernel writes the worker's process ID.

use std::ffi::c_int;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::ptr::NonNull;

/// The front of a record, mapped and shared with the parent. The kernel writes a new process's ID
/// there (`CLONE_PARENT_SETTID`) before that process runs. So the parent learns of every child,
/// even if processes are killed at any moment.
#[derive(Debug)]
pub struct PidSlot(pub(super) NonNull<c_int>);

impl PidSlot {
    /// Map the front of a record. `None` means that it cannot be mapped; then a worker that dies
    /// early stays a zombie.
    pub fn of(record: BorrowedFd<'_>) -> Option<Self> {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a null pointer lets the system choose a free place.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), size_of::<c_int>(), protection, flags, record.as_raw_fd(), 0) };
        if address == libc::MAP_FAILED {
            return None;
        }
        let pid_slot = Self(NonNull::new(address.cast())?);
        // Create the page before the kernel writes to it.
        pid_slot.clear();
        Some(pid_slot)
    }

    pub(super) fn clear(&self) {
        // SAFETY: a mapping of a file that has as much, at its beginning: an int's place, without
        // references to it.
        unsafe { self.0.as_ptr().write_volatile(0) };
    }
}

impl Drop for PidSlot {
    fn drop(&mut self) {
        // SAFETY: what `of` has mapped, in this process or in a copy that has the mapping too;
        // nobody else knows it.
        unsafe { libc::munmap(self.0.as_ptr().cast(), size_of::<c_int>()) };
    }
}

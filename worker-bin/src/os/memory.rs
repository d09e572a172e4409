//! Memory mappings.

use std::mem::MaybeUninit;
use std::os::fd::RawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

/// Size of a huge page on the supported processors. A wrong value only costs speed.
const HUGE_PAGE: usize = 2 << 20;

/// Page size in bytes.
pub fn page_size() -> u64 {
    // SAFETY: sysconf takes a number and gives one.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// A private memory mapping.
#[derive(Debug)]
pub struct Mapping {
    address: NonNull<MaybeUninit<u8>>,
    length: usize,
    /// The length of the mapping; `length` is rounded up.
    whole: usize,
}

// SAFETY: the mapping is the only owner of the memory, on any thread.
unsafe impl Send for Mapping {}

// SAFETY: it is reached through `&mut` only.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Map new memory, with huge pages if possible. `None` means out of memory.
    pub fn new(length: usize) -> Option<Self> {
        // Linux aligns a mapping for huge pages if its length is a multiple of theirs
        // (mm/huge_memory.c, thp_get_unmapped_area). For small mappings the rounding would waste
        // memory.
        let unit = if length >= 8 * HUGE_PAGE { HUGE_PAGE } else { usize::try_from(page_size()).ok()? };
        let whole = length.max(1).checked_next_multiple_of(unit)?;
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a null pointer lets the system choose a free place.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), whole, protection, flags, -1, 0) };
        if address == libc::MAP_FAILED {
            return None;
        }
        let mapping = Self { address: NonNull::new(address.cast())?, length, whole };
        // SAFETY: `whole` bytes were mapped at the address, and this is its only pointer.
        advise_huge_pages(unsafe { std::slice::from_raw_parts_mut(mapping.address.as_ptr(), mapping.whole) });
        Some(mapping)
    }

    pub fn length(&self) -> usize {
        self.length
    }

    pub fn memory(&mut self) -> &mut [MaybeUninit<u8>] {
        // SAFETY: `length` bytes are mapped at the address until this is dropped, and this is the
        // only way to them.
        unsafe { std::slice::from_raw_parts_mut(self.address.as_ptr(), self.length) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the address and the length are those that were mapped, and this is the last that
        // knows them.
        unsafe { libc::munmap(self.address.as_ptr().cast(), self.whole) };
    }
}

/// Integers at the start of a file, in memory that is shared with the file's other holders.
#[derive(Debug)]
pub struct SharedWords<const COUNT: usize>(AtomicPtr<[AtomicU64; COUNT]>);

impl<const COUNT: usize> SharedWords<COUNT> {
    /// Words that are in no file yet.
    pub const fn new() -> Self {
        Self(AtomicPtr::new(std::ptr::null_mut()))
    }

    /// The integers. `None` if no file is mapped.
    pub fn get(&self) -> Option<&'static [AtomicU64; COUNT]> {
        // SAFETY: the address is null, or a mapping of this length starts there, which is kept for
        // ever. The file cannot shrink below it.
        unsafe { self.0.load(Ordering::Relaxed).as_ref() }
    }

    /// Map a file in place of the one before. A file that may shrink is not mapped, because a store
    /// behind its end would end the process.
    pub fn map(&self, file: RawFd) {
        self.0.store(Self::mapped(file).map_or_else(std::ptr::null_mut, |address| address.cast()), Ordering::Relaxed);
    }

    #[cfg(target_os = "linux")]
    fn mapped(file: RawFd) -> Option<*mut libc::c_void> {
        let length = COUNT * size_of::<AtomicU64>();
        // SAFETY: F_GET_SEALS takes no argument.
        let seals = unsafe { libc::fcntl(file, libc::F_GET_SEALS) };
        let is_long = super::descriptors::size_of(file) >= u64::try_from(length).ok()?;
        if seals == -1 || seals & libc::F_SEAL_SHRINK == 0 || !is_long {
            return None;
        }
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a null pointer lets the system choose a free place.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, libc::MAP_SHARED, file, 0) };
        (address != libc::MAP_FAILED).then_some(address)
    }

    #[cfg(not(target_os = "linux"))]
    fn mapped(_file: RawFd) -> Option<*mut libc::c_void> {
        None
    }
}

impl<const COUNT: usize> Default for SharedWords<COUNT> {
    fn default() -> Self {
        Self::new()
    }
}

/// Request huge pages for memory that is about to be written: one page fault for every 4 KiB costs
/// more than the copy.
pub fn advise_huge_pages(memory: &mut [MaybeUninit<u8>]) {
    #[cfg(target_os = "linux")]
    {
        let page = usize::try_from(page_size()).unwrap_or(4096).max(1);
        let skipped = memory.as_mut_ptr().align_offset(page);
        let length = memory.len().saturating_sub(skipped) / page * page;
        if let Some(interior) = memory.get_mut(skipped..).filter(|_| length > 0) {
            // SAFETY: the pages lie wholly inside the slice, and MADV_HUGEPAGE keeps their
            // contents.
            unsafe { libc::madvise(interior.as_mut_ptr().cast(), length, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
    use std::os::unix::fs::FileExt as _;

    use super::*;

    fn file(seals: libc::c_int) -> std::fs::File {
        // SAFETY: memfd_create reads a C string.
        let number = unsafe { libc::memfd_create(c"words".as_ptr(), libc::MFD_ALLOW_SEALING | libc::MFD_CLOEXEC) };
        // SAFETY: the number was just made, and this is its first owner.
        let mut file = std::fs::File::from(unsafe { OwnedFd::from_raw_fd(number) });
        file.write_all(&[0; 16]).unwrap();
        // SAFETY: F_ADD_SEALS takes an int.
        assert_eq!(unsafe { libc::fcntl(number, libc::F_ADD_SEALS, seals) }, 0);
        file
    }

    #[test]
    fn a_word_is_in_the_file() {
        let file = file(libc::F_SEAL_SHRINK);
        let words = SharedWords::<2>::new();
        assert!(words.get().is_none());
        words.map(file.as_raw_fd());
        words.get().unwrap()[1].store(7, Ordering::Relaxed);
        let mut read = [0; 8];
        file.read_exact_at(&mut read, 8).unwrap();
        assert_eq!(u64::from_ne_bytes(read), 7);
    }

    #[test]
    fn a_file_that_is_short_or_may_shrink_is_not_mapped() {
        let words = SharedWords::<3>::new();
        words.map(file(libc::F_SEAL_SHRINK).as_raw_fd());
        assert!(words.get().is_none());
        let words = SharedWords::<2>::new();
        words.map(file(0).as_raw_fd());
        assert!(words.get().is_none());
        words.map(-1);
        assert!(words.get().is_none());
    }
}

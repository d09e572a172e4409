//! Memory mappings.

use std::mem::MaybeUninit;
use std::ptr::NonNull;

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

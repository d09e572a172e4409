//! Memory straight from the system.

use std::mem::MaybeUninit;
use std::ptr::NonNull;

/// Bytes in a page of memory.
pub fn page_size() -> u64 {
    // SAFETY: sysconf takes a number and gives one.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// Memory of this process's own, straight from the system.
#[derive(Debug)]
pub struct Mapping {
    address: NonNull<MaybeUninit<u8>>,
    length: usize,
    /// What has been taken of the address space.
    whole: usize,
}

// SAFETY: nobody else has the memory, and it belongs to no thread.
unsafe impl Send for Mapping {}

// SAFETY: it is reached through `&mut` only.
unsafe impl Sync for Mapping {}

/// The size of a huge page on the processors that there are wheels for. Another one costs speed and nothing else.
const HUGE_PAGE: usize = 2 << 20;

impl Mapping {
    /// New memory, asked for in huge pages. `None`: there is not so much.
    pub fn new(length: usize) -> Option<Self> {
        // Linux puts a mapping where its huge pages can begin if its length is a multiple of theirs (mm/huge_memory.c,
        // thp_get_unmapped_area). For small ones what that takes at the end would count.
        let unit = if length >= 8 * HUGE_PAGE { HUGE_PAGE } else { usize::try_from(page_size()).ok()? };
        let whole = length.max(1).checked_next_multiple_of(unit)?;
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a null pointer leaves the place to the system, which takes none that is in use.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), whole, protection, flags, -1, 0) };
        if address == libc::MAP_FAILED {
            return None;
        }
        let mapping = Self { address: NonNull::new(address.cast())?, length, whole };
        // SAFETY: `whole` bytes were mapped at the address, and nobody else knows it.
        advise_huge_pages(unsafe { std::slice::from_raw_parts_mut(mapping.address.as_ptr(), mapping.whole) });
        Some(mapping)
    }

    pub fn length(&self) -> usize {
        self.length
    }

    pub fn memory(&mut self) -> &mut [MaybeUninit<u8>] {
        // SAFETY: `length` bytes are mapped at the address until this is dropped, and this is the only way to them.
        unsafe { std::slice::from_raw_parts_mut(self.address.as_ptr(), self.length) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the address and the length are those that were mapped, and this is the last that knows them.
        unsafe { libc::munmap(self.address.as_ptr().cast(), self.whole) };
    }
}

/// Asks for huge pages behind a large piece of memory that is about to be written for the first time: a page fault for
/// every 4 KiB costs more than the copying itself.
pub fn advise_huge_pages(memory: &mut [MaybeUninit<u8>]) {
    #[cfg(target_os = "linux")]
    {
        let page = usize::try_from(page_size()).unwrap_or(4096).max(1);
        let skipped = memory.as_mut_ptr().align_offset(page);
        let length = memory.len().saturating_sub(skipped) / page * page;
        if let Some(interior) = memory.get_mut(skipped..).filter(|_| length > 0) {
            // SAFETY: the pages lie wholly inside the slice, and MADV_HUGEPAGE changes nothing that is in them.
            unsafe { libc::madvise(interior.as_mut_ptr().cast(), length, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}

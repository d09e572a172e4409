//! The process and thread IDs that the C library caches, and how to correct them after a bare
//! `clone(2)`.
//!
//! `fork(3)` updates these IDs in the child; the system call does not. Their addresses are private,
//! and have changed: before glibc 2.25 the process ID is cached too, and since 2.43
//! `PR_GET_TID_ADDRESS` (prctl(2)) returns another field of the thread. So the C library itself is
//! tested:
//!
//! * `pthread_getcpuclockid(3)` returns the cached thread ID without a system call, inside a clock
//!   ID in the kernel's format (include/linux/posix-timers.h). `getpid(2)` returns the process ID,
//!   cached or not.
//! * Each word in and near the control block that contains this ID is changed for a moment, with
//!   all signals blocked. If the library then returns the changed ID, the word is the right one.
//!
//! Two hints are tried first: libthread_db's description for debuggers (`_thread_db_pthread_tid`,
//! in the C library since glibc 2.34), and the kernel's. Without them all words within [`REACH`]
//! are tried, which takes some more system calls, once in a template's life. The kernel reads and
//! writes each word, so a mistake is an error and not a crash.

use std::ffi::{c_int, c_void};
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::AsRawFd as _;

use crate::os::signals::SignalsHeld;

/// Length of the search in bytes. Today's control blocks have 2,304 to 2,368 bytes, with the ID in
/// the first 800.
const REACH: usize = 2400;

/// The addresses at which the C library keeps the IDs of the thread that found them. They are the
/// same in a copy of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CachedIds {
    thread: usize,
    /// `None` means that `getpid` asks the kernel.
    process: Option<usize>,
}

impl CachedIds {
    /// Find the addresses. `None` means that the thread ID's is unknown. Call this in the main
    /// thread, while no other thread looks them up.
    pub(super) fn find() -> Option<Self> {
        Self::among([described_for_debuggers(), cleared_by_kernel()].into_iter().flatten())
    }

    fn among(hints: impl Iterator<Item = usize>) -> Option<Self> {
        let _held = SignalsHeld::all().ok()?;
        let window = OwnMemory::new().ok()?;
        let words = window.words_from(control_block(), REACH);
        let holding = |number| words.iter().filter(move |(_, value)| *value == number).map(|(place, _)| *place);
        let mut places = hints.chain(holding(kernel_thread_id()));
        let thread = places.find(|place| window.is_shown_by(*place, library_thread_id))?;
        let process = holding(kernel_process_id()).find(|place| window.is_shown_by(*place, library_process_id));
        Some(Self { thread, process })
    }

    /// The address for `CLONE_CHILD_SETTID`.
    pub(super) fn thread_id_address(self) -> *mut c_int {
        std::ptr::with_exposed_provenance_mut(self.thread)
    }

    /// Write the process ID in a copy of the process, if it is cached; the kernel has written the
    /// thread ID. Return true if the C library has both right.
    pub(super) fn update(self) -> bool {
        let number = kernel_process_id();
        if let Some(place) = self.process {
            // SAFETY: the C library keeps an int at this place as long as the thread lives, which
            // is the calling one. It was found by a write and a read of the same kind.
            unsafe { std::ptr::with_exposed_provenance_mut::<c_int>(place).write_volatile(number) };
        }
        library_thread_id() == Some(kernel_thread_id()) && library_process_id() == Some(number)
    }
}

/// The address that debuggers use.
fn described_for_debuggers() -> Option<usize> {
    /// libthread_db's description of a member (nptl_db/thread_dbP.h): size in bits, count, offset.
    type Member = [u32; 3];
    // SAFETY: dlsym reads a C string.
    let member = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"_thread_db_pthread_tid".as_ptr()) };
    if member.is_null() {
        return None;
    }
    // SAFETY: an object of this name is a description of this form, in every C library that has it
    // and every debugger that reads it.
    let [bits, count, offset] = unsafe { member.cast::<Member>().read_unaligned() };
    let offset = usize::try_from(offset).ok().filter(|offset| *offset < REACH)?;
    (bits == c_int::BITS && count == 1).then_some(control_block() + offset)
}

/// The address that the kernel clears at the thread's end. It was the thread ID's for twenty years.
fn cleared_by_kernel() -> Option<usize> {
    const PR_GET_TID_ADDRESS: c_int = 40;
    let mut address: *mut c_int = std::ptr::null_mut();
    // SAFETY: the call writes one pointer to the place given (kernels with
    // CONFIG_CHECKPOINT_RESTORE).
    let status = unsafe { libc::prctl(PR_GET_TID_ADDRESS, &raw mut address, 0, 0, 0) };
    (status == 0 && !address.is_null()).then(|| address.expose_provenance())
}

/// A `pthread_t` is the address of the control block, in glibc and in musl.
fn control_block() -> usize {
    // SAFETY: pthread_self is always safe to call.
    usize::try_from(unsafe { libc::pthread_self() }).unwrap_or_default()
}

/// The C library's ID of the calling thread.
fn library_thread_id() -> Option<c_int> {
    let mut clock: libc::clockid_t = 0;
    // SAFETY: the calling thread is there, and one clockid_t is written to the place given.
    let status = unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &raw mut clock) };
    (status == 0).then_some(!(clock >> 3))
}

#[expect(clippy::unnecessary_wraps, reason = "beside the one of the thread")]
fn library_process_id() -> Option<c_int> {
    // SAFETY: getpid is always safe to call.
    Some(unsafe { libc::getpid() })
}

/// The kernel's ID of the calling thread.
fn kernel_thread_id() -> c_int {
    // SAFETY: gettid is always safe to call.
    c_int::try_from(unsafe { libc::syscall(libc::SYS_gettid) }).unwrap_or_default()
}

/// The kernel's ID of this process. Before glibc 2.25 `getpid` returns a cached one.
pub(super) fn kernel_process_id() -> c_int {
    // SAFETY: getpid is always safe to call.
    c_int::try_from(unsafe { libc::syscall(libc::SYS_getpid) }).unwrap_or_default()
}

/// This process's memory through system calls, which fail for unmapped addresses.
struct OwnMemory {
    out: PipeReader,
    into: PipeWriter,
}

impl OwnMemory {
    fn new() -> io::Result<Self> {
        let (out, into) = io::pipe()?;
        Ok(Self { out, into })
    }

    /// The words from an address on, with their addresses, as far as the memory is readable.
    fn words_from(&self, address: usize, bytes: usize) -> Vec<(usize, c_int)> {
        const SIZE: usize = size_of::<c_int>();
        let mut values = vec![0 as c_int; bytes / SIZE];
        let from = std::ptr::with_exposed_provenance(address);
        let copied = self.copy(from, values.as_mut_ptr().cast(), values.len() * SIZE).unwrap_or_default();
        (address..).step_by(SIZE).zip(values).take(copied / SIZE).collect()
    }

    fn read(&self, place: usize) -> Option<c_int> {
        self.words_from(place, size_of::<c_int>()).first().map(|(_, value)| *value)
    }

    fn write(&self, place: usize, value: c_int) -> bool {
        let to = std::ptr::with_exposed_provenance_mut(place);
        self.copy((&raw const value).cast(), to, size_of::<c_int>()).is_ok()
    }

    /// Copy bytes and return their number. A pipe takes less than a page at once.
    fn copy(&self, from: *const c_void, to: *mut c_void, length: usize) -> io::Result<usize> {
        // SAFETY: the kernel reads only mapped memory.
        let taken = unsafe { libc::write(self.into.as_raw_fd(), from, length) };
        let taken = usize::try_from(taken).map_err(|_| io::Error::last_os_error())?;
        // SAFETY: the kernel writes to the memory, or says EFAULT. It is a variable of the caller,
        // or the thread's ID, which is changed for a moment without readers.
        let given = unsafe { libc::read(self.out.as_raw_fd(), to, taken) };
        let given = usize::try_from(given).map_err(|_| io::Error::last_os_error());
        if given.is_err() {
            let mut rest = vec![0_u8; taken];
            // SAFETY: undelivered bytes are still in the pipe, and go to a variable of this
            // function.
            unsafe { libc::read(self.out.as_raw_fd(), rest.as_mut_ptr().cast(), taken) };
        }
        given
    }

    /// True if the C library reads its ID from there.
    fn is_shown_by(&self, place: usize, known: fn() -> Option<c_int>) -> bool {
        let Some(before) = self.read(place).filter(|before| known() == Some(*before)) else { return false };
        let other = before ^ 1;
        let changed = self.write(place, other) && known() == Some(other);
        // A failed write leaves the old value.
        let restored = self.write(place, before) && known() == Some(before);
        changed && restored
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicI32, Ordering};

    /// The address found with these hints alone.
    fn found_with(hints: impl IntoIterator<Item = usize>) -> Option<usize> {
        CachedIds::among(hints.into_iter()).map(|ids| ids.thread)
    }

    #[test]
    fn every_way_leads_to_the_same_place() {
        let searched = found_with([]).unwrap();
        assert_eq!(CachedIds::find().unwrap().thread, searched);
        // The debugger's description exists since glibc 2.34; the kernel's address differs since
        // 2.43.
        assert!([described_for_debuggers(), cleared_by_kernel()].contains(&Some(searched)));
    }

    #[test]
    fn the_place_is_the_threads_own_and_is_left_as_it_was() {
        let ids = CachedIds::find().unwrap();
        // SAFETY: found to be readable a moment ago.
        assert_eq!(unsafe { ids.thread_id_address().read_volatile() }, kernel_thread_id());
        assert_eq!(library_thread_id(), Some(kernel_thread_id()));
        let other = std::thread::spawn(|| CachedIds::find().unwrap().thread).join().unwrap();
        assert_ne!(other, ids.thread);
    }

    #[test]
    fn a_word_that_only_happens_to_hold_the_number_is_not_taken() {
        let chance = AtomicI32::new(kernel_thread_id());
        assert_eq!(found_with([chance.as_ptr().expose_provenance()]).unwrap(), found_with([]).unwrap());
        assert_eq!(chance.load(Ordering::Relaxed), kernel_thread_id());
    }

    #[test]
    fn memory_that_is_not_there_or_cannot_be_written_is_no_place() {
        static READ_ONLY: c_int = 7;
        let window = OwnMemory::new().unwrap();
        let place = (&raw const READ_ONLY).expose_provenance();
        assert_eq!(window.read(place), Some(7));
        assert!(!window.write(place, 8));
        assert_eq!(window.read(16), None);
        // Nothing is left in the pipe.
        assert_eq!(window.read(place), Some(7));
        assert_eq!(found_with([0, 16, place]).unwrap(), found_with([]).unwrap());
    }
}

//! The numbers of this process and of its thread that the C library keeps in memory, and the way to change them after a bare
//! `clone(2)`.
//!
//! `fork(3)` writes the child's numbers where the library looks them up later; the bare call leaves the parent's there. Where
//! that is, no public interface says, and it has changed: before glibc 2.25 the process's number is kept too, and since 2.43
//! `PR_GET_TID_ADDRESS` (prctl(2)) leads to another field of the thread. So nothing is taken for granted here, and the library is
//! asked instead:
//!
//! * `pthread_getcpuclockid(3)` puts the number that the library has of a thread into the clock's number, in the kernel's own
//!   format (include/linux/posix-timers.h), without a system call. `getpid(2)` shows the other one, where it is kept.
//! * Every word in and near the thread's control block that holds this number is changed for a moment, with all signals held.
//!   If the library then gives the changed number, that is the place.
//!
//! What libthread_db reads for debuggers (`_thread_db_pthread_tid`, in the C library itself since glibc 2.34) says where to look
//! first, and so does the kernel. Without both, all words within [`REACH`] are tried. That takes some system calls more, once in the
//! life of a template. Each word is read and written by the kernel, which answers with an error where a mistake of ours would end the
//! process.

use std::ffi::{c_int, c_void};
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::AsRawFd as _;

use crate::os::signals::SignalsHeld;

/// How far the control block is searched, in bytes. It has 2304 to 2368 of them in the C libraries of today, and the number lies in
/// the first 800.
const REACH: usize = 2400;

/// Where the C library keeps the numbers of the thread that has found it. In a copy of the process they are at the same places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Numbers {
    thread: usize,
    /// `None`: `getpid` asks the kernel.
    process: Option<usize>,
}

impl Numbers {
    /// `None`: the C library keeps the thread's number where this does not find it. To be called by the main thread, while no other
    /// one looks it up.
    pub(super) fn find() -> Option<Self> {
        Self::among([described_for_debuggers(), cleared_by_kernel()].into_iter().flatten())
    }

    fn among(hints: impl Iterator<Item = usize>) -> Option<Self> {
        let _held = SignalsHeld::all().ok()?;
        let window = Window::new().ok()?;
        let words = window.words_from(control_block(), REACH);
        let holding = |number| words.iter().filter(move |(_, value)| *value == number).map(|(place, _)| *place);
        let mut places = hints.chain(holding(thread_number()));
        let thread = places.find(|place| window.is_shown_by(*place, known_thread_number))?;
        let process = holding(process_number()).find(|place| window.is_shown_by(*place, known_process_number));
        Some(Self { thread, process })
    }

    /// The address that `CLONE_CHILD_SETTID` is to write to.
    pub(super) fn of_thread(self) -> *mut c_int {
        std::ptr::with_exposed_provenance_mut(self.thread)
    }

    /// In a copy of the process, whose thread's number is in place: puts the process's number there too, if that is kept. Whether the
    /// C library has the right ones now.
    pub(super) fn settle(self) -> bool {
        let number = process_number();
        if let Some(place) = self.process {
            // SAFETY: the C library keeps an int at this place of its own for as long as the thread lives, which is the one
            // that runs here. It was found by a write and a read of the same kind.
            unsafe { std::ptr::with_exposed_provenance_mut::<c_int>(place).write_volatile(number) };
        }
        known_thread_number() == Some(thread_number()) && known_process_number() == Some(number)
    }
}

/// Where debuggers would look for the thread's number.
fn described_for_debuggers() -> Option<usize> {
    /// How libthread_db is told of a member of a structure (nptl_db/thread_dbP.h): its size in bits, how many there are, how far
    /// it is from the beginning.
    type Member = [u32; 3];
    // SAFETY: dlsym reads a C string.
    let member = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"_thread_db_pthread_tid".as_ptr()) };
    if member.is_null() {
        return None;
    }
    // SAFETY: an object of this name is a description of this form, in every C library that has it and every debugger that reads it.
    let [bits, count, offset] = unsafe { member.cast::<Member>().read_unaligned() };
    let offset = usize::try_from(offset).ok().filter(|offset| *offset < REACH)?;
    (bits == c_int::BITS && count == 1).then_some(control_block() + offset)
}

/// Where the kernel writes at the thread's end: that was the place of its number for twenty years.
fn cleared_by_kernel() -> Option<usize> {
    const PR_GET_TID_ADDRESS: c_int = 40;
    let mut address: *mut c_int = std::ptr::null_mut();
    // SAFETY: the call writes one pointer to the place given (kernels with CONFIG_CHECKPOINT_RESTORE).
    let status = unsafe { libc::prctl(PR_GET_TID_ADDRESS, &raw mut address, 0, 0, 0) };
    (status == 0 && !address.is_null()).then(|| address.expose_provenance())
}

/// What the C library knows a thread by is the address of its control block, in glibc and in musl.
fn control_block() -> usize {
    // SAFETY: pthread_self takes nothing.
    usize::try_from(unsafe { libc::pthread_self() }).unwrap_or_default()
}

/// What the C library has for the number of the calling thread.
fn known_thread_number() -> Option<c_int> {
    let mut clock: libc::clockid_t = 0;
    // SAFETY: the calling thread is there, and one clockid_t is written to the place given.
    let status = unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &raw mut clock) };
    (status == 0).then_some(!(clock >> 3))
}

#[expect(clippy::unnecessary_wraps, reason = "beside the one of the thread")]
fn known_process_number() -> Option<c_int> {
    // SAFETY: getpid takes nothing.
    Some(unsafe { libc::getpid() })
}

/// What the kernel has for the number of the calling thread.
fn thread_number() -> c_int {
    // SAFETY: gettid takes nothing.
    c_int::try_from(unsafe { libc::syscall(libc::SYS_gettid) }).unwrap_or_default()
}

/// What the kernel has for the number of this process: `getpid` of a glibc before 2.25 tells what it has kept.
pub(super) fn process_number() -> c_int {
    // SAFETY: getpid takes nothing.
    c_int::try_from(unsafe { libc::syscall(libc::SYS_getpid) }).unwrap_or_default()
}

/// Memory of this process as the kernel reads and writes it: with an error where there is none.
struct Window {
    out: PipeReader,
    into: PipeWriter,
}

impl Window {
    fn new() -> io::Result<Self> {
        let (out, into) = io::pipe()?;
        Ok(Self { out, into })
    }

    /// The ints from an address on, each with its own: as many of these bytes as there are.
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

    /// How many bytes could be copied: fewer than a page, so that the pipe takes them.
    fn copy(&self, from: *const c_void, to: *mut c_void, length: usize) -> io::Result<usize> {
        // SAFETY: the kernel reads the memory up to where there is none.
        let taken = unsafe { libc::write(self.into.as_raw_fd(), from, length) };
        let taken = usize::try_from(taken).map_err(|_| io::Error::last_os_error())?;
        // SAFETY: the kernel writes to the memory, or says EFAULT. It is a variable of the caller's; or an int that holds the
        // number of this thread, and gets another value for a moment in which nobody looks.
        let given = unsafe { libc::read(self.out.as_raw_fd(), to, taken) };
        let given = usize::try_from(given).map_err(|_| io::Error::last_os_error());
        if given.is_err() {
            let mut rest = vec![0_u8; taken];
            // SAFETY: what could not be delivered is still in the pipe, and goes to a variable of this function.
            unsafe { libc::read(self.out.as_raw_fd(), rest.as_mut_ptr().cast(), taken) };
        }
        given
    }

    /// Whether the C library looks there for what it knows.
    fn is_shown_by(&self, place: usize, known: fn() -> Option<c_int>) -> bool {
        let Some(before) = self.read(place).filter(|before| known() == Some(*before)) else { return false };
        let other = before ^ 1;
        let changed = self.write(place, other) && known() == Some(other);
        // Where it could not be written nothing has changed.
        let restored = self.write(place, before) && known() == Some(before);
        changed && restored
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicI32, Ordering};

    /// Where it is found with these hints alone.
    fn found_with(hints: impl IntoIterator<Item = usize>) -> Option<usize> {
        Numbers::among(hints.into_iter()).map(|numbers| numbers.thread)
    }

    #[test]
    fn every_way_leads_to_the_same_place() {
        let searched = found_with([]).unwrap();
        assert_eq!(Numbers::find().unwrap().thread, searched);
        // What debuggers are told is there since glibc 2.34; what the kernel says leads elsewhere since 2.43.
        assert!([described_for_debuggers(), cleared_by_kernel()].contains(&Some(searched)));
    }

    #[test]
    fn the_place_is_the_threads_own_and_is_left_as_it_was() {
        let numbers = Numbers::find().unwrap();
        // SAFETY: found to be readable a moment ago.
        assert_eq!(unsafe { numbers.of_thread().read_volatile() }, thread_number());
        assert_eq!(known_thread_number(), Some(thread_number()));
        let other = std::thread::spawn(|| Numbers::find().unwrap().thread).join().unwrap();
        assert_ne!(other, numbers.thread);
    }

    #[test]
    fn a_word_that_only_happens_to_hold_the_number_is_not_taken() {
        let chance = AtomicI32::new(thread_number());
        assert_eq!(found_with([chance.as_ptr().expose_provenance()]).unwrap(), found_with([]).unwrap());
        assert_eq!(chance.load(Ordering::Relaxed), thread_number());
    }

    #[test]
    fn memory_that_is_not_there_or_cannot_be_written_is_no_place() {
        static READ_ONLY: c_int = 7;
        let window = Window::new().unwrap();
        let place = (&raw const READ_ONLY).expose_provenance();
        assert_eq!(window.read(place), Some(7));
        assert!(!window.write(place, 8));
        assert_eq!(window.read(16), None);
        // Nothing of that is left in the pipe.
        assert_eq!(window.read(place), Some(7));
        assert_eq!(found_with([0, 16, place]).unwrap(), found_with([]).unwrap());
    }
}

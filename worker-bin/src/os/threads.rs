//! Threads: their IDs, and a waker.

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering, fence};

use crate::os::signals::STACKS;

/// Wakes a native thread by [`STACKS`], sent to that thread. It works without a descriptor of the
/// process, which a job could close. The thread blocks the signal and reads it from its own
/// descriptor instead of a handler.
#[derive(Debug, Default)]
pub struct Waker {
    /// The ID of the listening thread; 0 means none.
    listener: AtomicI32,
}

impl Waker {
    pub const fn new() -> Self {
        Self { listener: AtomicI32::new(0) }
    }

    pub fn wake(&self) {
        // Pairs with `listen`: one of the two sees the other.
        fence(Ordering::SeqCst);
        let listener = self.listener.load(Ordering::SeqCst);
        if listener != 0 {
            send_to_thread(listener, STACKS);
        }
    }

    /// Return a descriptor that wakes the calling thread, which blocks all signals. `None` means
    /// unavailable; the thread must poll.
    pub fn listen(&self) -> Option<OwnedFd> {
        #[cfg(target_os = "linux")]
        {
            let mut set = MaybeUninit::<libc::sigset_t>::uninit();
            // SAFETY: sigemptyset initialises the whole set that it is given.
            unsafe { libc::sigemptyset(set.as_mut_ptr()) };
            // SAFETY: initialised on the line before; STACKS is a signal's number.
            unsafe { libc::sigaddset(set.as_mut_ptr(), STACKS) };
            // SAFETY: the set is initialised; -1 asks for a new descriptor.
            let descriptor = unsafe { libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
            if descriptor < 0 {
                return None;
            }
            self.listener.store(thread_id(), Ordering::SeqCst);
            fence(Ordering::SeqCst);
            // SAFETY: the system has just made it for this process, so this is the only owner.
            Some(unsafe { OwnedFd::from_raw_fd(descriptor) })
        }
        #[cfg(not(target_os = "linux"))]
        None
    }

    /// Stop listening, before the thread ends.
    pub fn stop_listening(&self) {
        self.listener.store(0, Ordering::SeqCst);
    }
}

/// Clear a wakeup from a descriptor of [`Waker::listen`]. Return true if another process has sent
/// the signal: the parent asks for the stacks, and either thread may receive that.
pub fn clear_wakeup(waker: BorrowedFd<'_>) -> bool {
    /// `ssi_pid` of `signalfd_siginfo` (signalfd(2)): the process that sent the signal.
    const SENDER: usize = 12;
    let mut bytes = [0_u8; 128];
    // SAFETY: the pointer and the length belong to the array, which is as long as one
    // `signalfd_siginfo`.
    let count = unsafe { libc::read(waker.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len()) };
    // The kernel tells no sender if the user's signals are at their limit (RLIMIT_SIGPENDING).
    // Nearly all signals are this process's own.
    let sender = &bytes[SENDER..SENDER + 4];
    count > 0 && sender != [0; 4] && sender != std::process::id().to_ne_bytes()
}

/// The kernel's ID of the calling thread.
pub fn thread_id() -> i32 {
    #[cfg(target_os = "linux")]
    // SAFETY: gettid is always safe to call.
    let number = i32::try_from(unsafe { libc::syscall(libc::SYS_gettid) }).unwrap_or_default();
    #[cfg(not(target_os = "linux"))]
    let number = 0;
    number
}

/// True for the thread that the process began with.
pub fn is_main_thread() -> bool {
    u32::try_from(thread_id()).is_ok_and(|number| number == std::process::id())
}

/// True if a thread of this process has this ID, even one that is exiting. The signal 0 is not
/// sent.
pub fn is_thread(number: i32) -> bool {
    send_to_thread(number, 0)
}

pub(super) fn send_to_thread(number: i32, signal: libc::c_int) -> bool {
    #[cfg(target_os = "linux")]
    // SAFETY: getpid is always safe to call, and tgkill takes three integers.
    let sent = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), number, signal) == 0 };
    #[cfg(not(target_os = "linux"))]
    let sent = {
        let _ = (number, signal);
        false
    };
    sent
}

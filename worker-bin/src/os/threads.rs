//! Threads: their numbers, and how one is woken.

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering, fence};

use crate::os::signals::STACKS;

/// Wakes a native thread without a descriptor of the process's, which a job could close: by [`STACKS`], sent to that very thread.
/// It keeps the signal blocked and reads it from a descriptor of its own, so nobody's handler is concerned.
#[derive(Debug, Default)]
pub struct Bell {
    /// The thread's number; 0: there is none that listens.
    listener: AtomicI32,
}

impl Bell {
    pub const fn new() -> Self {
        Self { listener: AtomicI32::new(0) }
    }

    pub fn ring(&self) {
        // With `listen`: one of the two sees what the other has done before.
        fence(Ordering::SeqCst);
        let listener = self.listener.load(Ordering::SeqCst);
        if listener != 0 {
            send_to_thread(listener, STACKS);
        }
    }

    /// From now on the calling thread, which blocks all signals, is woken by what this gives. `None`: that cannot be had, and it
    /// has to look from time to time.
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
            self.listener.store(thread_number(), Ordering::SeqCst);
            fence(Ordering::SeqCst);
            // SAFETY: the system has just made it for this process, so nobody else owns it.
            Some(unsafe { OwnedFd::from_raw_fd(descriptor) })
        }
        #[cfg(not(target_os = "linux"))]
        None
    }

    /// The thread is about to end.
    pub fn stop_listening(&self) {
        self.listener.store(0, Ordering::SeqCst);
    }
}

/// Takes from a descriptor of [`Bell::listen`] that it has rung.
pub fn take_ring(bell: BorrowedFd<'_>) {
    let mut bytes = [0_u8; 128];
    // SAFETY: the pointer and the length are those of the array, which is as long as one `signalfd_siginfo`.
    unsafe { libc::read(bell.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len()) };
}

/// The number that the kernel knows the calling thread by.
pub fn thread_number() -> i32 {
    #[cfg(target_os = "linux")]
    // SAFETY: gettid takes nothing.
    let number = i32::try_from(unsafe { libc::syscall(libc::SYS_gettid) }).unwrap_or_default();
    #[cfg(not(target_os = "linux"))]
    let number = 0;
    number
}

/// Whether the calling thread is the one that the process began with.
pub fn is_main_thread() -> bool {
    u32::try_from(thread_number()).is_ok_and(|number| number == std::process::id())
}

/// Whether a thread of this process has this number, be it on its way out; with the signal 0 nothing is sent.
pub fn is_thread(number: i32) -> bool {
    send_to_thread(number, 0)
}

pub(super) fn send_to_thread(number: i32, signal: libc::c_int) -> bool {
    #[cfg(target_os = "linux")]
    // SAFETY: getpid takes nothing, tgkill three integers.
    let sent = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), number, signal) == 0 };
    #[cfg(not(target_os = "linux"))]
    let sent = {
        let _ = (number, signal);
        false
    };
    sent
}

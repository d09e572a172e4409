//! Signals: masks, dispositions, interval timers.

use std::io;
use std::mem::MaybeUninit;

use crate::os::threads::send_to_thread;

/// The signal that asks the Python thread for the stacks. On Linux other code does not send it
/// (signal(7): "unused").
#[cfg(target_os = "linux")]
pub const STACKS: i32 = libc::SIGSTKFLT;

#[cfg(not(target_os = "linux"))]
pub const STACKS: i32 = libc::SIGXCPU;

const TIMERS: [libc::c_int; 3] = [libc::ITIMER_REAL, libc::ITIMER_VIRTUAL, libc::ITIMER_PROF];

/// Ignore SIGXFSZ: a file above its size limit raises `OSError` instead of ending the process.
/// CPython does so when it installs its signal handlers (Modules/signalmodule.c), which is disabled
/// here.
pub fn ignore_file_size_signal() {
    // SAFETY: SIG_IGN is a disposition, not a function to be called.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Restore the default actions of SIGSEGV and SIGBUS, as in the user's own Python. Rust's runtime
/// has installed handlers that turn a stack overflow into SIGABRT and a message about Rust.
pub fn restore_fault_signals() {
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        // SAFETY: SIG_DFL is a disposition, not a function to be called.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Blocks signals of the calling thread until this is dropped. A thread started in between inherits
/// the mask.
#[derive(Debug)]
pub struct SignalsHeld {
    pub(super) before: libc::sigset_t,
}

impl SignalsHeld {
    /// Block all signals, so that the native threads leave them to the Python thread.
    pub fn all() -> io::Result<Self> {
        let mut all = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigfillset initialises the whole set that it is given.
        unsafe { libc::sigfillset(all.as_mut_ptr()) };
        // SAFETY: initialised on the line before.
        Self::change(libc::SIG_BLOCK, &unsafe { all.assume_init() })
    }

    /// Block Ctrl+C until its handler is installed.
    pub fn interrupt() -> io::Result<Self> {
        Self::change(libc::SIG_BLOCK, &interrupt_only())
    }

    /// Unblock Ctrl+C, whatever was blocked before. The parent may start the worker with Ctrl+C
    /// blocked, so that it survives until the handler is installed.
    pub fn let_interrupt_through() -> io::Result<()> {
        let change = Self::change(libc::SIG_UNBLOCK, &interrupt_only())?;
        std::mem::forget(change);
        Ok(())
    }

    fn change(how: libc::c_int, set: &libc::sigset_t) -> io::Result<Self> {
        let mut before = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: both pointers are to live sets; the second is written as a whole when the call
        // succeeds.
        let status = unsafe { libc::pthread_sigmask(how, set, before.as_mut_ptr()) };
        if status != 0 {
            return Err(io::Error::from_raw_os_error(status));
        }
        // SAFETY: the call has succeeded.
        Ok(Self { before: unsafe { before.assume_init() } })
    }
}

impl Drop for SignalsHeld {
    fn drop(&mut self) {
        // SAFETY: `before` is a set that the system gave; a null pointer omits the copy of the
        // present one.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, std::ptr::null_mut()) };
    }
}

fn interrupt_only() -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the whole set that it is given.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: initialised on the line before; SIGINT is a signal's number.
    unsafe { libc::sigaddset(set.as_mut_ptr(), libc::SIGINT) };
    // SAFETY: initialised above.
    unsafe { set.assume_init() }
}

/// Install an empty handler for [`STACKS`] until `faulthandler` has one. SIG_IGN would be inherited
/// by a job's programs.
pub fn disarm_stacks_signal() {
    swallow(STACKS);
}

/// Install an empty handler for Ctrl+C.
pub fn swallow_interrupt() {
    swallow(libc::SIGINT);
}

fn swallow(signal: libc::c_int) {
    extern "C" fn nothing(_: libc::c_int) {}
    let handler: extern "C" fn(libc::c_int) = nothing;
    // SAFETY: the handler lives as long as the program and is empty.
    unsafe { libc::signal(signal, handler as libc::sighandler_t) };
}

/// Send [`STACKS`] to the main thread, which runs Python.
pub fn ask_for_stacks() {
    if disposition_of(STACKS).is_none_or(|disposition| disposition.handler == libc::SIG_DFL) {
        // The job has removed the handler; the signal would end the process.
        return;
    }
    #[cfg(target_os = "linux")]
    // SAFETY: getpid is always safe to call. The main thread's number is the process's (gettid(2)).
    send_to_thread(unsafe { libc::getpid() }, STACKS);
    #[cfg(not(target_os = "linux"))]
    // SAFETY: kill takes two integers.
    unsafe {
        libc::kill(libc::getpid(), STACKS);
    }
}

/// The signal mask of the calling thread.
#[derive(Clone, Copy)]
pub struct SignalMask(libc::sigset_t);

impl std::fmt::Debug for SignalMask {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("SignalMask")
    }
}

impl SignalMask {
    pub fn now() -> Option<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: a null pointer keeps the present one, which is all that is asked; the present
        // mask is written to the place given.
        let status = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), set.as_mut_ptr()) };
        // SAFETY: the call has succeeded.
        (status == 0).then(|| Self(unsafe { set.assume_init() }))
    }

    pub fn restore(&self) {
        // SAFETY: a set that the system gave; a null pointer omits the copy of the present one.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, std::ptr::null_mut()) };
    }
}

/// The handler of a signal, as the system has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disposition {
    handler: libc::sighandler_t,
    flags: libc::c_int,
}

/// The disposition of a signal. `None` means unknown.
fn disposition_of(signal: libc::c_int) -> Option<Disposition> {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: a null pointer keeps the present one, which is all that is asked; the present action
    // is written to the place given.
    if unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: the call has succeeded.
    let action = unsafe { action.assume_init() };
    Some(Disposition { handler: action.sa_sigaction, flags: action.sa_flags })
}

/// The disposition of Ctrl+C.
pub fn interrupt_disposition() -> Option<Disposition> {
    disposition_of(libc::SIGINT)
}

/// The dispositions of the fault signals and of [`STACKS`].
pub fn fault_dispositions() -> [Option<Disposition>; 6] {
    [libc::SIGSEGV, libc::SIGFPE, libc::SIGABRT, libc::SIGBUS, libc::SIGILL, STACKS].map(disposition_of)
}

/// Which interval timers (getitimer(2)) run: real (also `alarm`), virtual, profiling.
pub fn running_timers() -> [bool; 3] {
    TIMERS.map(|timer| {
        let mut value = MaybeUninit::<libc::itimerval>::zeroed();
        // SAFETY: the call writes one structure to the place given.
        unsafe { libc::getitimer(timer as _, value.as_mut_ptr()) };
        // SAFETY: for this structure of numbers all zeros are a value too.
        let left = unsafe { value.assume_init() }.it_value;
        left.tv_sec != 0 || left.tv_usec != 0
    })
}

/// Stop the given timers.
pub fn stop_timers(which: [bool; 3]) {
    for (timer, _) in TIMERS.into_iter().zip(which).filter(|(_, stop)| *stop) {
        let none = libc::timeval { tv_sec: 0, tv_usec: 0 };
        let none = libc::itimerval { it_interval: none, it_value: none };
        // SAFETY: the pointer is to a live structure; a null pointer omits the copy of the present
        // one.
        unsafe { libc::setitimer(timer as _, &raw const none, std::ptr::null_mut()) };
    }
}

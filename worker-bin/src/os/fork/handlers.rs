//! The handlers of `pthread_atfork(3)`: recorded when they are registered, run around a fork.

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::os::fork::Side;

type Handler = Option<unsafe extern "C" fn()>;

#[derive(Debug, Clone, Copy)]
struct Handlers {
    number: u64,
    prepare: Handler,
    parent: Handler,
    child: Handler,
    /// The handle of the library whose code the handlers are, or 0.
    library: usize,
}

static HANDLERS: Mutex<Vec<Handlers>> = Mutex::new(Vec::new());
static LAST_NUMBER: AtomicU64 = AtomicU64::new(0);

fn handlers() -> MutexGuard<'static, Vec<Handlers>> {
    HANDLERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Called when a library is unloaded, and at the exit of the process.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
unsafe extern "C" fn forget_handlers(library: *mut c_void) {
    let library = library.addr();
    handlers().retain(|known| known.library != library);
}

static FORKING: AtomicBool = AtomicBool::new(false);

/// True while handlers run for a template's fork, false for any other fork.
pub(in crate::os) fn is_forking() -> bool {
    FORKING.load(Ordering::Relaxed)
}

/// The target of `pthread_atfork`. It is called by name, and the loader finds the executable's
/// symbol first.
///
/// # Safety
/// As `pthread_atfork(3)`: the functions can be called at any fork from now on.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn __register_atfork(prepare: Handler, parent: Handler, child: Handler, dso: *mut c_void) -> c_int {
    type Register = unsafe extern "C" fn(Handler, Handler, Handler, *mut c_void) -> c_int;
    unsafe extern "C" {
        fn __cxa_atexit(function: unsafe extern "C" fn(*mut c_void), argument: *mut c_void, dso: *mut c_void) -> c_int;
    }
    // SAFETY: dlsym reads a C string; RTLD_NEXT asks for the symbol behind this one.
    let next = unsafe { libc::dlsym(libc::RTLD_NEXT, c"__register_atfork".as_ptr()) };
    if next.is_null() {
        return libc::ENOMEM;
    }
    // SAFETY: the C library's function of this name has had this type since glibc 2.3
    // (nptl/pthread_atfork.c).
    let next = unsafe { std::mem::transmute::<*mut c_void, Register>(next) };
    // The C library forgets the handlers when it unloads this library, just after the library's
    // exit handlers.
    // SAFETY: the function lives as long as the program and uses its argument as a number only.
    if !dso.is_null() && unsafe { __cxa_atexit(forget_handlers, dso, dso) } != 0 {
        return libc::ENOMEM;
    }
    // SAFETY: the arguments are the caller's own.
    let status = unsafe { next(prepare, parent, child, dso) };
    if status == 0 {
        let number = LAST_NUMBER.fetch_add(1, Ordering::Relaxed);
        handlers().push(Handlers { number, prepare, parent, child, library: dso.addr() });
    }
    status
}

/// Handlers that have prepared for a fork. The drop runs their counterparts, also without a fork.
pub(super) struct Prepared {
    /// Handlers registered during the preparation are left out.
    numbers: Vec<u64>,
    side: Side,
}

impl Prepared {
    pub(super) fn new() -> Self {
        let numbers: Vec<u64> = handlers().iter().map(|handlers| handlers.number).collect();
        FORKING.store(true, Ordering::Relaxed);
        // The last one registered prepares first (pthread_atfork(3)).
        run(numbers.iter().rev(), |handlers| handlers.prepare);
        Self { numbers, side: Side::Template }
    }

    pub(super) fn finish(mut self, side: Side) {
        self.side = side;
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        match self.side {
            Side::Template => run(self.numbers.iter(), |handlers| handlers.parent),
            Side::Worker => run(self.numbers.iter(), |handlers| handlers.child),
        }
        FORKING.store(false, Ordering::Relaxed);
    }
}

fn run<'a>(numbers: impl Iterator<Item = &'a u64>, which: fn(&Handlers) -> Handler) {
    for number in numbers {
        // An earlier handler may have unloaded a library.
        let handler = handlers().iter().find(|handlers| handlers.number == *number).and_then(which);
        if let Some(handler) = handler {
            // SAFETY: it was registered to be called at a fork, on either side, as here; its
            // library is loaded.
            unsafe { handler() };
        }
    }
}

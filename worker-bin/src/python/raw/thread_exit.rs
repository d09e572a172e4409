//! The end of threads that are in the executable's code when Python ends.
//!
//! Up to Python 3.13, `Py_FinalizeEx` ends every other thread that takes the GIL: it calls
//! `pthread_exit`, which unwinds the thread's stack. Rust code cannot be unwound so. It aborts the
//! process at a function with the ABI "C", which each function for Python is. pyo3's own guard
//! (`HangThread`) covers only waits for the GIL in Rust. It aborts too where the unwinder is linked
//! in (`build.rs`): the C library loads another one, and the two share no state.
//!
//! So the executable defines `pthread_exit`, which libpython finds first. While Python ends, it
//! stops a thread with such code on its stack, as Python 3.14 does with all threads. All others
//! end as before.

use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

/// Set before `Py_FinalizeEx`, for good.
static IS_ENDING: AtomicBool = AtomicBool::new(false);

/// Stop threads from now on that would be unwound through the executable's code.
pub(super) fn stop_threads_of_the_executable() {
    IS_ENDING.store(true, Ordering::SeqCst);
}

/// # Safety
/// As pthread_exit(3).
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn pthread_exit(value: *mut c_void) -> ! {
    if IS_ENDING.load(Ordering::SeqCst) && !trio_offload_worker::os::threads::is_main_thread() && is_in_executable() {
        loop {
            // SAFETY: pause is always safe to call. A signal handler may interrupt it.
            unsafe { libc::pause() };
        }
    }
    // SAFETY: dlsym reads a C string; RTLD_NEXT asks for the libraries after the executable.
    let original = unsafe { libc::dlsym(libc::RTLD_NEXT, c"pthread_exit".as_ptr()) };
    if original.is_null() {
        std::process::abort();
    }
    // SAFETY: the C library's function of this name has this type (pthread_exit(3)).
    let original = unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C-unwind" fn(*mut c_void) -> !>(original) };
    // SAFETY: by this function's own contract. It owns nothing here, so it can be unwound.
    unsafe { original(value) }
}

unsafe extern "C" {
    // The unwinder's interface (unwind.h), which `std` links. Its types are opaque here.
    fn _Unwind_Backtrace(visit: extern "C" fn(*mut c_void, *mut c_void) -> c_int, data: *mut c_void) -> c_int;
    fn _Unwind_GetIP(context: *mut c_void) -> usize;
}

/// A walk over the frames of a thread.
#[derive(Default)]
struct Walk {
    /// The caller of `pthread_exit` has been reached. The frames before are this file's.
    is_outside: bool,
    /// It was called, directly or not, by the executable.
    is_inside_again: bool,
}

/// True if the code that called `pthread_exit` was called by the executable.
fn is_in_executable() -> bool {
    let mut walk = Walk::default();
    // SAFETY: `visit` has the type that the unwinder asks for; the record lives during the call.
    unsafe { _Unwind_Backtrace(visit, ptr::from_mut(&mut walk).cast()) };
    walk.is_inside_again
}

extern "C" fn visit(context: *mut c_void, walk: *mut c_void) -> c_int {
    const GO_ON: c_int = 0;
    const STOP: c_int = 4;
    // SAFETY: the record of `is_in_executable`, which nothing else uses during the walk.
    let walk = unsafe { &mut *walk.cast::<Walk>() };
    // SAFETY: the context is the unwinder's own. The address is behind the call, which may be the
    // last instruction of its function.
    let call = unsafe { _Unwind_GetIP(context) }.wrapping_sub(1);
    if object_of(call) != object_of(visit as *const () as usize) {
        walk.is_outside = true;
    } else if walk.is_outside {
        walk.is_inside_again = true;
        return STOP;
    }
    GO_ON
}

/// The executable or library that an address of code belongs to, as the place where it begins.
fn object_of(address: usize) -> Option<usize> {
    let mut found = std::mem::MaybeUninit::<libc::Dl_info>::uninit();
    // SAFETY: dladdr takes any address and fills the structure when it gives something else than 0.
    let status = unsafe { libc::dladdr(ptr::with_exposed_provenance(address), found.as_mut_ptr()) };
    // SAFETY: dladdr has succeeded.
    (status != 0).then(|| unsafe { found.assume_init() }.dli_fbase.addr())
}

//! This process's command line, for libraries that look for it in memory.

use std::ffi::{CString, c_int};
use std::sync::OnceLock;

use pyo3::ffi;

/// Return this process's command line in memory. A library that names processes (setproctitle)
/// searches for it in front of the environment. Python's own function of this name would return the
/// parent's; the executable's comes first (build.rs). `sys.orig_argv` is the parent's, in each
/// interpreter.
///
/// # Safety
/// As Python's: both places can be written to, or are null.
#[unsafe(no_mangle)]
unsafe extern "C" fn Py_GetArgcArgv(count: *mut c_int, words: *mut *mut *mut libc::wchar_t) {
    let line = COMMAND_LINE.get_or_init(|| {
        let words = std::env::args_os().map_while(|word| CString::new(word.into_encoded_bytes()).ok());
        // SAFETY: a C string; a null pointer omits the length; the caller is a library that Python
        // has loaded.
        let decoded = words.map(|word| unsafe { ffi::Py_DecodeLocale(word.as_ptr(), std::ptr::null_mut()) });
        // The words live as long as the process, as Python's do.
        CommandLine(decoded.take_while(|word| !word.is_null()).chain([std::ptr::null_mut()]).collect())
    });
    let length = c_int::try_from(line.0.len() - 1).unwrap_or_default();
    if !count.is_null() {
        // SAFETY: by this function's own contract.
        unsafe { *count = length };
    }
    if !words.is_null() {
        // SAFETY: as above. The caller may only read, as from Python.
        unsafe { *words = line.0.as_ptr().cast_mut() };
    }
}

static COMMAND_LINE: OnceLock<CommandLine> = OnceLock::new();

struct CommandLine(Box<[*mut libc::wchar_t]>);

// SAFETY: the words are constant and stay.
unsafe impl Send for CommandLine {}

// SAFETY: as above.
unsafe impl Sync for CommandLine {}

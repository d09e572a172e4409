//! System calls that `std` lacks. One of two folders with `unsafe`.

pub mod copies;
pub mod descriptors;
pub mod fork;
pub mod marks;
pub mod memory;
#[cfg(target_os = "linux")]
pub mod namespaces;
pub mod proc;
pub mod process;
pub mod signals;
pub mod socket;
pub mod threads;

use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::path::PathBuf;

/// The file of the loaded library that defines a symbol.
pub fn library_that_defines(symbol: &CStr) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStrExt as _;

    // `dlsym` instead of the function's address: in an executable with fixed addresses, that may be
    // a stub.
    // SAFETY: dlsym reads a C string; RTLD_DEFAULT asks for the first library in the order of
    // loading.
    let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, symbol.as_ptr()) };
    if address.is_null() {
        return None;
    }
    let mut found = MaybeUninit::<libc::Dl_info>::uninit();
    // SAFETY: dladdr takes any address and fills the structure when it gives something else than 0.
    if unsafe { libc::dladdr(address, found.as_mut_ptr()) } == 0 {
        return None;
    }
    // SAFETY: dladdr has succeeded.
    let name = unsafe { found.assume_init() }.dli_fname;
    if name.is_null() {
        return None;
    }
    // SAFETY: a C string that belongs to the loader and stays as long as the library does;
    // libpython is never unloaded.
    let name = unsafe { CStr::from_ptr(name) };
    let path = PathBuf::from(std::ffi::OsStr::from_bytes(name.to_bytes()));
    Some(std::fs::canonicalize(&path).unwrap_or(path))
}

pub(super) fn check(status: libc::c_int) -> io::Result<libc::c_int> {
    if status == -1 { Err(io::Error::last_os_error()) } else { Ok(status) }
}

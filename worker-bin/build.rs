//! Hands the version of the Python that the worker is built for to the code (`cfg(Py_3_11)` and the like: a `PyConfig`
//! has other fields in each version), and the directory of its library to the tests, which start the executable themselves.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    pyo3_build_config::use_pyo3_cfgs();
    let library_directory = pyo3_build_config::get().lib_dir().unwrap_or_default();
    println!("cargo:rustc-env=TRIO_OFFLOAD_TEST_LIBRARY_DIRECTORY={library_directory}");
    link_unwinder_statically();
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|system| system == "linux") {
        // What the libraries that jobs load are to find here, and not in the C library (os/namespaces.rs) or in Python's
        // (python/raw/command_line.rs).
        for name in ["unshare", "setns", "trio_offload_single_threaded", "Py_GetArgcArgv"] {
            println!("cargo:rustc-link-arg-bins=-Wl,--export-dynamic-symbol={name}");
        }
    }
}

/// Python does not need libgcc_s, and each library more is loaded at each start of a worker. Where the compiler has the
/// unwinder as an archive that is taken instead; where it has not, nothing changes.
fn link_unwinder_statically() {
    let same_machine = std::env::var_os("HOST") == std::env::var_os("TARGET");
    let is_gnu = std::env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|environment| environment == "gnu");
    if !same_machine || !is_gnu {
        return;
    }
    let Ok(answer) = Command::new("cc").arg("-print-file-name=libgcc_eh.a").output() else { return };
    let archive = PathBuf::from(String::from_utf8_lossy(&answer.stdout).trim());
    if let Some(directory) = archive.parent().filter(|_| archive.is_absolute()) {
        println!("cargo:rustc-link-search=native={}", directory.display());
        println!("cargo:rustc-link-lib=static:-bundle=gcc_eh");
    }
}

//! Passes the version of the linked Python to the code (`cfg(Py_3_11)` and so on: the fields of
//! `PyConfig` depend on it), and the directory of its library to the tests, which start the
//! executable directly.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    pyo3_build_config::use_pyo3_cfgs();
    let library_directory = pyo3_build_config::get().lib_dir().unwrap_or_default();
    println!("cargo:rustc-env=TRIO_OFFLOAD_TEST_LIBRARY_DIRECTORY={library_directory}");
    link_unwinder_statically();
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|system| system == "linux") {
        // Symbols that libraries must find here, before the C library's (os/namespaces.rs,
        // python/raw/thread_exit.rs) or Python's (python/raw/command_line.rs).
        for name in ["unshare", "setns", "trio_offload_single_threaded", "pthread_exit", "Py_GetArgcArgv"] {
            println!("cargo:rustc-link-arg-bins=-Wl,--export-dynamic-symbol={name}");
        }
    }
}

/// Link the unwinder statically where the compiler has it as an archive. Python works without
/// libgcc_s, and the loader takes time for each library at each start of a worker.
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

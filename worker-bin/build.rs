//! Hands the version of the Python that the worker is built for to the code (`cfg(Py_3_11)` and the like: a `PyConfig`
//! has other fields in each version), and the directory of its library to the tests, which start the executable themselves.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    pyo3_build_config::use_pyo3_cfgs();
    let library_directory = pyo3_build_config::get().lib_dir().unwrap_or_default();
    println!("cargo:rustc-env=TRIO_OFFLOAD_TEST_LIBRARY_DIRECTORY={library_directory}");
}

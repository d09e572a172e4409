//! The embedded interpreter: everything that needs a running Python.

mod config;
mod errors;
pub(crate) mod executor;
mod faults;
mod finders;
mod forks;
mod hooks;
pub(crate) mod interpreter;
mod jobs;
pub(crate) mod line;
mod pickling;
#[expect(unsafe_code, reason = "the fenced module for what pyo3 does not offer")]
pub(crate) mod raw;
mod signals;
mod template;

//! The start and the end of Python.

use std::ffi::{CString, c_int};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

use pyo3::ffi;
use thiserror::Error;

use crate::python::config::{Config, Flags};
use crate::python::raw::version::text;

/// Python did not start. The text is Python's own, after the name of its function.
#[derive(Debug, Error)]
pub(crate) enum StartError {
    #[error("{0}")]
    Python(String),
    #[error("Python exited with {0} while it started")]
    Exit(i32),
    #[error("a value from the parent holds a zero byte or cannot be decoded with the locale's encoding: {0:?}")]
    Undecodable(String),
}

/// The running interpreter. It belongs to the thread that started it, which has released the GIL.
#[derive(Debug)]
pub(crate) struct Running {
    main_thread: NonNull<ffi::PyThreadState>,
    /// Neither `Send` nor `Sync`: the thread state belongs to the starting thread.
    _thread: PhantomData<*mut ()>,
}

impl Running {
    /// Start Python with this configuration. Call this once in a process.
    pub(crate) fn start(config: &Config) -> Result<Self, StartError> {
        pre_initialize(&config.flags)?;
        let mut c_config = CConfig::new();
        c_config.fill(config)?;
        // SAFETY: the configuration is initialised, and Python copies it.
        check(unsafe { ffi::Py_InitializeFromConfig(&c_config.0) })?;
        drop(c_config);
        #[cfg(Py_3_14)]
        mark_main_thread();
        // SAFETY: Py_InitializeFromConfig has succeeded, so this thread holds the GIL with the main
        // thread's state.
        let state = unsafe { ffi::PyEval_SaveThread() };
        let main_thread = NonNull::new(state).ok_or(StartError::Exit(-1))?;
        Ok(Self { main_thread, _thread: PhantomData })
    }

    /// End Python: join threads, run exit handlers, flush standard output. Return false if the
    /// flush failed.
    pub(crate) fn finish(self) -> bool {
        // SAFETY: the state is the one that `start` saved on this thread, and the thread has
        // released it.
        unsafe { ffi::PyEval_RestoreThread(self.main_thread.as_ptr()) };
        #[cfg(all(target_os = "linux", target_env = "gnu", not(Py_3_14)))]
        super::thread_exit::stop_threads_of_the_executable();
        // SAFETY: this thread holds the GIL with the main thread's state; nothing uses Python after
        // this.
        unsafe { ffi::Py_FinalizeEx() == 0 }
    }
}

/// Mark this thread as the main program's. Debuggers and `sys.remote_exec` (PEP 768) find a job by
/// that mark, which Python itself sets only for its own main program. Only a private function sets
/// it; in a Python without it, debuggers cannot reach jobs.
#[cfg(Py_3_14)]
fn mark_main_thread() {
    type SetRunningMain = unsafe extern "C" fn(*mut ffi::PyInterpreterState) -> c_int;
    // SAFETY: dlsym reads a C string; RTLD_DEFAULT asks for the first library in the order of
    // loading.
    let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"_PyInterpreterState_SetRunningMain".as_ptr()) };
    if address.is_null() {
        return;
    }
    // SAFETY: a function of this signature since 3.13 (Include/internal/pycore_pystate.h); versions
    // this is compiled for have it.
    let set = unsafe { std::mem::transmute::<*mut std::ffi::c_void, SetRunningMain>(address) };
    // SAFETY: this thread holds the GIL with the main thread's state; both take or give the
    // interpreter of that.
    if unsafe { set(ffi::PyInterpreterState_Get()) } != 0 {
        // SAFETY: as above. The mark is optional.
        unsafe { ffi::PyErr_Clear() };
    }
}

/// Configure the memory allocator and the text encoding first (PEP 587).
fn pre_initialize(flags: &Flags) -> Result<(), StartError> {
    let mut pre_config = MaybeUninit::<ffi::PyPreConfig>::uninit();
    // SAFETY: the function writes the whole structure.
    unsafe { ffi::PyPreConfig_InitPythonConfig(pre_config.as_mut_ptr()) };
    // SAFETY: written on the line before.
    let mut pre_config = unsafe { pre_config.assume_init() };
    pre_config.parse_argv = 0;
    set(&mut pre_config.isolated, flags.isolated);
    set(&mut pre_config.use_environment, flags.use_environment);
    set(&mut pre_config.dev_mode, flags.dev_mode);
    set(&mut pre_config.utf8_mode, flags.utf8_mode);
    // Python sets LC_CTYPE in the C locale (PEP 538). The parent has done so already; here it would
    // only change the environment.
    pre_config.coerce_c_locale = 0;
    pre_config.coerce_c_locale_warn = 0;
    // SAFETY: the structure is initialised, and Python copies it.
    check(unsafe { ffi::Py_PreInitialize(&pre_config) })
}

/// An initialised `PyConfig`, cleared on drop.
struct CConfig(ffi::PyConfig);

impl CConfig {
    fn new() -> Self {
        let mut config = MaybeUninit::<ffi::PyConfig>::uninit();
        // SAFETY: the function writes the whole structure.
        unsafe { ffi::PyConfig_InitPythonConfig(config.as_mut_ptr()) };
        // SAFETY: written on the line before.
        let mut config = unsafe { config.assume_init() };
        config.parse_argv = 0;
        // `launch.rs` handles signals: Ctrl+C must not raise in a job.
        config.install_signal_handlers = 0;
        Self(config)
    }

    fn fill(&mut self, source: &Config) -> Result<(), StartError> {
        self.set_flags(&source.flags);
        let config = &raw mut self.0;
        // SAFETY: each place is a field of the structure behind `config`, which lives and is
        // initialised.
        unsafe {
            set_string(config, &raw mut (*config).program_name, &source.program_name)?;
            if let Some(prefix) = &source.pycache_prefix {
                set_string(config, &raw mut (*config).pycache_prefix, prefix)?;
            }
            if let Some(home) = &source.home {
                set_string(config, &raw mut (*config).home, home)?;
                // A parent that states every path makes the warning superfluous.
                (*config).pathconfig_warnings = 0;
            }
            if let Some(places) = &source.search_path {
                append(&raw mut (*config).module_search_paths, places)?;
                (*config).module_search_paths_set = 1;
            }
            if source.xoptions.iter().any(|option| option == b"warn_default_encoding") {
                // Python takes this switch only from a command line or the environment, despite the
                // configuration (Python/preconfig.c, _PyPreCmdline_SetConfig). So it gets a command
                // line; `sys.argv` is corrected afterwards.
                (*config).parse_argv = 1;
                append(&raw mut (*config).argv, &[&b""[..], b"-X", b"warn_default_encoding", b"-c", b""].map(<[u8]>::to_vec))?;
            } else {
                append(&raw mut (*config).argv, &source.argv)?;
            }
            append(&raw mut (*config).orig_argv, &source.orig_argv)?;
            append(&raw mut (*config).xoptions, &source.xoptions)?;
            append(&raw mut (*config).warnoptions, &source.warnoptions)
        }
    }

    fn set_flags(&mut self, flags: &Flags) {
        let config = &mut self.0;
        set(&mut config.isolated, flags.isolated);
        set(&mut config.use_environment, flags.use_environment);
        set(&mut config.dev_mode, flags.dev_mode);
        set(&mut config.site_import, flags.site_import);
        set(&mut config.user_site_directory, flags.user_site_directory);
        set(&mut config.write_bytecode, flags.write_bytecode);
        set(&mut config.optimization_level, flags.optimization_level);
        set(&mut config.verbose, flags.verbose);
        set(&mut config.quiet, flags.quiet);
        set(&mut config.bytes_warning, flags.bytes_warning);
        set(&mut config.parser_debug, flags.parser_debug);
        set(&mut config.warn_default_encoding, flags.warn_default_encoding);
        set(&mut config.buffered_stdio, flags.buffered_stdio);
        if flags.hash_randomization == Some(0) {
            config.use_hash_seed = 1;
            config.hash_seed = 0;
        }
        #[cfg(Py_3_11)]
        set(&mut config.safe_path, flags.safe_path);
        // Older versions keep it outside of PyConfig and read it from `-X` and the environment.
        #[cfg(Py_3_12)]
        set(&mut config.int_max_str_digits, flags.int_max_str_digits);
    }
}

impl Drop for CConfig {
    fn drop(&mut self) {
        // SAFETY: the structure was initialised by PyConfig_InitPythonConfig and is not used again.
        unsafe { ffi::PyConfig_Clear(&mut self.0) };
    }
}

fn set(place: &mut c_int, value: Option<i32>) {
    if let Some(value) = value {
        *place = value;
    }
}

/// # Safety
/// `config` is initialised, and `place` is one of its string fields.
unsafe fn set_string(config: *mut ffi::PyConfig, place: *mut *mut libc::wchar_t, value: &[u8]) -> Result<(), StartError> {
    if value.is_empty() {
        return Ok(());
    }
    let value = CString::new(value).map_err(|_| undecodable(value))?;
    // SAFETY: by this function's own contract; Python is pre-initialised, so it can decode.
    check(unsafe { ffi::PyConfig_SetBytesString(config, place, value.as_ptr()) })
}

/// # Safety
/// `list` is a list of an initialised configuration.
unsafe fn append(list: *mut ffi::PyWideStringList, values: &[Vec<u8>]) -> Result<(), StartError> {
    for value in values {
        let bytes = CString::new(value.as_slice()).map_err(|_| undecodable(value))?;
        // SAFETY: a C string; a null pointer says that the length is not wanted; Python is
        // pre-initialised.
        let wide = unsafe { ffi::Py_DecodeLocale(bytes.as_ptr(), std::ptr::null_mut()) };
        if wide.is_null() {
            return Err(undecodable(value));
        }
        // SAFETY: by this function's own contract; the list copies the string.
        let status = unsafe { ffi::PyWideStringList_Append(list, wide) };
        // SAFETY: Py_DecodeLocale gave the memory, and its documentation says to free it so.
        unsafe { ffi::PyMem_RawFree(wide.cast()) };
        check(status)?;
    }
    Ok(())
}

fn undecodable(value: &[u8]) -> StartError {
    StartError::Undecodable(String::from_utf8_lossy(value).into_owned())
}

fn check(status: ffi::PyStatus) -> Result<(), StartError> {
    // SAFETY: the function only looks at the value.
    if unsafe { ffi::PyStatus_Exception(status) } == 0 {
        return Ok(());
    }
    // SAFETY: as above.
    if unsafe { ffi::PyStatus_IsExit(status) } != 0 {
        return Err(StartError::Exit(status.exitcode));
    }
    let (function, message) = (text(status.func), text(status.err_msg));
    Err(StartError::Python(if function.is_empty() { message } else { format!("{function}: {message}") }))
}

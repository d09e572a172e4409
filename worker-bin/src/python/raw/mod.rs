//! All of the executable's `unsafe`: the start and the end of Python, and memory that is read and written without the GIL.

use std::ffi::{CStr, CString, c_int};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, RawFd};
use std::ptr::NonNull;
use std::sync::OnceLock;

use pyo3::buffer::PyUntypedBuffer;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyCode, PyDict, PyMemoryView, PyString, PyTuple, PyType};
use thiserror::Error;
use trio_offload_worker::os;
use trio_offload_worker::os::fork::{self, AllowedThreads, ForkError, Front, Side};
use trio_offload_worker::process::record::PROGRESS_SIZE;
use trio_offload_worker::protocol::message::SegmentType;
use trio_offload_worker::transport::buffer_pool::{Region, Regions};
use trio_offload_worker::transport::connection::Storage;

use crate::python::config::{Config, Flags};

/// Python did not start. The text is Python's own, with the function that gave it.
#[derive(Debug, Error)]
pub(crate) enum StartError {
    #[error("{0}")]
    Python(String),
    #[error("Python wanted to exit with {0} while it started")]
    Exit(i32),
    #[error("a value from the parent holds a zero byte or cannot be decoded with the locale's encoding: {0:?}")]
    Undecodable(String),
}

/// `sys.version`. It can be asked for before Python has started.
pub(crate) fn version() -> String {
    // SAFETY: Py_GetVersion needs no interpreter and gives a C string that stays (Python/getversion.c).
    text(unsafe { ffi::Py_GetVersion() })
}

/// Whether the Python that this executable is built for runs without a GIL (PEP 703). Its objects are others then.
pub(crate) const FREE_THREADED: bool = cfg!(Py_GIL_DISABLED);

pub(crate) fn build() -> String {
    // SAFETY: as Py_GetVersion (Modules/getbuildinfo.c).
    text(unsafe { ffi::Py_GetBuildInfo() })
}

pub(crate) fn compiler() -> String {
    // SAFETY: as Py_GetVersion (Python/getcompiler.c).
    text(unsafe { ffi::Py_GetCompiler() })
}

/// A string as `os.fsdecode` makes it: with the encoding of files' names, which is not UTF-8 in every locale.
pub(crate) fn decode<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyString>> {
    let length = ffi::Py_ssize_t::try_from(bytes.len())?;
    // SAFETY: the thread is attached; the pointer and the length are those of a slice that outlives the call.
    let pointer = unsafe { ffi::PyUnicode_DecodeFSDefaultAndSize(bytes.as_ptr().cast(), length) };
    // SAFETY: a new reference, or null with an exception set.
    let string = unsafe { Bound::from_owned_ptr_or_err(py, pointer) }?;
    Ok(string.cast_into()?)
}

/// This process's command line for who wants to find it in memory: a library that names processes (setproctitle) looks for these
/// very words in front of the environment. Python's own function of this name, which gives a library the parent's, comes second to
/// the executable's (build.rs); `sys.orig_argv` is the parent's, from the first line of Python on and in each interpreter.
///
/// # Safety
/// As Python's: both places can be written to, or are null.
#[unsafe(no_mangle)]
unsafe extern "C" fn Py_GetArgcArgv(count: *mut c_int, words: *mut *mut *mut libc::wchar_t) {
    let line = COMMAND_LINE.get_or_init(|| {
        let words = std::env::args_os().map_while(|word| CString::new(word.into_encoded_bytes()).ok());
        // SAFETY: a C string; a null pointer says that the length is not wanted; whoever asks is a library that Python has loaded.
        let decoded = words.map(|word| unsafe { ffi::Py_DecodeLocale(word.as_ptr(), std::ptr::null_mut()) });
        // The words stay as long as the process, as Python's do.
        CommandLine(decoded.take_while(|word| !word.is_null()).chain([std::ptr::null_mut()]).collect())
    });
    let length = c_int::try_from(line.0.len() - 1).unwrap_or_default();
    if !count.is_null() {
        // SAFETY: by this function's own contract.
        unsafe { *count = length };
    }
    if !words.is_null() {
        // SAFETY: as above. Who asks gets to read only, as from Python.
        unsafe { *words = line.0.as_ptr().cast_mut() };
    }
}

static COMMAND_LINE: OnceLock<CommandLine> = OnceLock::new();

struct CommandLine(Box<[*mut libc::wchar_t]>);

// SAFETY: nobody writes to the words, and they stay.
unsafe impl Send for CommandLine {}
// SAFETY: as above.
unsafe impl Sync for CommandLine {}

/// The running interpreter. It belongs to the thread that started it, which has let go of the GIL.
#[derive(Debug)]
pub(crate) struct Running {
    main_thread: NonNull<ffi::PyThreadState>,
    /// Neither `Send` nor `Sync`: the thread state is the starting thread's.
    _thread: PhantomData<*mut ()>,
}

impl Running {
    /// Starts Python with this configuration. To be called once in the life of the process.
    pub(crate) fn start(config: &Config) -> Result<Self, StartError> {
        pre_initialize(&config.flags)?;
        let mut c_config = CConfig::new();
        c_config.fill(config)?;
        // SAFETY: the configuration is initialised, and Python copies what it needs of it.
        check(unsafe { ffi::Py_InitializeFromConfig(&c_config.0) })?;
        drop(c_config);
        #[cfg(Py_3_14)]
        mark_main_thread();
        // SAFETY: Py_InitializeFromConfig has succeeded, so this thread holds the GIL with the main thread's state.
        let state = unsafe { ffi::PyEval_SaveThread() };
        let main_thread = NonNull::new(state).ok_or(StartError::Exit(-1))?;
        Ok(Self { main_thread, _thread: PhantomData })
    }

    /// Ends Python: threads are joined, exit handlers run, standard output is flushed. False: the flush failed.
    pub(crate) fn finish(self) -> bool {
        // SAFETY: the state is the one that `start` saved on this very thread, and the thread has let go of it.
        unsafe { ffi::PyEval_RestoreThread(self.main_thread.as_ptr()) };
        // SAFETY: this thread holds the GIL with the main thread's state; nothing uses Python after this.
        unsafe { ffi::Py_FinalizeEx() == 0 }
    }
}

/// Marks this thread as the one that runs the program: debuggers and `sys.remote_exec` (PEP 768) reach a job by that mark, which
/// Python itself sets for main programs only. No public function does it. In a Python without this one jobs are out of their reach.
#[cfg(Py_3_14)]
fn mark_main_thread() {
    type SetRunningMain = unsafe extern "C" fn(*mut ffi::PyInterpreterState) -> c_int;
    // SAFETY: dlsym reads a C string; RTLD_DEFAULT asks for the first library in the order of loading.
    let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"_PyInterpreterState_SetRunningMain".as_ptr()) };
    if address.is_null() {
        return;
    }
    // SAFETY: a function of this signature since 3.13 (Include/internal/pycore_pystate.h); versions this is compiled for have it.
    let set = unsafe { std::mem::transmute::<*mut std::ffi::c_void, SetRunningMain>(address) };
    // SAFETY: this thread holds the GIL with the main thread's state; both take or give the interpreter of that.
    if unsafe { set(ffi::PyInterpreterState_Get()) } != 0 {
        // SAFETY: as above. Nothing depends on the mark.
        unsafe { ffi::PyErr_Clear() };
    }
}

/// Forks a worker off this process as `os.fork` does it: with what Python does before and after, on both sides. In the worker
/// `born` is called before any of Python's own hooks.
pub(crate) fn fork(
    _py: Python<'_>,
    birth: BorrowedFd<'_>,
    front: Option<Front>,
    allowed: &AllowedThreads,
    born: impl FnOnce(),
) -> Result<Side, ForkError> {
    // SAFETY: the thread is attached, and each call is followed by its counterpart below (Modules/posixmodule.c, os_fork_impl).
    unsafe { ffi::PyOS_BeforeFork() };
    let side = fork::fork_sibling(birth, front, allowed, born);
    match side {
        // SAFETY: the counterpart, in the worker, whose only thread holds the GIL as it did before.
        Ok(Side::Worker) => unsafe { ffi::PyOS_AfterFork_Child() },
        // SAFETY: the counterpart where this process has gone on as it was.
        Ok(Side::Template) | Err(_) => unsafe { ffi::PyOS_AfterFork_Parent() },
    }
    side
}

/// Whether this process could fork now: does all that [`fork`] does, but for the fork itself.
pub(crate) fn rehearse_fork(_py: Python<'_>, allowed: &AllowedThreads) -> Result<(), ForkError> {
    // SAFETY: the thread is attached; the counterpart follows.
    unsafe { ffi::PyOS_BeforeFork() };
    let outcome = fork::rehearse(allowed);
    // SAFETY: the counterpart.
    unsafe { ffi::PyOS_AfterFork_Parent() };
    outcome
}

/// The frame that Python is in; `None`: no Python code runs.
pub(crate) fn current_frame(py: Python<'_>) -> Option<Bound<'_, PyAny>> {
    // SAFETY: the thread is attached; the function gives a borrowed reference or null.
    unsafe { Bound::from_borrowed_ptr_or_opt(py, ffi::PyEval_GetFrame().cast()) }
}

/// Has Python's main thread call this between two instructions, with the GIL; false: too many calls wait already.
pub(crate) fn call_soon(_py: Python<'_>, function: extern "C" fn(*mut std::ffi::c_void) -> c_int) -> bool {
    // SAFETY: the function lives as long as the program and gets a null pointer.
    unsafe { ffi::Py_AddPendingCall(Some(function), std::ptr::null_mut()) == 0 }
}

/// Where Python's stacks are written, and the function that writes them.
struct Reporter {
    record: RawFd,
    /// `(record, True)`, made beforehand: a process that dies should not have to allocate.
    arguments: Py<PyTuple>,
    dump_traceback: Py<PyAny>,
}

static REPORTER: OnceLock<Reporter> = OnceLock::new();

/// Has the stacks written when Python gives itself up (`Py_FatalError`). Python turns its `faulthandler` off before it aborts
/// then, because it has told standard error already (Python/pylifecycle.c, fatal_error); what `faulthandler` had displaced
/// comes back with that, and that is this handler.
///
/// To be called before `faulthandler` is enabled.
pub(crate) fn report_fatal_errors(record: RawFd, dump_traceback: Bound<'_, PyAny>) -> PyResult<()> {
    let arguments = (record, true).into_pyobject(dump_traceback.py())?.unbind();
    let reporter = Reporter { record, arguments, dump_traceback: dump_traceback.unbind() };
    if REPORTER.set(reporter).is_ok() {
        let handler: extern "C" fn(libc::c_int) = on_abort;
        // SAFETY: the handler lives as long as the program; what it may do is said there.
        unsafe { libc::signal(libc::SIGABRT, handler as libc::sighandler_t) };
    }
    Ok(())
}

extern "C" fn on_abort(signal: libc::c_int) {
    if let Some(reporter) = REPORTER.get() {
        // A library's destructor may abort when Python has ended, and PyGILState_Check knows no better then than to say yes.
        // SAFETY: Py_IsInitialized reads a number, and PyGILState_Check only compares two pointers of the thread's (Python/pystate.c).
        let holds_gil = unsafe { ffi::Py_IsInitialized() != 0 && ffi::PyGILState_Check() == 1 };
        // Something is there already if `faulthandler` was asked first, and has handed on to us.
        if holds_gil && os::size_of(reporter.record) <= PROGRESS_SIZE {
            // SAFETY: this thread holds the GIL, and it is in an `abort` that Python itself has called: not in the middle of an
            // allocation, whose lock it might hold. What is called is C code that writes to a descriptor and makes no objects.
            unsafe { ffi::PyObject_CallObject(reporter.dump_traceback.as_ptr(), reporter.arguments.as_ptr()) };
        }
    }
    // The signal is blocked until this handler returns; then it does what it does to any process.
    // SAFETY: both take integers, and may be called in a handler (signal-safety(7)).
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}

/// Before anything else: how memory is allocated and how bytes become text (PEP 587).
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
    // Python sets LC_CTYPE when it finds the C locale (PEP 538). The parent has done so where it should be done; here it would
    // only change the environment that the parent has given the worker.
    pre_config.coerce_c_locale = 0;
    pre_config.coerce_c_locale_warn = 0;
    // SAFETY: the structure is initialised, and Python copies what it needs of it.
    check(unsafe { ffi::Py_PreInitialize(&pre_config) })
}

/// An initialised `PyConfig` that is cleared when it goes.
struct CConfig(ffi::PyConfig);

impl CConfig {
    fn new() -> Self {
        let mut config = MaybeUninit::<ffi::PyConfig>::uninit();
        // SAFETY: the function writes the whole structure.
        unsafe { ffi::PyConfig_InitPythonConfig(config.as_mut_ptr()) };
        // SAFETY: written on the line before.
        let mut config = unsafe { config.assume_init() };
        config.parse_argv = 0;
        // Signals are the worker's affair: Ctrl+C must not raise in a job (launch.rs).
        config.install_signal_handlers = 0;
        Self(config)
    }

    fn fill(&mut self, source: &Config) -> Result<(), StartError> {
        self.set_flags(&source.flags);
        let config = &raw mut self.0;
        // SAFETY: each place is a field of the structure behind `config`, which lives and is initialised.
        unsafe {
            set_string(config, &raw mut (*config).program_name, &source.program_name)?;
            if let Some(prefix) = &source.pycache_prefix {
                set_string(config, &raw mut (*config).pycache_prefix, prefix)?;
            }
            if let Some(home) = &source.home {
                set_string(config, &raw mut (*config).home, home)?;
                // Whoever says where everything lies needs no advice about what is not there.
                (*config).pathconfig_warnings = 0;
            }
            if let Some(places) = &source.search_path {
                append(&raw mut (*config).module_search_paths, places)?;
                (*config).module_search_paths_set = 1;
            }
            if source.xoptions.iter().any(|option| option == b"warn_default_encoding") {
                // The one switch that Python takes from a command line or the environment only, whatever the configuration says
                // (Python/preconfig.c, _PyPreCmdline_SetConfig). So it gets a line; `sys.argv` is put right afterwards.
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
        // Before 3.12 the bug-fix releases keep it outside of PyConfig and read it from `-X` and the environment.
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
        // SAFETY: a C string; a null pointer says that the length is not wanted; Python is pre-initialised.
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

fn text(pointer: *const std::ffi::c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: the callers give C strings of Python's that stay as long as the library is loaded.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}

/// Memory of an object that nobody else has seen yet, so that it can be written without the GIL.
pub(crate) enum NewBytes {
    /// A `bytes` or a `bytearray`.
    Object { object: Py<PyAny>, memory: NonNull<MaybeUninit<u8>>, length: usize },
    /// What becomes a `memoryview`.
    Region(Region),
}

/// From this size on the memory is asked for in huge pages.
const HUGE: usize = 1 << 20;

impl NewBytes {
    /// `None`: there is not so much memory.
    pub(crate) fn allocate(py: Python<'_>, length: usize, kind: SegmentType, regions: &Regions) -> Option<Self> {
        let size = ffi::Py_ssize_t::try_from(length).ok()?;
        let (pointer, place): (_, unsafe extern "C" fn(*mut ffi::PyObject) -> *mut std::ffi::c_char) = match kind {
            SegmentType::Memory if length >= HUGE => return regions.take(length).map(Self::Region),
            // Where there is not so much memory Python itself stumbles: it lets go of a bytearray that it has not filled in
            // (Objects/bytearrayobject.c, PyByteArray_FromStringAndSize). So that is found out before.
            SegmentType::ByteArray if length >= HUGE && os::Mapping::new(length).is_none() => return None,
            // SAFETY: the thread is attached; a null pointer asks for memory that is not written, and an object that was made so
            // may be written to as long as nobody else has it (Doc/c-api/bytes.rst, PyBytes_AsString).
            SegmentType::Bytes => (unsafe { ffi::PyBytes_FromStringAndSize(std::ptr::null(), size) }, ffi::PyBytes_AsString),
            SegmentType::Memory | SegmentType::ByteArray => {
                // SAFETY: as above (Objects/bytearrayobject.c).
                (unsafe { ffi::PyByteArray_FromStringAndSize(std::ptr::null(), size) }, ffi::PyByteArray_AsString)
            }
        };
        // SAFETY: a new reference, or null with a MemoryError set, which `from_owned_ptr_or_err` takes.
        let object = unsafe { Bound::from_owned_ptr_or_err(py, pointer) }.ok()?;
        // SAFETY: the object is of the type whose function this is.
        let memory = NonNull::new(unsafe { place(object.as_ptr()) })?.cast();
        let mut new = Self::Object { object: object.unbind(), memory, length };
        if length >= HUGE {
            os::advise_huge_pages(new.memory());
        }
        Some(new)
    }

    pub(crate) fn into_object(self, py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
        match self {
            Self::Object { object, .. } => Ok(object.into_bound(py)),
            Self::Region(mut region) => {
                let memory = region.memory();
                let address = NonNull::from(memory).cast();
                let exporter = Bound::new(py, Exporter { address: Address(address), region })?;
                Ok(PyMemoryView::from(exporter.as_any())?.into_any())
            }
        }
    }
}

impl Storage for NewBytes {
    fn memory(&mut self) -> &mut [MaybeUninit<u8>] {
        match self {
            // An empty `bytes` is one for all, which nobody writes to.
            Self::Object { length: 0, .. } => &mut [],
            // SAFETY: the object has this many bytes at this place. A bytearray keeps them there until somebody resizes it, which
            // nobody can: the only reference to it is in here, and neither type is tracked by the garbage collector.
            Self::Object { memory, length, .. } => unsafe { std::slice::from_raw_parts_mut(memory.as_ptr(), *length) },
            Self::Region(region) => region.memory(),
        }
    }
}

struct Address(NonNull<u8>);

// SAFETY: a number, as long as nobody follows it; who does says why that may be.
unsafe impl Send for Address {}
// SAFETY: as above.
unsafe impl Sync for Address {}

/// A region as an object with the buffer protocol.
#[pyclass(frozen, module = "trio_offload_worker")]
struct Exporter {
    address: Address,
    region: Region,
}

#[pymethods]
impl Exporter {
    /// # Safety
    /// `view` is what Python gives to `bf_getbuffer`.
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let exporter = slf.get();
        let length = ffi::Py_ssize_t::try_from(exporter.region.length())?;
        // SAFETY: the region stays at its address as long as this object lives, and the view holds a reference to the object. Its
        // bytes have all been received by now, and from now on only those reach them who have a view. `view` is Python's own.
        let status = unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), exporter.address.0.as_ptr().cast(), length, 0, flags) };
        if status == 0 { Ok(()) } else { Err(PyErr::fetch(slf.py())) }
    }
}

/// Memory of a Python object that is held in place, so that it can be sent without the GIL.
pub(crate) struct HeldBytes(PyUntypedBuffer);

impl HeldBytes {
    /// Any contiguous object with the buffer protocol.
    pub(crate) fn hold(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let buffer = PyUntypedBuffer::get(object)?;
        if buffer.is_c_contiguous() || buffer.is_fortran_contiguous() {
            Ok(Self(buffer))
        } else {
            Err(pyo3::exceptions::PyBufferError::new_err("the buffer is not contiguous"))
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        let pointer = self.0.buf_ptr().cast::<u8>();
        if pointer.is_null() || self.0.len_bytes() == 0 {
            return &[];
        }
        // SAFETY: the exporter keeps the memory in place and at its size while the buffer is held. That another thread of
        // the user's may write to it meanwhile is the same for every `socket.send` of Python's own; the bytes are only
        // handed to the kernel.
        unsafe { std::slice::from_raw_parts(pointer, self.0.len_bytes()) }
    }
}

unsafe extern "C" {
    // Include/cpython/classobject.h; pyo3 does not declare it.
    fn PyInstanceMethod_New(function: *mut ffi::PyObject) -> *mut ffi::PyObject;
}

/// What a callable has to become to be a method: in a class it gets the instance as its first argument.
pub(crate) fn new_method<'py>(function: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: the thread is attached, and the object is alive; it gives a new reference, or null with an exception set.
    unsafe { Bound::from_owned_ptr_or_err(function.py(), PyInstanceMethod_New(function.as_ptr())) }
}

/// The dictionary behind a class that an extension module has made. Whoever changes it calls [`forget_methods`].
pub(crate) fn attributes_of<'py>(class: &Bound<'py, PyType>) -> PyResult<Bound<'py, PyDict>> {
    // SAFETY: the class is alive, and it has been made ready, so it has a dictionary; only classes of the interpreter itself keep
    // theirs elsewhere (Python 3.12 and newer), which is null here and an error then.
    let attributes = unsafe { Bound::from_borrowed_ptr_or_err(class.py(), (*class.as_type_ptr()).tp_dict) }?;
    Ok(attributes.cast_into()?)
}

/// Something has been changed in the dictionary behind a class: Python's cache of methods must not go by what was there.
pub(crate) fn forget_methods(class: &Bound<'_, PyType>) {
    // SAFETY: the thread is attached, and it is a class (Doc/c-api/type.rst: to be called after any manual modification).
    unsafe { ffi::PyType_Modified(class.as_type_ptr()) }
}

/// The code of an expression.
pub(crate) fn compile_expression<'py>(py: Python<'py>, source: &CStr, file: &CStr) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: the thread is attached, and both are C strings.
    let code = unsafe { ffi::Py_CompileString(source.as_ptr(), file.as_ptr(), ffi::Py_eval_input) };
    // SAFETY: a new reference, or null with an exception set.
    unsafe { Bound::from_owned_ptr_or_err(py, code) }
}

/// Executes code as the body of a module, which is put into `sys.modules` with a `__spec__`.
pub(crate) fn execute_as_module(py: Python<'_>, name: &str, code: &Bound<'_, PyCode>) -> PyResult<()> {
    let name = CString::new(name)?;
    // SAFETY: the thread is attached, the name is a C string, and the object is a code object.
    let module = unsafe { ffi::PyImport_ExecCodeModule(name.as_ptr(), code.as_ptr()) };
    // SAFETY: a new reference, or null with an exception set.
    unsafe { Bound::from_owned_ptr_or_err(py, module) }.map(drop)
}

/// The context variables of a job, from here to the end of its scope: a copy of those that the thread has.
pub(crate) struct JobContext<'py>(Bound<'py, PyAny>);

impl<'py> JobContext<'py> {
    /// `part` is called with a copy that is not empty.
    pub(crate) fn enter(py: Python<'py>, part: impl FnOnce(&Bound<'py, PyAny>) -> PyResult<()>) -> PyResult<Self> {
        // SAFETY: the thread is attached; a new reference, or null with an exception set.
        let context = unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyContext_CopyCurrent()) }?;
        if context.len()? > 0 {
            part(&context)?;
        }
        // SAFETY: a context that nobody has entered.
        if unsafe { ffi::PyContext_Enter(context.as_ptr()) } == 0 { Ok(Self(context)) } else { Err(PyErr::fetch(py)) }
    }
}

impl Drop for JobContext<'_> {
    fn drop(&mut self) {
        // SAFETY: `enter` has entered it, in this thread, which is attached as long as this lives.
        if unsafe { ffi::PyContext_Exit(self.0.as_ptr()) } != 0 {
            // C code of the job has left it already; then there is nothing to do.
            let _ = PyErr::take(self.0.py());
        }
    }
}

/// A result that is nothing yet: it would have to be awaited, in an event loop that a worker does not have.
pub(crate) fn is_asynchronous(object: &Bound<'_, PyAny>) -> bool {
    // SAFETY: both look at the type of a live object only.
    unsafe { ffi::PyCoro_CheckExact(object.as_ptr()) != 0 || ffi::PyAsyncGen_CheckExact(object.as_ptr()) != 0 }
}

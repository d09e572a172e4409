//! How a template makes a worker out of itself: a child of the template's own parent, with all done that `fork(3)` does.
//!
//! `clone(2)` with `CLONE_PARENT` makes a sibling. So the parent program reaps each worker itself and learns exactly how it
//! ended, a worker's `getppid` is the program, and a template may die without any effect on the workers.
//! The alternative, the C library's `fork` and a template that reports how its children ended, loses the ending of every
//! worker that outlives its template, and needs a second kind of reaping, orphan and pidfd on the parent's side.
//!
//! The C library's `fork` does some things that the bare call does not, and these are done here:
//! * The main thread's number is kept in its control block (`pthread_kill`, robust and error-checking mutexes and, before glibc
//!   2.34, more use it). `CLONE_CHILD_SETTID` writes the new one there, as `fork` has it. How the place is found, whatever the C
//!   library: `numbers.rs`. A worker that has wrong numbers afterwards ends before it does anything.
//! * The list of robust mutexes is registered anew (`set_robust_list(2)`).
//! * The handlers of `pthread_atfork(3)` are run: OpenBLAS stops its threads in one. The C library keeps them to itself, so they
//!   are noted when they are registered: the symbol below comes before the library's own, for all that is loaded. Those of a library
//!   that is unloaded are forgotten at the same moment as by the C library: by an exit handler of that library (`__cxa_atexit`).
//! * The locks of the C library need no care: there is one thread, and it holds none. Where there are others that may be there
//!   ([`AllowedThreads`]), the fork waits until they sleep: a thread that sleeps is not in the middle of an allocation. What the
//!   C library notes of them stays noted in the worker: their stacks are not used again, and a call that waits until all threads
//!   have done something (`setuid(2)`) finds that they are gone.

use std::ffi::{c_int, c_void};
use std::fs;
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::os::unix::fs::MetadataExt as _;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use thiserror::Error;

use super::numbers::{self, Numbers};

/// Which of the two processes this is after a fork.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Template,
    Worker,
}

#[derive(Debug, Error)]
pub enum ForkError {
    #[error("the template has {} beside the one that forks ({}), and a process with threads cannot be forked safely", count(.0.len()), .0.join(", "))]
    Threads(Vec<String>),
    #[error("the system cannot fork a worker off the template: {0}")]
    System(io::Error),
    #[error(
        "a worker cannot be forked with this C library, which keeps the number of a thread where no worker finds it ({0}); use WorkerType.SPAWN, and please report this"
    )]
    UnknownLibrary(String),
    #[error("a forkserver needs Linux and the GNU C library (glibc); use WorkerType.SPAWN")]
    Unsupported,
}

fn count(threads: usize) -> String {
    format!("{threads} {}", if threads == 1 { "thread" } else { "threads" })
}

type Handler = Option<unsafe extern "C" fn()>;

#[derive(Debug, Clone, Copy)]
struct Handlers {
    number: u64,
    prepare: Handler,
    parent: Handler,
    child: Handler,
    /// What its library is known by to the C library, or 0. The handlers are code of that library.
    library: usize,
}

static HANDLERS: Mutex<Vec<Handlers>> = Mutex::new(Vec::new());
static LAST_NUMBER: AtomicU64 = AtomicU64::new(0);

fn handlers() -> MutexGuard<'static, Vec<Handlers>> {
    HANDLERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A library is unloaded, or the process exits and needs none of them any more.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
unsafe extern "C" fn forget_handlers(library: *mut c_void) {
    let library = library.addr();
    handlers().retain(|known| known.library != library);
}

static FORKING: AtomicBool = AtomicBool::new(false);

/// Whether a handler is run because a template forks a worker, and not because somebody else forks this process.
pub(super) fn is_forking() -> bool {
    FORKING.load(Ordering::Relaxed)
}

/// What `pthread_atfork` calls. It is called by name, and the executable's own symbol is the first that the loader finds.
///
/// # Safety
/// As `pthread_atfork(3)`: the functions can be called at any fork from now on.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __register_atfork(prepare: Handler, parent: Handler, child: Handler, dso: *mut c_void) -> c_int {
    type Register = unsafe extern "C" fn(Handler, Handler, Handler, *mut c_void) -> c_int;
    unsafe extern "C" {
        fn __cxa_atexit(function: unsafe extern "C" fn(*mut c_void), argument: *mut c_void, dso: *mut c_void) -> c_int;
    }
    // SAFETY: dlsym reads a C string; RTLD_NEXT asks for what this symbol has displaced.
    let next = unsafe { libc::dlsym(libc::RTLD_NEXT, c"__register_atfork".as_ptr()) };
    if next.is_null() {
        return libc::ENOMEM;
    }
    // SAFETY: the C library's function of this name has had this type since glibc 2.3 (nptl/pthread_atfork.c).
    let next = unsafe { std::mem::transmute::<*mut c_void, Register>(next) };
    // The C library forgets them when it ends this library, and calls the library's exit handlers just before.
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

/// Forks a worker off this process. Its number is in the front of its record before it runs at all. In the worker it is written to
/// `birth`, and taken back from there, before anything else is done, and then `born` is called. To be called between Python's own preparation for a fork and what it does after one.
pub fn fork_sibling(
    birth: BorrowedFd<'_>,
    front: Option<Front>,
    allowed: &AllowedThreads,
    born: impl FnOnce(),
) -> Result<Side, ForkError> {
    let handlers = Prepared::new();
    refuse_threads(allowed)?;
    let side = clone_sibling(birth, front)?;
    if side == Side::Worker {
        born();
    }
    handlers.finish(side);
    Ok(side)
}

/// Whether this process could fork now, once everybody has prepared for it.
pub fn rehearse(allowed: &AllowedThreads) -> Result<(), ForkError> {
    let _handlers = Prepared::new();
    refuse_threads(allowed)
}

/// How many threads this process has.
pub fn thread_count() -> usize {
    // One system call; the kernel counts a link for each thread (fs/proc/base.c, proc_task_getattr).
    let links = fs::metadata("/proc/self/task").map_or(0, |status| status.nlink());
    links.checked_sub(2).and_then(|count| usize::try_from(count).ok()).unwrap_or_default()
}

/// The handlers have prepared for a fork; when this goes without one, they are told so.
struct Prepared {
    /// Those that are to be told: what one of them registers meanwhile has not prepared.
    numbers: Vec<u64>,
    side: Side,
}

impl Prepared {
    fn new() -> Self {
        let numbers: Vec<u64> = handlers().iter().map(|handlers| handlers.number).collect();
        FORKING.store(true, Ordering::Relaxed);
        // The last to have registered prepares first (pthread_atfork(3)).
        run(numbers.iter().rev(), |handlers| handlers.prepare);
        Self { numbers, side: Side::Template }
    }

    fn finish(mut self, side: Side) {
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
        // One of the others may have had its library unloaded.
        let handler = handlers().iter().find(|handlers| handlers.number == *number).and_then(which);
        if let Some(handler) = handler {
            // SAFETY: it was registered to be called at a fork, on either side, which is what happens here; its library is there.
            unsafe { handler() };
        }
    }
}

/// The threads that may be there beside the one that forks, by their names.
#[derive(Debug, Clone, Default)]
pub struct AllowedThreads {
    names: Vec<String>,
}

/// Threads of libraries that make a fork safe themselves, by handlers of their own: jemalloc holds its locks through it, and has no
/// background thread in the child. pyarrow brings one, and pandas with it.
const KNOWN: [&str; 1] = ["jemalloc_bg_thd"];

/// What is behind this many bytes of a thread's name is cut off by the system (prctl(2), PR_SET_NAME).
const NAME_SIZE: usize = 15;

impl AllowedThreads {
    /// A `*` at the end of a name stands for anything.
    pub fn new(names: Vec<String>) -> Self {
        Self { names }
    }

    fn has(&self, name: &str) -> bool {
        let fits = |allowed: &str| match allowed.strip_suffix('*') {
            Some(beginning) => name.as_bytes().starts_with(cut(beginning)),
            None => name.as_bytes() == cut(allowed),
        };
        KNOWN.contains(&name) || self.names.iter().any(|allowed| fits(allowed))
    }

    /// The names of those that may not be there.
    pub fn strangers(&self) -> Vec<String> {
        other_threads().into_iter().map(|thread| thread.name).filter(|name| !self.has(name)).collect()
    }
}

fn cut(name: &str) -> &[u8] {
    name.as_bytes().get(..NAME_SIZE).unwrap_or(name.as_bytes())
}

/// A thread that was waited for is counted until the kernel has taken it apart, and one that may be there may be at work.
const UNTIL_THREADS_ARE_GONE: Duration = Duration::from_millis(100);

/// Whether this process has no other threads than those that may be there. If it can be had these sleep when this returns.
pub fn refuse_threads(allowed: &AllowedThreads) -> Result<(), ForkError> {
    let deadline = Instant::now() + UNTIL_THREADS_ARE_GONE;
    while thread_count() > 1 {
        let (known, strangers): (Vec<_>, Vec<_>) = other_threads().into_iter().partition(|thread| allowed.has(&thread.name));
        let is_late = Instant::now() > deadline;
        if strangers.is_empty() && (is_late || known.iter().all(|thread| thread.sleeps)) {
            return Ok(());
        }
        if is_late {
            return Err(ForkError::Threads(strangers.into_iter().map(|thread| thread.name).collect()));
        }
        thread::sleep(Duration::from_micros(100));
    }
    Ok(())
}

struct OtherThread {
    name: String,
    sleeps: bool,
}

fn other_threads() -> Vec<OtherThread> {
    let Ok(threads) = fs::read_dir("/proc/self/task") else { return Vec::new() };
    let own = std::process::id().to_string();
    let others = threads.flatten().filter(|thread| thread.file_name().to_str() != Some(own.as_str()));
    others
        .map(|thread| {
            let name = fs::read_to_string(thread.path().join("comm")).unwrap_or_default().trim_end_matches('\n').to_owned();
            let status = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
            // The state comes behind the name, which may hold anything (proc(5)).
            let sleeps = status.rsplit_once(") ").is_some_and(|(_, fields)| fields.starts_with('S'));
            OtherThread { name: if name.is_empty() { "without a name".to_owned() } else { name }, sleeps }
        })
        .collect()
}

/// Where the numbers are is the same at every fork.
static NUMBERS: OnceLock<Numbers> = OnceLock::new();

fn numbers() -> Result<Numbers, ForkError> {
    if let Some(numbers) = NUMBERS.get() {
        return Ok(*numbers);
    }
    let found = Numbers::find().ok_or_else(|| ForkError::UnknownLibrary(c_library()))?;
    Ok(*NUMBERS.get_or_init(|| found))
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn clone_sibling(birth: BorrowedFd<'_>, front: Option<Front>) -> Result<Side, ForkError> {
    const FLAGS: c_int = libc::CLONE_PARENT | libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID | libc::SIGCHLD;
    let numbers = numbers()?;
    let number = numbers.of_thread();
    let noted = front.as_ref().map_or(std::ptr::null_mut(), |front| front.0.as_ptr());
    let flags = if front.is_some() { FLAGS | libc::CLONE_PARENT_SETTID } else { FLAGS };
    let robust = robust_list();
    // SAFETY: without CLONE_VM the new process has a copy of all memory and goes on behind this line on its own copy of the
    // stack, as after fork(2); what the kernel writes to are the place where the C library has the number, and the front of the record. There is one
    // thread, or others sleep, so no lock is held by somebody who is not copied.
    let pid = unsafe {
        // The order of the arguments differs between the processors (clone(2), «C library/kernel differences»).
        #[cfg(target_arch = "x86_64")]
        let pid = libc::syscall(libc::SYS_clone, flags, 0_usize, noted, number, 0_usize);
        #[cfg(target_arch = "s390x")]
        let pid = libc::syscall(libc::SYS_clone, 0_usize, flags, noted, number, 0_usize);
        #[cfg(not(any(target_arch = "x86_64", target_arch = "s390x")))]
        let pid = libc::syscall(libc::SYS_clone, flags, 0_usize, noted, 0_usize, number);
        pid
    };
    match pid {
        0 => {
            // First: whoever knows the number may end this process, and relies on what that arranges.
            crate::process::family::begin();
            if announce(birth)
                && let Some(front) = front
            {
                front.clear();
            }
            if !numbers.settle() {
                let _ = writeln!(io::stderr(), "trio-offload-worker: {}", ForkError::UnknownLibrary(c_library()));
                super::exit_now(crate::exit::WRONG_ARGUMENTS);
            }
            if let Some((head, length)) = robust {
                // SAFETY: the same list, in this process's own copy of the memory.
                unsafe { libc::syscall(libc::SYS_set_robust_list, head, length) };
            }
            Ok(Side::Worker)
        }
        1.. => Ok(Side::Template),
        _ => Err(ForkError::System(io::Error::last_os_error())),
    }
}

/// Other C libraries call the handlers of `pthread_atfork` in ways that are not known here.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn clone_sibling(_birth: BorrowedFd<'_>, _front: Option<Front>) -> Result<Side, ForkError> {
    Err(ForkError::Unsupported)
}

/// The front of a record, in memory that is shared with the file, and so with the parent. The kernel writes the number of a new
/// process there (`CLONE_PARENT_SETTID`) when it has made it and before it lets it run. So whoever is killed, and when, the
/// parent knows of every child that it has.
#[derive(Debug)]
pub struct Front(NonNull<c_int>);

impl Front {
    /// `None`: it is no file that can be in memory. Then a worker that dies before it has told its number stays a zombie.
    pub fn of(record: BorrowedFd<'_>) -> Option<Self> {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a null pointer leaves the place to the system, which takes none that is in use.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), size_of::<c_int>(), protection, flags, record.as_raw_fd(), 0) };
        if address == libc::MAP_FAILED {
            return None;
        }
        let front = Self(NonNull::new(address.cast())?);
        // The page is there when the kernel writes to it.
        front.clear();
        Some(front)
    }

    fn clear(&self) {
        // SAFETY: a mapping of a file that has as much, at its beginning: an int's place, and nobody here has a reference to it.
        unsafe { self.0.as_ptr().write_volatile(0) };
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        // SAFETY: what `of` has mapped, in this process or in a copy that has the mapping too; nobody else knows it.
        unsafe { libc::munmap(self.0.as_ptr().cast(), size_of::<c_int>()) };
    }
}

/// The parent learns the number from the worker itself: a template that dies at this moment has nothing to tell any more. False: it
/// does not.
fn announce(birth: BorrowedFd<'_>) -> bool {
    let bytes = numbers::process_number().to_be_bytes();
    // SAFETY: the pointer and the length are those of the array. A pipe takes so few bytes as a whole; a parent that is gone is
    // found out a moment later.
    let written = unsafe { libc::write(birth.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
    usize::try_from(written).is_ok_and(|written| written == bytes.len())
}

/// Its name and release, for people.
fn c_library() -> String {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: a string that the C library has for good.
        let release = unsafe { std::ffi::CStr::from_ptr(libc::gnu_get_libc_version()) };
        format!("glibc {}", release.to_string_lossy())
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    String::new()
}

#[cfg(target_os = "linux")]
fn robust_list() -> Option<(*mut c_void, usize)> {
    let mut head: *mut c_void = std::ptr::null_mut();
    let mut length = 0_usize;
    // SAFETY: the call writes a pointer and a length to the places given; 0 is the calling thread (get_robust_list(2)).
    let status = unsafe { libc::syscall(libc::SYS_get_robust_list, 0, &raw mut head, &raw mut length) };
    (status == 0 && !head.is_null()).then_some((head, length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    static PREPARED: AtomicUsize = AtomicUsize::new(0);
    static TOLD: AtomicUsize = AtomicUsize::new(0);

    extern "C" fn prepare() {
        PREPARED.fetch_add(1, Ordering::SeqCst);
    }

    extern "C" fn told() {
        TOLD.fetch_add(1, Ordering::SeqCst);
    }

    #[test]
    fn threads_are_counted_and_named() {
        let (done, wait) = std::sync::mpsc::channel::<()>();
        let (ready, begun) = std::sync::mpsc::channel::<()>();
        let before = thread_count();
        // It gives itself its name.
        let work = move || ready.send(()).map(|()| wait.recv().is_err());
        let thread = thread::Builder::new().name("knitter".to_owned()).spawn(work).unwrap();
        begun.recv().unwrap();
        assert!(thread_count() > before.saturating_sub(1) && before >= 1);
        assert!(AllowedThreads::default().strangers().contains(&"knitter".to_owned()));
        assert!(!AllowedThreads::new(vec!["knit*".to_owned()]).strangers().contains(&"knitter".to_owned()));
        drop(done);
        assert!(thread.join().unwrap().unwrap());
    }

    #[test]
    fn threads_are_allowed_by_their_names_as_the_system_has_them() {
        let names = ["exact", "begins-*", "longer than fifteen bytes", "*"].map(str::to_owned);
        let allowed = AllowedThreads::new(names[..3].to_vec());
        for name in ["exact", "begins-", "begins-with-it", "longer than fif", "jemalloc_bg_thd"] {
            assert!(allowed.has(name), "{name}");
        }
        for name in ["exactly", "Exact", "begins", "longer than fi", "", "jemalloc_bg_th"] {
            assert!(!allowed.has(name), "{name}");
        }
        assert!(AllowedThreads::new(names.to_vec()).has("whatever"));
    }

    #[test]
    fn a_rehearsal_with_threads_is_refused_and_the_handlers_are_told() {
        // SAFETY: both functions live as long as the program and do nothing that could go wrong.
        assert_eq!(unsafe { libc::pthread_atfork(Some(prepare), Some(told), None) }, 0);
        // The harness itself has a thread for each test.
        let error = rehearse(&AllowedThreads::default()).unwrap_err();
        assert!(error.to_string().contains("beside the one that forks"), "{error}");
        assert_eq!((PREPARED.load(Ordering::SeqCst), TOLD.load(Ordering::SeqCst)), (1, 1));
    }
}

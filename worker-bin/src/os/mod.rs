//! What the operating system offers through C only: descriptors, signals, processes. One of the places with `unsafe`.

pub mod fork;
pub mod marks;
#[cfg(target_os = "linux")]
mod namespaces;
mod numbers;
pub mod proc;

use std::collections::VecDeque;
use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering, fence};
use std::time::Duration;

/// Whether the descriptor is an open socket.
pub fn is_socket(descriptor: RawFd) -> bool {
    status_of(descriptor).is_some_and(|status| status.st_mode & libc::S_IFMT == libc::S_IFSOCK)
}

/// What an open file or socket has to itself among all that are open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity(libc::dev_t, libc::ino_t);

/// What the descriptor is open on; `None` if it is not open.
pub fn identity_of(descriptor: BorrowedFd<'_>) -> Option<Identity> {
    identity_of_number(descriptor.as_raw_fd())
}

/// The same for one of which only the number is known.
pub fn identity_of_number(descriptor: RawFd) -> Option<Identity> {
    status_of(descriptor).map(|status| Identity(status.st_dev, status.st_ino))
}

fn status_of(descriptor: RawFd) -> Option<libc::stat> {
    let mut status = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: fstat writes at most one `stat` to the place given and takes any number as a descriptor.
    if unsafe { libc::fstat(descriptor, status.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: fstat has succeeded, so it has filled the structure.
    Some(unsafe { status.assume_init() })
}

/// Takes possession of an inherited descriptor, which nothing else in this process may own, and keeps it from being
/// inherited further.
pub fn adopt(descriptor: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_SETFD takes an int and touches no memory.
    check(unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: the call above has shown that the descriptor is open; the caller answers for its being free.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Closes every descriptor from `first` on. Nothing in the process may own one of them.
pub fn close_from(first: RawFd) {
    if close_range(first, RawFd::MAX, 0) {
        return;
    }
    // Kernels before 5.9, and seccomp filters that do not know the call. The list is taken before the first close:
    // reading the directory needs a descriptor of its own.
    let directory = if cfg!(target_os = "linux") { "/proc/thread-self/fd" } else { "/dev/fd" };
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    let open: Vec<RawFd> = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for descriptor in open.into_iter().filter(|descriptor| *descriptor >= first) {
        // SAFETY: by the caller's word nobody owns it; the one that was the directory's own gives EBADF, which does no harm.
        unsafe { libc::close(descriptor) };
    }
}

/// Whether the kernel has closed all of these.
fn close_range(first: RawFd, last: RawFd, flags: libc::c_uint) -> bool {
    #[cfg(target_os = "linux")]
    // SAFETY: close_range takes three integers; by the word of the caller's caller nobody owns what it closes.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) == 0 };
    #[cfg(not(target_os = "linux"))]
    let closed = {
        let _ = (first, last, flags);
        false
    };
    closed
}

/// Gives the calling thread a table of descriptors of its own, with only those that are to be `kept` in it: what other threads
/// close and open from now on is nothing to it, and what it opens is nothing to them. Standard streams are the null device.
/// False: this system cannot do so, and nothing has changed.
///
/// To be called by a thread that owns no descriptor yet.
pub fn leave_descriptor_table(kept: &[RawFd]) -> bool {
    let Some(last) = kept.iter().max().copied() else { return false };
    // One call does both (Linux 5.9), and container sandboxes that forbid `unshare` let it pass.
    #[cfg(target_os = "linux")]
    // SAFETY: unshare takes an integer; with this flag it copies the table, as the call in front of it does.
    let left = close_range(last + 1, RawFd::MAX, libc::CLOSE_RANGE_UNSHARE) || unsafe { libc::unshare(libc::CLONE_FILES) } == 0;
    #[cfg(not(target_os = "linux"))]
    let left = false;
    if !left {
        return false;
    }
    close_from(last + 1);
    for number in (3..last).filter(|number| !kept.contains(number)) {
        // SAFETY: in a table that only this thread has, and by the caller's word it owns none in it.
        unsafe { libc::close(number) };
    }
    for stream in 0..3 {
        if put_null_in_place(stream).is_err() {
            // SAFETY: as above. Somebody may wait for the end of a pipe that this is.
            unsafe { libc::close(stream) };
        }
    }
    true
}

/// Closes a descriptor in a table that is the calling thread's own; there may be nothing under the number.
pub fn close_in_own_table(descriptor: RawFd) {
    // SAFETY: close takes any number. The main thread's descriptor of that number, and who owns it, are not concerned.
    unsafe { libc::close(descriptor) };
}

/// Makes this process the one that its orphaned descendants fall to, so that it can still find them (prctl(2)).
pub fn become_subreaper() -> io::Result<()> {
    #[cfg(target_os = "linux")]
    // SAFETY: PR_SET_CHILD_SUBREAPER takes one integer and touches no memory.
    check(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) })?;
    Ok(())
}

/// A file that grows beyond its limit gives an `OSError` and not a dead process: CPython does the same when it
/// installs its signal handlers (Modules/signalmodule.c), which this program tells it not to do.
pub fn ignore_file_size_signal() {
    // SAFETY: SIG_IGN is a disposition, not a function to be called.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Lets a fault in the user's code end the process as it ends the user's own Python, with SIGSEGV or SIGBUS. Rust's runtime
/// has put handlers there that turn an exhausted stack into SIGABRT and a message about Rust.
pub fn restore_fault_signals() {
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        // SAFETY: SIG_DFL is a disposition, not a function to be called.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Sets a variable, or unsets it. To be called while the process has one thread: every other could be reading.
pub fn set_environment(name: &CStr, value: Option<&CStr>) -> io::Result<()> {
    let status = match value {
        // SAFETY: both are C strings, which setenv copies; the caller answers for the single thread.
        Some(value) => unsafe { libc::setenv(name.as_ptr(), value.as_ptr(), 1) },
        // SAFETY: as above.
        None => unsafe { libc::unsetenv(name.as_ptr()) },
    };
    check(status).map(drop)
}

/// Signals of the calling thread that wait until this is dropped. A thread that is started meanwhile never gets them.
#[derive(Debug)]
pub struct SignalsHeld {
    before: libc::sigset_t,
}

impl SignalsHeld {
    /// Holds back every signal, so that the native threads leave them all to the thread that Python runs on.
    pub fn all() -> io::Result<Self> {
        let mut all = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigfillset initialises the whole set that it is given.
        unsafe { libc::sigfillset(all.as_mut_ptr()) };
        // SAFETY: initialised on the line before.
        Self::change(libc::SIG_BLOCK, &unsafe { all.assume_init() })
    }

    /// Holds back Ctrl+C until there is something that swallows it.
    pub fn interrupt() -> io::Result<Self> {
        Self::change(libc::SIG_BLOCK, &interrupt_only())
    }

    /// Lets Ctrl+C through from now on, whatever was blocked before: the parent may start the worker with it blocked,
    /// which keeps it from dying between its start and its handler.
    pub fn let_interrupt_through() -> io::Result<()> {
        let change = Self::change(libc::SIG_UNBLOCK, &interrupt_only())?;
        std::mem::forget(change);
        Ok(())
    }

    fn change(how: libc::c_int, set: &libc::sigset_t) -> io::Result<Self> {
        let mut before = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: both pointers are to live sets; the second is written as a whole when the call succeeds.
        let status = unsafe { libc::pthread_sigmask(how, set, before.as_mut_ptr()) };
        if status != 0 {
            return Err(io::Error::from_raw_os_error(status));
        }
        // SAFETY: the call has succeeded.
        Ok(Self { before: unsafe { before.assume_init() } })
    }
}

impl Drop for SignalsHeld {
    fn drop(&mut self) {
        // SAFETY: `before` is a set that the system gave; a null pointer asks for no copy of the present one.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, std::ptr::null_mut()) };
    }
}

fn interrupt_only() -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the whole set that it is given.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: initialised on the line before; SIGINT is a signal's number.
    unsafe { libc::sigaddset(set.as_mut_ptr(), libc::SIGINT) };
    // SAFETY: initialised above.
    unsafe { set.assume_init() }
}

/// A descriptor that becomes readable when the process ends; `None` where the system has none, or no such process.
pub fn open_process(pid: u32) -> Option<OwnedFd> {
    #[cfg(target_os = "linux")]
    {
        let pid = libc::pid_t::try_from(pid).ok()?;
        // SAFETY: pidfd_open takes two integers.
        let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let descriptor = RawFd::try_from(descriptor).ok().filter(|descriptor| *descriptor >= 0)?;
        // SAFETY: the system has just made it for this process (close-on-exec, pidfd_open(2)), so nobody else owns it.
        Some(unsafe { OwnedFd::from_raw_fd(descriptor) })
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = pid;
        None
    }
}

/// Wakes a native thread without a descriptor of the process's, which a job could close: by [`STACKS`], sent to that very thread.
/// It keeps the signal blocked and reads it from a descriptor of its own, so nobody's handler is concerned.
#[derive(Debug, Default)]
pub struct Bell {
    /// The thread's number; 0: there is none that listens.
    listener: AtomicI32,
}

impl Bell {
    pub const fn new() -> Self {
        Self { listener: AtomicI32::new(0) }
    }

    pub fn ring(&self) {
        // With `listen`: one of the two sees what the other has done before.
        fence(Ordering::SeqCst);
        let listener = self.listener.load(Ordering::SeqCst);
        if listener != 0 {
            send_to_thread(listener, STACKS);
        }
    }

    /// From now on the calling thread, which blocks all signals, is woken by what this gives. `None`: that cannot be had, and it
    /// has to look from time to time.
    pub fn listen(&self) -> Option<OwnedFd> {
        #[cfg(target_os = "linux")]
        {
            let mut set = MaybeUninit::<libc::sigset_t>::uninit();
            // SAFETY: sigemptyset initialises the whole set that it is given.
            unsafe { libc::sigemptyset(set.as_mut_ptr()) };
            // SAFETY: initialised on the line before; STACKS is a signal's number.
            unsafe { libc::sigaddset(set.as_mut_ptr(), STACKS) };
            // SAFETY: the set is initialised; -1 asks for a new descriptor.
            let descriptor = unsafe { libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
            if descriptor < 0 {
                return None;
            }
            self.listener.store(thread_number(), Ordering::SeqCst);
            fence(Ordering::SeqCst);
            // SAFETY: the system has just made it for this process, so nobody else owns it.
            Some(unsafe { OwnedFd::from_raw_fd(descriptor) })
        }
        #[cfg(not(target_os = "linux"))]
        None
    }

    /// The thread is about to end.
    pub fn stop_listening(&self) {
        self.listener.store(0, Ordering::SeqCst);
    }
}

/// Takes from a descriptor of [`Bell::listen`] that it has rung.
pub fn take_ring(bell: BorrowedFd<'_>) {
    let mut bytes = [0_u8; 128];
    // SAFETY: the pointer and the length are those of the array, which is as long as one `signalfd_siginfo`.
    unsafe { libc::read(bell.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len()) };
}

/// The number that the kernel knows the calling thread by.
pub fn thread_number() -> i32 {
    #[cfg(target_os = "linux")]
    // SAFETY: gettid takes nothing.
    let number = i32::try_from(unsafe { libc::syscall(libc::SYS_gettid) }).unwrap_or_default();
    #[cfg(not(target_os = "linux"))]
    let number = 0;
    number
}

/// Whether the calling thread is the one that the process began with.
pub fn is_main_thread() -> bool {
    u32::try_from(thread_number()).is_ok_and(|number| number == std::process::id())
}

/// Whether a thread of this process has this number, be it on its way out; with the signal 0 nothing is sent.
pub fn is_thread(number: i32) -> bool {
    send_to_thread(number, 0)
}

fn send_to_thread(number: i32, signal: libc::c_int) -> bool {
    #[cfg(target_os = "linux")]
    // SAFETY: getpid takes nothing, tgkill three integers.
    let sent = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), number, signal) == 0 };
    #[cfg(not(target_os = "linux"))]
    let sent = {
        let _ = (number, signal);
        false
    };
    sent
}

/// What [`wait_for`] saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seen {
    /// The other end of the socket is gone.
    pub hang_up: bool,
    /// The process has ended.
    pub death: bool,
    /// The bell has rung.
    pub bell: bool,
}

/// The process whose child this one is, or was.
#[derive(Debug)]
pub struct ParentWatch {
    pid: u32,
    handle: Option<OwnedFd>,
}

impl ParentWatch {
    /// Of the parent that is known by this number. It may have ended already: then this one is another's child by now, and whom the
    /// number belongs to is nobody's business.
    pub fn of(pid: u32) -> Self {
        let handle = open_process(pid).filter(|_| std::os::unix::process::parent_id() == pid);
        Self { pid, handle }
    }

    /// Waits until there is something to read, the end of the stream included. False: the process has ended before that.
    pub fn wait_for_input(&self, socket: BorrowedFd<'_>) -> io::Result<bool> {
        /// Milliseconds between two looks where the system cannot tell of a process's end.
        const WITHOUT_HANDLE: libc::c_int = 200;
        let handle = self.handle.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        let timeout = if handle < 0 { WITHOUT_HANDLE } else { -1 };
        loop {
            // poll(2) ignores a negative descriptor.
            let mut entries = [
                libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLIN, revents: 0 },
                libc::pollfd { fd: handle, events: libc::POLLIN, revents: 0 },
            ];
            // SAFETY: the pointer and the count are those of the array.
            check(unsafe { libc::poll(entries.as_mut_ptr(), 2, timeout) })?;
            if entries[0].revents != 0 {
                return Ok(true);
            }
            if std::os::unix::process::parent_id() != self.pid {
                return Ok(false);
            }
        }
    }
}

/// Waits until the socket's other end is closed, the process has ended or the bell rings, whichever of them is given.
pub fn wait_for(
    socket: Option<RawFd>,
    process: Option<BorrowedFd<'_>>,
    bell: Option<BorrowedFd<'_>>,
    timeout: Option<Duration>,
) -> Seen {
    #[cfg(target_os = "linux")]
    const HANG_UP: libc::c_short = libc::POLLRDHUP;
    #[cfg(not(target_os = "linux"))]
    const HANG_UP: libc::c_short = libc::POLLHUP;
    // poll(2) ignores a negative descriptor.
    let mut entries = [
        libc::pollfd { fd: socket.unwrap_or(-1), events: HANG_UP, revents: 0 },
        libc::pollfd { fd: process.map_or(-1, |process| process.as_raw_fd()), events: libc::POLLIN, revents: 0 },
        libc::pollfd { fd: bell.map_or(-1, |bell| bell.as_raw_fd()), events: libc::POLLIN, revents: 0 },
    ];
    // Rounded up: a wait that ended before its time would be begun again and again until it is over.
    let milliseconds =
        timeout.map_or(-1, |timeout| libc::c_int::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(libc::c_int::MAX));
    // SAFETY: the pointer and the count are those of the array.
    if unsafe { libc::poll(entries.as_mut_ptr(), 3, milliseconds) } <= 0 {
        return Seen::default();
    }
    // A hang-up is the only thing asked of the socket; POLLHUP, POLLERR and POLLNVAL come unasked and mean the same here.
    Seen { hang_up: entries[0].revents != 0, death: entries[1].revents != 0, bell: entries[2].revents != 0 }
}

/// Writes to a file where its last writer left off. Those that hold it share the place (open(2), «open file description»).
pub fn append(file: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        // SAFETY: the pointer and the length are those of the slice.
        let count = unsafe { libc::write(file.as_raw_fd(), rest.as_ptr().cast(), rest.len()) };
        match usize::try_from(count) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => rest = rest.get(count..).unwrap_or_default(),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

/// The length of an open file, in bytes; 0 if it is not open. May be called in a signal's handler.
pub fn size_of(descriptor: RawFd) -> u64 {
    status_of(descriptor).and_then(|status| u64::try_from(status.st_size).ok()).unwrap_or_default()
}

/// Sends at once or not at all; how many bytes were taken.
pub fn send_at_once(socket: RawFd, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the pointer and the length are those of the slice.
    let count = unsafe { libc::send(socket, bytes.as_ptr().cast(), bytes.len(), libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// Bytes in a page of memory.
pub fn page_size() -> u64 {
    // SAFETY: sysconf takes a number and gives one.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// What all threads of this process have had of the processors.
pub fn processor_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: clock_gettime writes one `timespec` to the place given.
    if unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) } != 0 {
        return Duration::ZERO;
    }
    Duration::new(u64::try_from(time.tv_sec).unwrap_or_default(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// The signal that asks the Python thread for the stacks. On Linux one that nothing else sends (signal(7): «unused»).
#[cfg(target_os = "linux")]
pub const STACKS: i32 = libc::SIGSTKFLT;
#[cfg(not(target_os = "linux"))]
pub const STACKS: i32 = libc::SIGXCPU;

/// Until somebody answers [`STACKS`] it does nothing. A handler, and not SIG_IGN, which the programs of a job would inherit.
pub fn disarm_stacks_signal() {
    swallow(STACKS);
}

/// Swallows Ctrl+C without a thread.
pub fn swallow_interrupt() {
    swallow(libc::SIGINT);
}

fn swallow(signal: libc::c_int) {
    extern "C" fn nothing(_: libc::c_int) {}
    let handler: extern "C" fn(libc::c_int) = nothing;
    // SAFETY: the handler lives as long as the program and does nothing.
    unsafe { libc::signal(signal, handler as libc::sighandler_t) };
}

/// Sends [`STACKS`] to the main thread, which is the one that runs Python.
pub fn ask_for_stacks() {
    if disposition_of(STACKS).is_none_or(|disposition| disposition.handler == libc::SIG_DFL) {
        // The job has taken its handler away; the signal would end the process.
        return;
    }
    #[cfg(target_os = "linux")]
    // SAFETY: getpid takes nothing. The main thread's number is the process's (gettid(2)).
    send_to_thread(unsafe { libc::getpid() }, STACKS);
    #[cfg(not(target_os = "linux"))]
    // SAFETY: kill takes two integers.
    unsafe {
        libc::kill(libc::getpid(), STACKS);
    }
}

/// Ends the process at once: no destructor, no handler, no flush.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit does not return and runs nothing of this process's.
    unsafe { libc::_exit(code) }
}

static SOCKET_TO_DROP: AtomicI32 = AtomicI32::new(-1);
static RECORD_TO_REPLACE: AtomicI32 = AtomicI32::new(-1);
static FORKED: AtomicBool = AtomicBool::new(false);

/// From now on a child that is forked off this process loses the socket before it runs anything: were it to keep the
/// socket, this process's death would go unseen as long as the child lives. It loses the record too: how a copy dies says
/// nothing about the worker.
pub fn drop_in_children(socket: BorrowedFd<'_>, record: BorrowedFd<'_>) -> io::Result<()> {
    SOCKET_TO_DROP.store(socket.as_raw_fd(), Ordering::Relaxed);
    RECORD_TO_REPLACE.store(record.as_raw_fd(), Ordering::Relaxed);
    // SAFETY: the function is `extern "C"`, lives as long as the program, and does only what a child of a process with
    // threads may do (signal-safety(7)).
    let status = unsafe { libc::pthread_atfork(None, None, Some(after_fork_in_child)) };
    if status == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(status)) }
}

/// Whether this process is a copy that a job forked off the worker. It must never speak the protocol.
pub fn is_forked_copy() -> bool {
    FORKED.load(Ordering::Relaxed)
}

extern "C" fn after_fork_in_child() {
    if fork::is_forking() {
        // Not a copy but a worker that a template makes, with a socket and a record of its own by now.
        return;
    }
    FORKED.store(true, Ordering::Relaxed);
    let socket = SOCKET_TO_DROP.swap(-1, Ordering::Relaxed);
    if socket >= 0 {
        // SAFETY: the child's copy of the descriptor; whoever owns it in this copy of the memory never gets to use it,
        // because a forked copy leaves by `exit_now`.
        unsafe { libc::close(socket) };
    }
    let record = RECORD_TO_REPLACE.swap(-1, Ordering::Relaxed);
    if record >= 0 {
        // Not closed: Python's `faulthandler` has the number, and would write into what the copy opens next.
        // SAFETY: open and dup2 take a C string and integers, and may be called between fork and exec (signal-safety(7)).
        unsafe {
            let null = libc::open(c"/dev/null".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            if null >= 0 {
                libc::dup2(null, record);
                libc::fcntl(record, libc::F_SETFD, libc::FD_CLOEXEC);
                libc::close(null);
            }
        }
    }
}

/// Receives into memory that need not have been written before. 0: the other end is closed.
pub fn receive(socket: BorrowedFd<'_>, into: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
    // SAFETY: the pointer and the length are those of the slice, and recv only writes to it.
    let count = unsafe { libc::recv(socket.as_raw_fd(), into.as_mut_ptr().cast(), into.len(), 0) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// Receives what is there, without waiting: `WouldBlock` if there is nothing. 0: the other end is closed.
pub fn receive_at_once(socket: BorrowedFd<'_>, into: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the pointer and the length are those of the slice, and recv only writes to it.
    let count = unsafe { libc::recv(socket.as_raw_fd(), into.as_mut_ptr().cast(), into.len(), libc::MSG_DONTWAIT) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// The most descriptors that come with one write: `SCM_MAX_FD` is 253, and a request for a worker has seven.
#[cfg(target_os = "linux")]
const MOST_DESCRIPTORS: usize = 16;

/// Receives bytes and the descriptors that came with them (unix(7), `SCM_RIGHTS`); those are close-on-exec.
#[cfg(target_os = "linux")]
pub fn receive_with_descriptors(
    socket: BorrowedFd<'_>,
    into: &mut [u8],
    descriptors: &mut VecDeque<OwnedFd>,
) -> io::Result<usize> {
    // The header of the control message, and room for its numbers; of u64, because it has to be aligned.
    let mut control = [0_u64; 2 + MOST_DESCRIPTORS / 2];
    let mut part = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    // SAFETY: for this structure of numbers and pointers all zeros are a value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    // SAFETY: every pointer in the message is to memory of the length given beside it, which lives until the end of the function.
    let count = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the kernel has filled the message in.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR give a header inside of `control`, or null.
    while let Some(found) = unsafe { header.as_ref() } {
        if found.cmsg_level == libc::SOL_SOCKET && found.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: CMSG_LEN only counts.
            let bytes = found.cmsg_len.saturating_sub(unsafe { libc::CMSG_LEN(0) } as usize);
            // SAFETY: found is a header inside of `control`.
            let numbers = unsafe { libc::CMSG_DATA(header) }.cast::<RawFd>();
            for index in 0..bytes / std::mem::size_of::<RawFd>() {
                // SAFETY: so many numbers follow the header; they may be unaligned.
                let descriptor = unsafe { numbers.add(index).read_unaligned() };
                // SAFETY: the kernel has made it for this process a moment ago, so nobody else owns it.
                descriptors.push_back(unsafe { OwnedFd::from_raw_fd(descriptor) });
            }
        }
        // SAFETY: both are what the kernel filled in.
        header = unsafe { libc::CMSG_NXTHDR(&raw const message, header) };
    }
    if message.msg_flags & libc::MSG_CTRUNC != 0 {
        return Err(io::Error::other("there is no room for more descriptors in this process"));
    }
    Ok(count)
}

/// Elsewhere nobody sends any: there are no templates.
#[cfg(not(target_os = "linux"))]
pub fn receive_with_descriptors(
    _socket: BorrowedFd<'_>,
    _into: &mut [u8],
    _descriptors: &mut VecDeque<OwnedFd>,
) -> io::Result<usize> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Puts a copy of the descriptor where `number` is, whatever was open there. Above 2 it is closed on exec.
///
/// What owned the number owns the new one.
pub fn put_in_place(descriptor: BorrowedFd<'_>, number: RawFd) -> io::Result<()> {
    if descriptor.as_raw_fd() == number {
        return Ok(());
    }
    // SAFETY: dup2 takes two integers; by the caller's word nobody relies on what was open there.
    check(unsafe { libc::dup2(descriptor.as_raw_fd(), number) })?;
    if number > 2 {
        // SAFETY: F_SETFD takes an int and touches no memory.
        check(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    }
    Ok(())
}

/// Opens the null device where the parent has no standard stream, as Rust's runtime does it in a worker that is started: else
/// the number would go to what is opened next.
pub fn put_null_in_place(number: RawFd) -> io::Result<()> {
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    put_in_place(null.as_fd(), number)
}

/// Changes the working directory to the one that is open as `directory`.
pub fn change_directory(directory: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: fchdir takes an integer.
    check(unsafe { libc::fchdir(directory.as_raw_fd()) }).map(drop)
}

/// How long a receive waits for its first byte before it fails with `WouldBlock`; `None`: for ever.
pub fn set_receive_timeout(socket: BorrowedFd<'_>, timeout: Option<Duration>) -> io::Result<()> {
    let mut value = libc::timeval { tv_sec: 0, tv_usec: 0 };
    if let Some(timeout) = timeout {
        // Beyond what a time_t holds the kernel waits for ever, which is what was meant.
        value.tv_sec = libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX);
        value.tv_usec = timeout.subsec_micros().into();
        // To the system zero is «for ever» (socket(7)), to the caller it is «do not wait».
        if value.tv_sec == 0 && value.tv_usec == 0 {
            value.tv_usec = 1;
        }
    }
    let size = libc::socklen_t::try_from(size_of_val(&value)).unwrap_or(0);
    // SAFETY: SO_RCVTIMEO reads one `timeval`, whose address and size these are.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVTIMEO, (&raw const value).cast(), size) })
        .map(drop)
}

/// Memory of this process's own, straight from the system.
#[derive(Debug)]
pub struct Mapping {
    address: NonNull<MaybeUninit<u8>>,
    length: usize,
    /// What has been taken of the address space.
    whole: usize,
}

// SAFETY: nobody else has the memory, and it belongs to no thread.
unsafe impl Send for Mapping {}
// SAFETY: it is reached through `&mut` only.
unsafe impl Sync for Mapping {}

/// The size of a huge page on the processors that there are wheels for. Another one costs speed and nothing else.
const HUGE_PAGE: usize = 2 << 20;

impl Mapping {
    /// New memory, asked for in huge pages. `None`: there is not so much.
    pub fn new(length: usize) -> Option<Self> {
        // Linux puts a mapping where its huge pages can begin if its length is a multiple of theirs (mm/huge_memory.c,
        // thp_get_unmapped_area). For small ones what that takes at the end would count.
        let unit = if length >= 8 * HUGE_PAGE { HUGE_PAGE } else { usize::try_from(page_size()).ok()? };
        let whole = length.max(1).checked_next_multiple_of(unit)?;
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a null pointer leaves the place to the system, which takes none that is in use.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), whole, protection, flags, -1, 0) };
        if address == libc::MAP_FAILED {
            return None;
        }
        let mapping = Self { address: NonNull::new(address.cast())?, length, whole };
        // SAFETY: `whole` bytes were mapped at the address, and nobody else knows it.
        advise_huge_pages(unsafe { std::slice::from_raw_parts_mut(mapping.address.as_ptr(), mapping.whole) });
        Some(mapping)
    }

    pub fn length(&self) -> usize {
        self.length
    }

    pub fn memory(&mut self) -> &mut [MaybeUninit<u8>] {
        // SAFETY: `length` bytes are mapped at the address until this is dropped, and this is the only way to them.
        unsafe { std::slice::from_raw_parts_mut(self.address.as_ptr(), self.length) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the address and the length are those that were mapped, and this is the last that knows them.
        unsafe { libc::munmap(self.address.as_ptr().cast(), self.whole) };
    }
}

/// A way for large memory into a socket: the kernel takes the pages themselves, where a write would copy them, and only the
/// receiver copies (vmsplice(2), splice(2)). So nothing may be written to the memory before the receiver has read it.
///
/// A socket takes pages from a pipe only, so there has to be one in between. It is made for one large segment and closed after it:
/// that costs nothing beside the segment, and no descriptor of ours is open while a job runs.
#[cfg(target_os = "linux")]
#[derive(Debug)]
pub struct Splice {
    read: OwnedFd,
    write: OwnedFd,
    /// What is in the pipe.
    inside: usize,
}

/// How much a pipe is to hold, in bytes: the most that a program may ask for without privileges.
#[cfg(target_os = "linux")]
const PIPE: libc::c_int = 1 << 20;

#[cfg(target_os = "linux")]
impl Splice {
    pub fn new() -> io::Result<Self> {
        let mut ends = [-1; 2];
        // SAFETY: pipe2 writes two descriptors to the array.
        check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) })?;
        // SAFETY: the system has just made both for this process, so nobody else owns them.
        let [read, write] = ends.map(|end| unsafe { OwnedFd::from_raw_fd(end) });
        // Fewer system calls; where too much is in use by this user (pipe(7)), it is right without.
        // SAFETY: F_SETPIPE_SZ takes an int and touches no memory.
        unsafe { libc::fcntl(write.as_raw_fd(), libc::F_SETPIPE_SZ, PIPE) };
        Ok(Self { read, write, inside: 0 })
    }

    /// Sends the front of `bytes`; how much of it. To be called again with the rest, as any error comes before anything of it has
    /// been sent by that call.
    pub fn send(&mut self, socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
        if self.inside == 0 {
            let part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
            // SAFETY: one vector that describes the slice, whose memory is only read. The pipe is empty, so this does not wait; it
            // keeps the pages, not the addresses.
            let count = unsafe { libc::vmsplice(self.write.as_raw_fd(), &raw const part, 1, 0) };
            self.inside = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        }
        let flags = libc::SPLICE_F_MORE;
        // SAFETY: two descriptors and null pointers in the place of offsets, which neither of them has.
        let count = unsafe {
            libc::splice(
                self.read.as_raw_fd(),
                std::ptr::null_mut(),
                socket.as_raw_fd(),
                std::ptr::null_mut(),
                self.inside,
                flags,
            )
        };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        self.inside = self.inside.saturating_sub(count);
        Ok(count)
    }
}

/// The most bytes that a socket holds which its other end has not read; `None` if the system does not tell.
pub fn send_buffer_size(socket: BorrowedFd<'_>) -> Option<usize> {
    let mut value: libc::c_int = 0;
    let mut size = libc::socklen_t::try_from(size_of_val(&value)).ok()?;
    // SAFETY: SO_SNDBUF writes one int, whose address and size these are.
    let status = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_SNDBUF, (&raw mut value).cast(), &raw mut size)
    };
    check(status).ok()?;
    usize::try_from(value).ok()
}

/// Waits until there is something to read, an end too; false: there was not for so long, or a signal came.
pub fn wait_readable(socket: BorrowedFd<'_>, timeout: Duration) -> bool {
    let mut entry = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let milliseconds = libc::c_int::try_from(timeout.as_millis()).unwrap_or(libc::c_int::MAX);
    // SAFETY: the pointer is to one live structure, as the count says.
    unsafe { libc::poll(&raw mut entry, 1, milliseconds) > 0 }
}

/// As [`wait_readable`] without a bound unless one is given, for a process with signal handlers: those that are due when this is
/// called have been run by `run_handlers`, and a signal that comes later interrupts the wait, however close it comes before it.
pub fn wait_readable_or_signal(socket: BorrowedFd<'_>, timeout: Option<Duration>, run_handlers: fn()) -> io::Result<bool> {
    run_handlers();
    let held = SignalsHeld::all()?;
    // For what has come between the two lines above; nearly always there is nothing.
    run_handlers();
    let mut entry = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    #[cfg(target_os = "linux")]
    let ready = {
        let limit = timeout.map(|timeout| libc::timespec {
            tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let limit = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: the pointers are to live structures, as the count says, or null; the mask is one that the system gave.
        check(unsafe { libc::ppoll(&raw mut entry, 1, limit, &raw const held.before) })
    };
    #[cfg(not(target_os = "linux"))]
    let ready = {
        // There is no such call everywhere; so signals are looked for ten times a second.
        drop(held);
        let limit = timeout.map_or(100, |timeout| libc::c_int::try_from(timeout.as_millis()).unwrap_or(100).min(100));
        // SAFETY: the pointer is to one live structure, as the count says.
        match check(unsafe { libc::poll(&raw mut entry, 1, limit) }) {
            Ok(0) => Err(io::ErrorKind::Interrupted.into()),
            ready => ready,
        }
    };
    Ok(ready? > 0)
}

/// The mask of the calling thread's signals.
#[derive(Clone, Copy)]
pub struct SignalMask(libc::sigset_t);

impl std::fmt::Debug for SignalMask {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("SignalMask")
    }
}

impl SignalMask {
    pub fn now() -> Option<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: a null pointer changes nothing; the present mask is written to the place given.
        let status = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), set.as_mut_ptr()) };
        // SAFETY: the call has succeeded.
        (status == 0).then(|| Self(unsafe { set.assume_init() }))
    }

    pub fn restore(&self) {
        // SAFETY: a set that the system gave; a null pointer asks for no copy of the present one.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, std::ptr::null_mut()) };
    }
}

/// A signal's handler as the system has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disposition {
    handler: libc::sighandler_t,
    flags: libc::c_int,
}

/// What a signal does to this process; `None`: the system does not tell.
fn disposition_of(signal: libc::c_int) -> Option<Disposition> {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: a null pointer changes nothing; the present action is written to the place given.
    if unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: the call has succeeded.
    let action = unsafe { action.assume_init() };
    Some(Disposition { handler: action.sa_sigaction, flags: action.sa_flags })
}

/// What Ctrl+C does to this process.
pub fn interrupt_disposition() -> Option<Disposition> {
    disposition_of(libc::SIGINT)
}

/// What a fault does to this process, and [`STACKS`].
pub fn fault_dispositions() -> [Option<Disposition>; 6] {
    [libc::SIGSEGV, libc::SIGFPE, libc::SIGABRT, libc::SIGBUS, libc::SIGILL, STACKS].map(disposition_of)
}

/// Which of the interval timers (getitimer(2)) run: real (that of `alarm` too), virtual, of profilers.
pub fn running_timers() -> [bool; 3] {
    TIMERS.map(|timer| {
        let mut value = MaybeUninit::<libc::itimerval>::zeroed();
        // SAFETY: the call writes one structure to the place given.
        unsafe { libc::getitimer(timer as _, value.as_mut_ptr()) };
        // SAFETY: for this structure of numbers all zeros are a value too.
        let left = unsafe { value.assume_init() }.it_value;
        left.tv_sec != 0 || left.tv_usec != 0
    })
}

/// Stops the timers that are told.
pub fn stop_timers(which: [bool; 3]) {
    for (timer, _) in TIMERS.into_iter().zip(which).filter(|(_, stop)| *stop) {
        let none = libc::timeval { tv_sec: 0, tv_usec: 0 };
        let none = libc::itimerval { it_interval: none, it_value: none };
        // SAFETY: the pointer is to a live structure; a null pointer asks for no copy of the present one.
        unsafe { libc::setitimer(timer as _, &raw const none, std::ptr::null_mut()) };
    }
}

const TIMERS: [libc::c_int; 3] = [libc::ITIMER_REAL, libc::ITIMER_VIRTUAL, libc::ITIMER_PROF];

/// Asks for huge pages behind a large piece of memory that is about to be written for the first time: a page fault for
/// every 4 KiB costs more than the copying itself.
pub fn advise_huge_pages(memory: &mut [MaybeUninit<u8>]) {
    #[cfg(target_os = "linux")]
    {
        let page = usize::try_from(page_size()).unwrap_or(4096).max(1);
        let skipped = memory.as_mut_ptr().align_offset(page);
        let length = memory.len().saturating_sub(skipped) / page * page;
        if let Some(interior) = memory.get_mut(skipped..).filter(|_| length > 0) {
            // SAFETY: the pages lie wholly inside the slice, and MADV_HUGEPAGE changes nothing that is in them.
            unsafe { libc::madvise(interior.as_mut_ptr().cast(), length, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}

/// The file of the loaded library that defines a symbol.
pub fn library_that_defines(symbol: &CStr) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStrExt as _;

    // Not the function's own address: where the executable is not position independent, that may be a stub of its own.
    // SAFETY: dlsym reads a C string; RTLD_DEFAULT asks for the first library in the order of loading.
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
    // SAFETY: a C string that belongs to the loader and stays as long as the library does; libpython is never unloaded.
    let name = unsafe { CStr::from_ptr(name) };
    let path = PathBuf::from(std::ffi::OsStr::from_bytes(name.to_bytes()));
    Some(std::fs::canonicalize(&path).unwrap_or(path))
}

fn check(status: libc::c_int) -> io::Result<libc::c_int> {
    if status == -1 { Err(io::Error::last_os_error()) } else { Ok(status) }
}

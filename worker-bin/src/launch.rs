//! Command line, environment and descriptors → a process that is ready for its parent.
//!
//! The order matters. The environment changes while the process has one thread. Descriptors are
//! sorted out before Python or user code opens one. Ctrl+C has its handler before Python would
//! install its own.

#![forbid(unsafe_code)]

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};

use crate::error::LaunchError;
use crate::os;
use crate::os::signals::SignalsHeld;
use crate::process::family;
use crate::process::record::{self, Record};
use crate::protocol::hello::Hello;
use crate::protocol::message::Explanation;
use crate::sentinel::activity::ActivityCell;
use crate::sentinel::control::{SentinelTarget, StandbyThread};
use crate::sentinel::guard::Guard;
use crate::sentinel::parent::Parent;
use crate::transport::connection::Connection;
use crate::transport::line::Line;
use crate::transport::reports::ReportSender;
use crate::transport::socket::Socket;
use crate::transport::writer::LineWriter;

/// The command to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    Serve {
        socket: RawFd,
        record: RawFd,
    },
    ShowInfo,
    ShowVersion,
    /// No arguments: explain what this program is.
    Explain,
    Wrong,
}

impl Plan {
    pub fn from_arguments(arguments: impl IntoIterator<Item = OsString>) -> Self {
        let arguments: Vec<OsString> = arguments.into_iter().collect();
        let words: Vec<&str> = arguments.iter().map(|argument| argument.to_str().unwrap_or_default()).collect();
        match words.as_slice() {
            [] => Self::Explain,
            ["--info"] => Self::ShowInfo,
            ["--version"] => Self::ShowVersion,
            // The rest names the program that owns this worker, for `ps`.
            ["serve", "3", "4", ..] => Self::Serve { socket: 3, record: 4 },
            _ => Self::Wrong,
        }
    }
}

/// Process state needed between startup and HELLO.
#[derive(Debug)]
pub struct ProcessSetup {
    descriptor: RawFd,
    reports: ReportSender,
    record: &'static Record,
    /// `None` once the line has it.
    line_writer: Option<LineWriter>,
    /// `None` means that Ctrl+C is swallowed already.
    interrupt_held: Option<SignalsHeld>,
}

/// Take the socket and the record, close all other inherited descriptors, and set up the signals.
pub fn prepare(socket: RawFd, record: RawFd) -> Result<(Connection<Socket>, ProcessSetup), LaunchError> {
    if !os::descriptors::is_socket(socket) {
        return Err(LaunchError::NoSocket(socket));
    }
    let system = |what| move |source| LaunchError::System { what, source };
    let interrupt_held = SignalsHeld::interrupt().map_err(system("blocking SIGINT"))?;
    let socket: OwnedFd = os::descriptors::adopt(socket).map_err(system("taking the socket"))?;
    let record: OwnedFd = os::descriptors::adopt(record).map_err(|_| LaunchError::NoRecord(record))?;
    os::descriptors::close_from(record.as_raw_fd() + 1);
    family::begin();
    os::signals::ignore_file_size_signal();
    os::signals::restore_fault_signals();
    os::copies::drop_in_children(socket.as_fd(), record.as_fd()).map_err(system("watching for forks"))?;
    Ok(wrap_socket(socket, record, Some(interrupt_held)))
}

/// Make a freshly forked process ready for its parent. The socket and the record that came with
/// FORK replace the template's. Signal handlers and fork handlers are inherited; the rest comes
/// with HELLO.
///
/// The parent process is taken from the template: it may have died before the fork.
pub fn take_over(descriptors: Vec<OwnedFd>, parent: &Parent) -> Result<(Connection<Socket>, ProcessSetup), LaunchError> {
    const SOCKET: RawFd = 3;
    const RECORD: RawFd = 4;
    let system = |what| move |source| LaunchError::System { what, source };
    let mut descriptors = descriptors.into_iter();
    let mut next = || descriptors.next().ok_or(LaunchError::NoSocket(SOCKET));
    os::descriptors::put_in_place(next()?.as_fd(), SOCKET).map_err(system("taking the socket"))?;
    os::descriptors::put_in_place(next()?.as_fd(), RECORD).map_err(system("taking the record"))?;
    let socket: OwnedFd = os::descriptors::adopt(SOCKET).map_err(system("taking the socket"))?;
    let record: OwnedFd = os::descriptors::adopt(RECORD).map_err(|_| LaunchError::NoRecord(RECORD))?;
    let (mut connection, process_setup) = wrap_socket(socket, record, None);
    connection.expect_descriptors(Some(parent.pid()));
    Ok((connection, process_setup))
}

/// Install the standard streams and the working directory that came with HELLO in a forked worker.
pub fn install_streams(hello: &Hello, descriptors: Vec<OwnedFd>) -> Result<(), LaunchError> {
    let system = |what| move |source| LaunchError::System { what, source };
    let mut descriptors = descriptors.into_iter();
    for stream in 0..3 {
        let number = RawFd::try_from(stream).unwrap_or_default();
        let comes = hello.streams.as_ref().is_some_and(|streams| streams.contains(&stream));
        match comes.then(|| descriptors.next()).flatten() {
            Some(descriptor) => {
                os::descriptors::put_in_place(descriptor.as_fd(), number).map_err(system("taking a standard stream"))?
            }
            None => os::descriptors::put_null_in_place(number).map_err(system("replacing a standard stream that is closed"))?,
        }
    }
    if let Some(directory) = descriptors.next() {
        os::descriptors::change_directory(directory.as_fd()).map_err(system("changing to the parent's directory"))?;
    }
    Ok(())
}

fn wrap_socket(socket: OwnedFd, record: OwnedFd, interrupt_held: Option<SignalsHeld>) -> (Connection<Socket>, ProcessSetup) {
    let descriptor = socket.as_raw_fd();
    let record: &'static Record = Box::leak(Box::new(Record::new(record)));
    record::report_panics(record);
    let reports = ReportSender::new(socket.as_fd());
    let socket = Socket::from(socket);
    let line_writer = Some(socket.line_writer(&reports));
    let connection = Connection::with_reports(socket, &reports);
    (connection, ProcessSetup { descriptor, reports, record, line_writer, interrupt_held })
}

impl ProcessSetup {
    /// Connect the line of jobs.
    pub fn connect<B>(&mut self, line: &Line<Socket, B>) {
        if let Some(writer) = self.line_writer.take() {
            line.connect(writer, self.record.descriptor());
        }
    }

    /// Apply the process part of HELLO: restore the environment, find the parent, start the native
    /// thread.
    pub fn apply_hello(self, hello: &Hello, activity: &'static ActivityCell) -> Result<&'static Parent, Explanation> {
        restore_environment(hello).map_err(|error| Explanation::new("environment", error.to_string()))?;
        self.watch(hello, activity)
    }

    fn watch(self, hello: &Hello, activity: &'static ActivityCell) -> Result<&'static Parent, Explanation> {
        let interrupt_held = self.interrupt_held;
        let (parent, watch) = Self { interrupt_held: None, ..self }.prepare_watch(hello, None, activity)?;
        watch.begin();
        swallow_interrupts(interrupt_held)?;
        Ok(parent)
    }

    /// Find the parent, and have a native thread ready to watch it. A preforked worker brings one;
    /// otherwise it is started now.
    pub fn prepare_watch(
        self,
        hello: &Hello,
        standby: Option<StandbyThread>,
        activity: &'static ActivityCell,
    ) -> Result<(&'static Parent, Watch), Explanation> {
        let parent = find_parent(hello)?;
        let standby = standby.map_or_else(|| self.start_standby(activity), Ok).map_err(|error| no_thread(&error))?;
        let target = SentinelTarget { socket: self.descriptor, reports: self.reports, parent, record: self.record };
        Ok((parent, Watch { standby, target }))
    }

    /// Start the native thread, before it is known what it watches.
    pub fn start_standby(&self, activity: &'static ActivityCell) -> io::Result<StandbyThread> {
        StandbyThread::start(activity, self.descriptor, self.record.descriptor())
    }

    /// Apply HELLO in a template. The guard must be dismissed before a fork.
    pub fn apply_hello_for_template(self, hello: &Hello) -> Result<(&'static Parent, Guard), Explanation> {
        restore_environment(hello).map_err(|error| Explanation::new("environment", error.to_string()))?;
        let parent = find_parent(hello)?;
        let guard = Guard::start(self.descriptor, parent).map_err(|error| no_thread(&error))?;
        swallow_interrupts(self.interrupt_held)?;
        Ok((parent, guard))
    }

    /// Descriptor to which Python writes the stacks when it dies.
    pub fn record(&self) -> RawFd {
        self.record.descriptor()
    }
}

/// A watch that has not begun.
#[derive(Debug)]
pub struct Watch {
    standby: StandbyThread,
    target: SentinelTarget,
}

impl Watch {
    /// Begin to watch.
    pub fn begin(self) {
        self.standby.watch(self.target);
    }
}

fn no_thread(error: &io::Error) -> Explanation {
    let remedy = match error.raw_os_error() {
        Some(libc::EAGAIN) => {
            ". This user, or this container, has as many processes and threads as it may have (ulimit -u; pids.max)"
        }
        _ => "",
    };
    Explanation::new("environment", format!("the thread that watches the parent could not be started: {error}{remedy}"))
}

fn find_parent(hello: &Hello) -> Result<&'static Parent, Explanation> {
    let parent = u32::try_from(hello.parent_pid).ok().and_then(Parent::watch);
    // If the parent has died, the worker just exits.
    let parent = parent.ok_or_else(|| {
        Explanation::new("wrong_parent", format!("the process {} that asked for this worker has ended", hello.parent_pid))
    })?;
    Ok(Box::leak(Box::new(parent)))
}

/// Ctrl+C belongs to the parent, which cancels its jobs. A handler swallows it: an ignored signal
/// would stay ignored in the programs that a job starts (execve(2)), while a handler is reset for
/// them.
fn swallow_interrupts(interrupt_held: Option<SignalsHeld>) -> Result<(), Explanation> {
    os::signals::swallow_interrupt();
    drop(interrupt_held);
    SignalsHeld::let_interrupt_through()
        .map_err(|error| Explanation::new("environment", format!("unblocking SIGINT failed: {error}")))
}

fn restore_environment(hello: &Hello) -> Result<(), LaunchError> {
    for (name, value) in &hello.environment {
        let shown = || String::from_utf8_lossy(name).into_owned();
        let variable = CString::new(name.as_slice()).map_err(|_| LaunchError::Variable(shown()))?;
        let value = value.as_deref().map(CString::new).transpose().map_err(|_| LaunchError::Variable(shown()))?;
        os::process::set_environment(&variable, value.as_deref()).map_err(|_| LaunchError::Variable(shown()))?;
    }
    Ok(())
}

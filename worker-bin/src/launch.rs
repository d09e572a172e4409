//! Command line, environment and descriptors → a process that is ready for its parent.
//!
//! The order matters: the environment is put right while the process has one thread, the descriptors before Python or the
//! user could open one, and Ctrl+C has its handler before Python would install its own.

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
use crate::sentinel::activity::Activity;
use crate::sentinel::guard::Guard;
use crate::sentinel::parent::Parent;
use crate::sentinel::post::{Charge, Standby};
use crate::transport::connection::Connection;
use crate::transport::reports::Outlet;
use crate::transport::socket::Socket;

/// What the command line asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    Serve {
        socket: RawFd,
        record: RawFd,
    },
    ShowInfo,
    ShowVersion,
    /// No arguments: say what this program is.
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
            // What follows tells people whose worker this is.
            ["serve", "3", "4", ..] => Self::Serve { socket: 3, record: 4 },
            _ => Self::Wrong,
        }
    }
}

/// The process around the socket, before the parent has said anything.
#[derive(Debug)]
pub struct Surroundings {
    descriptor: RawFd,
    outlet: Outlet,
    record: &'static Record,
    /// `None`: Ctrl+C is swallowed already.
    interrupt_held: Option<SignalsHeld>,
}

/// Takes the socket and the record, closes what else was inherited, and arranges the signals.
pub fn prepare(socket: RawFd, record: RawFd) -> Result<(Connection<Socket>, Surroundings), LaunchError> {
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
    Ok(surround(socket, record, Some(interrupt_held)))
}

/// Makes a process that a template has just forked ready for its parent: it gets the socket and the record that came with the request
/// in place of the template's. Signals, and what is closed in children, are arranged already; the rest comes with HELLO.
///
/// Whose child this process is now does not tell its parent: that may have ended before the template forked.
pub fn take_over(descriptors: Vec<OwnedFd>, parent: &Parent) -> Result<(Connection<Socket>, Surroundings), LaunchError> {
    const SOCKET: RawFd = 3;
    const RECORD: RawFd = 4;
    let system = |what| move |source| LaunchError::System { what, source };
    let mut descriptors = descriptors.into_iter();
    let mut next = || descriptors.next().ok_or(LaunchError::NoSocket(SOCKET));
    os::descriptors::put_in_place(next()?.as_fd(), SOCKET).map_err(system("taking the socket"))?;
    os::descriptors::put_in_place(next()?.as_fd(), RECORD).map_err(system("taking the record"))?;
    let socket: OwnedFd = os::descriptors::adopt(SOCKET).map_err(system("taking the socket"))?;
    let record: OwnedFd = os::descriptors::adopt(RECORD).map_err(|_| LaunchError::NoRecord(RECORD))?;
    let (mut connection, surroundings) = surround(socket, record, None);
    connection.expect_descriptors(Some(parent.pid()));
    Ok((connection, surroundings))
}

/// Gives a forked worker the standard streams and the working directory that have come with its HELLO, in place of the template's.
pub fn settle_in(hello: &Hello, descriptors: Vec<OwnedFd>) -> Result<(), LaunchError> {
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

fn surround(socket: OwnedFd, record: OwnedFd, interrupt_held: Option<SignalsHeld>) -> (Connection<Socket>, Surroundings) {
    let descriptor = socket.as_raw_fd();
    let record: &'static Record = Box::leak(Box::new(Record::new(record)));
    record::report_panics(record);
    let outlet = Outlet::new(socket.as_fd());
    let connection = Connection::with_outlet(Socket::from(socket), &outlet);
    (connection, Surroundings { descriptor, outlet, record, interrupt_held })
}

impl Surroundings {
    /// Does what HELLO says about the process: gives the environment back, finds the parent, starts the native threads.
    pub fn settle(self, hello: &Hello, activity: &'static Activity) -> Result<&'static Parent, Explanation> {
        restore_environment(hello).map_err(|error| Explanation::new("environment", error.to_string()))?;
        self.watch(hello, activity)
    }

    fn watch(self, hello: &Hello, activity: &'static Activity) -> Result<&'static Parent, Explanation> {
        let interrupt_held = self.interrupt_held;
        let (parent, watch) = Self { interrupt_held: None, ..self }.meet(hello, None, activity)?;
        watch.begin();
        swallow_interrupts(interrupt_held)?;
        Ok(parent)
    }

    /// The same for a worker that was forked: its Python is running, and gets the environment itself. The native thread can wait
    /// until there is something to watch, but it is there: one that stands by, or one that is started now.
    pub fn meet(
        self,
        hello: &Hello,
        standby: Option<Standby>,
        activity: &'static Activity,
    ) -> Result<(&'static Parent, Watch), Explanation> {
        let parent = find_parent(hello)?;
        let standby = standby.map_or_else(|| Standby::start(activity), Ok).map_err(|error| no_thread(&error))?;
        let charge = Charge { socket: self.descriptor, outlet: self.outlet, parent, record: self.record };
        Ok((parent, Watch { standby, charge }))
    }

    /// The same for a template, which must not have a thread when it forks: the guard is to be dismissed before.
    pub fn settle_template(self, hello: &Hello) -> Result<(&'static Parent, Guard), Explanation> {
        restore_environment(hello).map_err(|error| Explanation::new("environment", error.to_string()))?;
        let parent = find_parent(hello)?;
        let guard = Guard::start(self.descriptor, parent).map_err(|error| no_thread(&error))?;
        swallow_interrupts(self.interrupt_held)?;
        Ok((parent, guard))
    }

    /// Where Python is to write the stacks when it dies.
    pub fn record(&self) -> RawFd {
        self.record.descriptor()
    }
}

/// What the native thread is to watch.
#[derive(Debug)]
pub struct Watch {
    standby: Standby,
    charge: Charge,
}

impl Watch {
    /// From now on it is watched.
    pub fn begin(self) {
        self.standby.watch(self.charge);
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
    // Nobody may be left to read this; then the worker just ends.
    let parent = parent.ok_or_else(|| {
        Explanation::new("wrong_parent", format!("the process {} that asked for this worker has ended", hello.parent_pid))
    })?;
    Ok(Box::leak(Box::new(parent)))
}

/// Ctrl+C belongs to the parent, which cancels its jobs as Trio has it. It is swallowed by a handler and not ignored:
/// an ignored signal stays ignored in the programs that a job starts (execve(2)), a handled one is reset for them.
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

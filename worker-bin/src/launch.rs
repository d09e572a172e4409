//! Command line, environment and descriptors → a process that is ready for its parent.
//!
//! The order matters: the environment is put right while the process has one thread, the descriptors before Python or the
//! user could open one, and Ctrl+C has its handler before Python would install its own.

#![forbid(unsafe_code)]

use std::ffi::{CString, OsString};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};

use crate::error::LaunchError;
use crate::message::{Explanation, Hello};
use crate::os::{self, SignalsHeld};
use crate::sentinel::{self, Activity, Parent};
use crate::transport::Socket;

/// What the command line asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    Serve {
        socket: RawFd,
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
        let words: Option<Vec<&str>> = arguments.iter().map(|argument| argument.to_str()).collect();
        match words.as_deref() {
            Some([]) => Self::Explain,
            Some(["--info"]) => Self::ShowInfo,
            Some(["--version"]) => Self::ShowVersion,
            Some(["serve", "3"]) => Self::Serve { socket: 3 },
            _ => Self::Wrong,
        }
    }
}

/// The socket and the process around it, before the parent has said anything.
#[derive(Debug)]
pub struct Launched {
    pub socket: Socket,
    pub descriptor: RawFd,
    interrupt_held: SignalsHeld,
}

/// Takes the socket, closes what else was inherited, and arranges the signals.
pub fn prepare(descriptor: RawFd) -> Result<Launched, LaunchError> {
    if !os::is_socket(descriptor) {
        return Err(LaunchError::NoSocket(descriptor));
    }
    let interrupt_held = SignalsHeld::interrupt().map_err(|source| LaunchError::System { what: "blocking SIGINT", source })?;
    let socket: OwnedFd = os::adopt(descriptor).map_err(|source| LaunchError::System { what: "taking the socket", source })?;
    os::close_from(descriptor + 1);
    os::become_subreaper().map_err(|source| LaunchError::System { what: "becoming a subreaper", source })?;
    os::ignore_file_size_signal();
    os::restore_fault_signals();
    os::drop_socket_in_children(socket.as_fd()).map_err(|source| LaunchError::System { what: "watching for forks", source })?;
    let descriptor = socket.as_raw_fd();
    Ok(Launched { socket: Socket::from(socket), descriptor, interrupt_held })
}

/// The part of [`Launched`] that stays when the socket has gone into its connection.
#[derive(Debug)]
pub struct Surroundings {
    descriptor: RawFd,
    interrupt_held: SignalsHeld,
}

impl Launched {
    pub fn split(self) -> (Socket, Surroundings) {
        (self.socket, Surroundings { descriptor: self.descriptor, interrupt_held: self.interrupt_held })
    }
}

impl Surroundings {
    /// Does what HELLO says about the process: gives the environment back, finds the parent, starts the native threads.
    pub fn settle(self, hello: &Hello, activity: &'static Activity) -> Result<&'static Parent, Explanation> {
        restore_environment(hello).map_err(|error| Explanation::new("environment", error.to_string()))?;
        let parent = u32::try_from(hello.parent_pid).ok().and_then(Parent::watch);
        // Nobody may be left to read this; then the worker just ends.
        let parent = parent.ok_or_else(|| {
            Explanation::new("wrong_parent", format!("the process {} that asked for this worker has ended", hello.parent_pid))
        })?;
        let parent: &'static Parent = Box::leak(Box::new(parent));
        sentinel::start(self.descriptor, parent, activity).map_err(|error| {
            Explanation::new("environment", format!("the thread that watches the parent could not be started: {error}"))
        })?;
        self.swallow_interrupts().map_err(|text| Explanation::new("environment", text))?;
        Ok(parent)
    }

    /// Ctrl+C belongs to the parent, which cancels its jobs as Trio has it. It is swallowed by a handler and not ignored:
    /// an ignored signal stays ignored in the programs that a job starts (execve(2)), a handled one is reset for them.
    fn swallow_interrupts(self) -> Result<(), String> {
        {
            let _held = SignalsHeld::all().map_err(|error| format!("blocking signals failed: {error}"))?;
            ctrlc::set_handler(|| {}).map_err(|error| format!("the handler for SIGINT could not be installed: {error}"))?;
        }
        drop(self.interrupt_held);
        SignalsHeld::let_interrupt_through().map_err(|error| format!("unblocking SIGINT failed: {error}"))
    }
}

fn restore_environment(hello: &Hello) -> Result<(), LaunchError> {
    for (name, value) in &hello.environment {
        let shown = || String::from_utf8_lossy(name).into_owned();
        let variable = CString::new(name.as_slice()).map_err(|_| LaunchError::Variable(shown()))?;
        let value = value.as_deref().map(CString::new).transpose().map_err(|_| LaunchError::Variable(shown()))?;
        os::set_environment(&variable, value.as_deref()).map_err(|_| LaunchError::Variable(shown()))?;
    }
    Ok(())
}

//! Errors before and below the protocol. Each message includes the remedy, if any.

#![forbid(unsafe_code)]

use std::io;

use thiserror::Error;

use crate::protocol::frame::{Kind, WireError};

/// The worker could not start.
#[derive(Debug, Error)]
pub enum LaunchError {
    #[error("descriptor {0} is not the parent's socket. Only trio-offload starts this program")]
    NoSocket(i32),
    #[error("descriptor {0} is not open; the parent passes the file for crash records there")]
    NoRecord(i32),
    #[error("{what} failed: {source}")]
    System { what: &'static str, source: io::Error },
    #[error("the environment variable {0:?} could not be restored: an environment cannot hold its name or value")]
    Variable(String),
}

/// A frame could not be received.
#[derive(Debug, Error)]
pub enum ReceiveError {
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("there is not enough memory for an argument of {0} bytes. Send less at once, or pass a file's name")]
    OutOfMemory(u64),
    #[error("reading from the parent's socket failed: {0}")]
    System(#[from] io::Error),
    #[error("the worker got an unexpected {0:?} message while a job waited for an answer; this is an error in trio-offload")]
    Unexpected(Kind),
}

impl ReceiveError {
    /// The code for ABORTED.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Wire(error) => error.code(),
            Self::OutOfMemory(_) => "out_of_memory",
            Self::System(_) => "socket",
            Self::Unexpected(_) => "unexpected_message",
        }
    }
}

/// A frame could not be sent.
#[derive(Debug, Error)]
pub enum SendError {
    #[error("the parent has closed its end of the socket")]
    Closed,
    #[error("the message cannot be written as a frame: {0}")]
    Wire(#[from] WireError),
    #[error("writing to the parent's socket failed: {0}")]
    System(io::Error),
}

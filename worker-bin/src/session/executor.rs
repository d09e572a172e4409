//! The interface between the session and an interpreter.

#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;

use crate::os::fork::Side;
use crate::protocol::figures::Figures;
use crate::protocol::hello::{Hello, Welcome};
use crate::protocol::message::{Explanation, Failure, Setup, Template};
use crate::transport::{Allocator, Payload, Segment};

/// The operations that a session needs of an interpreter.
pub trait Executor: Allocator {
    type Payload: Payload;

    /// Become the parent's Python, or explain why not. Takes the descriptors that came with HELLO.
    /// `None` means a forked worker, which does not send WELCOME.
    fn start(&mut self, hello: &Hello, descriptors: Vec<OwnedFd>) -> Result<Option<Welcome>, Explanation>;
    /// Prepare for jobs: signals, fault handler, pickler.
    fn init_pickling(&mut self) -> Result<(), Explanation>;
    /// Start the native thread's watch, if it has not started. It precedes all user code.
    /// [`Self::start`] has made sure that the thread exists: a failure after READY would look like
    /// the answer to a call.
    fn watch(&mut self);
    /// Take the settings, and run `init`, if any.
    fn set_up(
        &mut self,
        setup: &Setup,
        segments: Vec<Segment<Self::Buffer>>,
        runs_user_code: bool,
    ) -> Result<(), Box<Raised<Self::Payload>>>;
    /// Replace the settings that came with SETUP.
    fn replace_settings(&mut self, eager: bool, segments: Vec<Segment<Self::Buffer>>);
    /// Unpickle, call, pickle. Every exception of user code becomes an answer.
    fn call(&mut self, segments: Vec<Segment<Self::Buffer>>) -> Answer<Self::Payload>;
    /// Drop the answer, which has been sent, and call `retire` after a job.
    fn after_answer(&mut self, answer: Option<Self::Payload>, was_job: bool) -> Verdict;
    /// Handle a signal that came while the worker was idle.
    fn interrupted(&mut self);
    /// The function that runs signal handlers in an idle worker. `None` means none.
    fn handlers(&self) -> Option<fn()> {
        None
    }
    /// Take the settings, and import the modules for the workers that this process forks.
    fn become_template(
        &mut self,
        template: &Template,
        segments: Vec<Segment<Self::Buffer>>,
    ) -> Result<(), Box<Raised<Self::Payload>>>;
    /// Fork a worker, which gets the descriptors. A failure is sent on the worker's own socket.
    fn fork(&mut self, descriptors: Vec<OwnedFd>) -> Side;
    /// Measure this process. The result may be `None` unless `at_once`: too soon after the last
    /// one.
    fn measure(&mut self, at_once: bool) -> Option<Figures>;
    /// True if memory is kept for the next call.
    fn keeps_memory(&self) -> bool;
    /// Release the kept memory: the next call is late, or did not use it.
    fn release_memory(&mut self);
}

#[derive(Debug)]
pub enum Answer<P> {
    Returned(P),
    Raised(Raised<P>),
}

#[derive(Debug)]
pub struct Raised<P> {
    pub failure: Failure,
    /// The pickled exception. `None` means that it could not be pickled.
    pub exception: Option<P>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Stay,
    Retire,
    /// `retire` itself raised; the text is its traceback.
    RetireRaised(String),
}

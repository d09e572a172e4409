//! What the session needs of an interpreter.

#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;

use crate::os::fork::Side;
use crate::protocol::figures::Figures;
use crate::protocol::hello::{Hello, Welcome};
use crate::protocol::message::{Explanation, Failure, Setup, Template};
use crate::transport::{Allocator, Payload, Segment};

/// What the session needs of an interpreter.
pub trait Executor: Allocator {
    type Payload: Payload;

    /// Becomes the parent's Python, or says why it cannot. Gets the descriptors that HELLO says have come with it. `None`: it is what
    /// its template was, and the parent knows that.
    fn start(&mut self, hello: &Hello, descriptors: Vec<OwnedFd>) -> Result<Option<Welcome>, Explanation>;
    /// Gets what it takes to run jobs, as far as the parent's Python does not bring it.
    fn equip(&mut self) -> Result<(), Explanation>;
    /// Has the native thread watch from now on, if it does not yet. Nothing that is the user's runs before. That there is one
    /// [`Self::start`] has seen to: behind READY it is too late to say that there is none, as the parent takes that for an answer to a call.
    fn watch(&mut self);
    /// Takes the settings and, if that is so, runs what the user has for a start: `init`, for example.
    fn set_up(
        &mut self,
        setup: &Setup,
        segments: Vec<Segment<'_, Self::Buffer>>,
        runs_user_code: bool,
    ) -> Result<(), Box<Raised<Self::Payload>>>;
    /// Takes other settings instead of those of SETUP.
    fn replace_settings(&mut self, eager: bool, segments: Vec<Segment<'_, Self::Buffer>>);
    /// Unpickles, calls, pickles. Nothing that the user's code does keeps it from giving an answer.
    fn call(&mut self, segments: Vec<Segment<'_, Self::Buffer>>) -> Answer<Self::Payload>;
    /// The answer has been sent: drops it, and asks the user's `retire` if it was a job's.
    fn settle(&mut self, answer: Option<Self::Payload>, was_job: bool) -> Settled;
    /// A signal came while the worker was idle.
    fn interrupted(&mut self);
    /// What runs signal handlers while the worker is idle; `None`: there can be none.
    fn handlers(&self) -> Option<fn()> {
        None
    }
    /// Takes the settings and imports what the workers that are forked off this process are to find imported.
    fn become_template(
        &mut self,
        template: &Template,
        segments: Vec<Segment<'_, Self::Buffer>>,
    ) -> Result<(), Box<Raised<Self::Payload>>>;
    /// Forks a worker, which gets the descriptors. Where that fails the worker's own socket says so.
    fn fork(&mut self, descriptors: Vec<OwnedFd>) -> Side;
    /// What the process holds. Unless it is to be told at once it may be `None`, because it was told a moment ago.
    fn measure(&mut self, at_once: bool) -> Option<Figures>;
    /// Whether memory is kept for the next call.
    fn keeps_memory(&self) -> bool;
    /// There is no next call yet, or it did not use it.
    fn give_memory_back(&mut self);
}

#[derive(Debug)]
pub enum Answer<P> {
    Returned(P),
    Raised(Raised<P>),
}

#[derive(Debug)]
pub struct Raised<P> {
    pub failure: Failure,
    /// The pickled exception; `None` if nothing could pickle it.
    pub exception: Option<P>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled {
    Stay,
    Retire,
    /// `retire` itself raised; the text says what.
    RetireRaised(String),
}

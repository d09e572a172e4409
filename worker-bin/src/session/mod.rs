//! The worker's state machine: the table «The worker's side» of PROTOCOL.md, over a stream and an executor that tests replace.
//!
//! Rules that the code below keeps:
//! * a frame that is not in the row of the state ends the worker before any memory is taken for its payload;
//! * everything that a job left behind is dropped before the next frame is waited for;
//! * after RETIRED nothing is read any more: the parent may take it that a call which crossed with it was not run, and the
//!   socket takes no more of it, so that a parent which is in the middle of a large one is not kept waiting for the exit;
//! * the idle time counts from the first call on. Before that it has a lower bound: a worker that left before the call for
//!   which it was started would be replaced by another one that does the same, and the call would never be run;
//! * a template's session has no other end in the worker that it forks than to be left: the worker begins one of its own;
//! * the native thread is told when user code runs, because a parent's death then leaves nobody who would notice.

#![forbid(unsafe_code)]

pub mod executor;
pub mod idle;

use std::time::Duration;

use crate::error::{ReceiveError, SendError};
use crate::exit::Ending;
use crate::os::fork::Side;
use crate::protocol::frame::Header;
use crate::protocol::hello::Hello;
use crate::protocol::message::{Explanation, FORK_DESCRIPTORS, Message, PROTOCOL_VERSION, Setup, Template};
use crate::protocol::segments::SegmentType;
use crate::sentinel::activity::{Activity, Doing, Duty};
use crate::session::executor::{Answer, Executor, Raised, Settled};
use crate::session::idle::IdleClock;
use crate::transport::buffer_pool;
use crate::transport::connection::{Connection, Next};
use crate::transport::{Payload, Stream};

/// Serves one parent until the end.
pub fn run<S: Stream, E: Executor>(connection: &mut Connection<S>, executor: &mut E, activity: &Activity) -> Ending {
    let ending = Session {
        connection,
        executor,
        activity,
        state: State::AwaitHello,
        parent: 0,
        idle: IdleClock::start(None),
        timeout_after_call: None,
        memory_limit: None,
    }
    .run();
    // A forked worker is at its beginning.
    activity.set(if ending == Ending::Forked { Doing::Waiting } else { Doing::Leaving });
    ending
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    AwaitHello,
    AwaitSetup,
    Idle,
    AwaitTemplate,
    Template,
}

struct Session<'a, S, E> {
    connection: &'a mut Connection<S>,
    executor: &'a mut E,
    activity: &'a Activity,
    state: State,
    /// The process that has said HELLO.
    parent: u32,
    idle: IdleClock,
    /// The idle time that counts once a call has been run, where another one counts before.
    timeout_after_call: Option<Duration>,
    /// A worker that holds more than this after a job takes no other: it would be ended for what it did not take.
    memory_limit: Option<u64>,
}

/// How long a worker waits at least for the call that it was started for.
const UNTIL_FIRST_CALL: Duration = Duration::from_secs(10);

/// Whether the session goes on.
type Step = Result<(), Ending>;

impl<S: Stream, E: Executor> Session<'_, S, E> {
    fn run(mut self) -> Ending {
        loop {
            if let Err(ending) = self.step() {
                return ending;
            }
        }
    }

    fn step(&mut self) -> Step {
        if self.executor.keeps_memory() && !self.connection.anything_within(buffer_pool::KEPT_FOR) {
            self.executor.give_memory_back();
        }
        self.connection.run_handlers_with(self.executor.handlers());
        let header = match self.connection.next_header() {
            Ok(Next::Header(header)) => header,
            Ok(Next::End) => return Err(Ending::ParentClosed),
            Ok(Next::Idle) => return self.retire("idle"),
            Ok(Next::Interrupted) => {
                self.executor.interrupted();
                return if self.idle.is_over() { self.retire("idle") } else { Ok(()) };
            }
            Err(error) => return self.abort_receiving(&error),
        };
        let message = match Message::from_header(&header) {
            Ok(message) => message,
            Err(error) => return self.abort_receiving(&error.into()),
        };
        match (self.state, message) {
            (State::AwaitHello, Message::Hello(hello)) => self.start(&hello),
            (State::AwaitSetup, Message::Setup(setup)) => self.set_up(&setup, &header),
            (State::Idle, Message::Call { types, prepares }) => self.call(&header, &types, prepares),
            (State::Idle, Message::Settings { eager }) => self.replace_settings(eager, &header),
            (State::AwaitTemplate, Message::Template(template)) => self.become_template(&template, &header),
            (State::Template, Message::Fork) => self.fork(),
            (State::AwaitSetup | State::Idle | State::AwaitTemplate | State::Template, Message::Retire) => self.retire("asked"),
            (state, message) => {
                let text = format!(
                    "a {:?} message came while the worker was in the state {state:?}, which does not expect one; this is an error in trio-offload",
                    message.kind(),
                );
                self.abort("unexpected_message", text)
            }
        }
    }

    fn start(&mut self, hello: &Hello) -> Step {
        if hello.protocol != PROTOCOL_VERSION {
            let text = format!(
                "the parent speaks version {} of the protocol and this worker version {PROTOCOL_VERSION}: install the same release of trio-offload on both sides",
                hello.protocol,
            );
            return self.refuse(Explanation::new("protocol_version", text));
        }
        let Some(descriptors) = self.connection.take_descriptors(hello.descriptors()) else {
            return self.miss_descriptors("a HELLO");
        };
        self.connection.expect_descriptors(None);
        self.parent = u32::try_from(hello.parent_pid).unwrap_or_default();
        self.activity.set(Doing::Busy);
        match self.executor.start(hello, descriptors) {
            Ok(welcome) => {
                // The parent may close its end as soon as it has heard WELCOME, and then the worker leaves in order.
                self.activity.set(Doing::Waiting);
                if let Some(welcome) = welcome {
                    let welcome = Message::Welcome(Box::new(welcome));
                    if hello.template {
                        // The parent has said TEMPLATE already, and is woken once if that is answered soon.
                        let held = self.connection.hold(welcome);
                        self.checked(held)?;
                    } else {
                        // The parent compares that, and says the first call, while the rest is done here.
                        self.say(welcome)?;
                    }
                }
                if let Err(explanation) = self.executor.equip() {
                    return self.refuse(explanation);
                }
                self.state = if hello.template { State::AwaitTemplate } else { State::AwaitSetup };
                Ok(())
            }
            Err(explanation) => self.refuse(explanation),
        }
    }

    fn set_up(&mut self, setup: &Setup, header: &Header) -> Step {
        // Behind the settings are `init` and `retire`, if there are any.
        let runs_user_code = setup.eager || header.lengths.iter().skip(1).any(|length| *length > 0);
        if runs_user_code {
            self.prepare_for_user_code()?;
        }
        let segments = match self.connection.receive_segments(&header.lengths, &[], self.executor) {
            Ok(segments) => segments,
            Err(error) => return self.abort_receiving(&error),
        };
        self.memory_limit = setup.memory_limit;
        self.activity.assign(Duty {
            report_interval: setup.report_interval_ms.map(Duration::from_millis),
            memory_limit: setup.memory_limit,
        });
        self.activity.set(Doing::Busy);
        let outcome = self.executor.set_up(setup, segments, runs_user_code);
        self.activity.set(Doing::Waiting);
        if let Err(raised) = outcome {
            let payload = raised.exception.as_ref().map(|payload| payload as &dyn Payload);
            self.sent(Message::SetupFailed(raised.failure), 0, payload)?;
            return Err(Ending::SetupFailed);
        }
        let figures = self.executor.measure(true);
        self.say(Message::Ready(figures))?;
        // The parent is busy with that now, and the call comes afterwards.
        self.executor.watch();
        self.state = State::Idle;
        let timeout = setup.idle_timeout_ms.map(Duration::from_millis);
        self.timeout_after_call = timeout.filter(|timeout| *timeout < UNTIL_FIRST_CALL);
        self.start_idle_time(timeout.map(|timeout| timeout.max(UNTIL_FIRST_CALL)))
    }

    fn become_template(&mut self, template: &Template, header: &Header) -> Step {
        self.prepare_for_user_code()?;
        let segments = match self.connection.receive_segments(&header.lengths, &[], self.executor) {
            Ok(segments) => segments,
            Err(error) => return self.abort_receiving(&error),
        };
        if let Err(raised) = self.executor.become_template(template, segments) {
            let payload = raised.exception.as_ref().map(|payload| payload as &dyn Payload);
            self.sent(Message::SetupFailed(raised.failure), 0, payload)?;
            return Err(Ending::SetupFailed);
        }
        // Before READY: the first request may come with the next byte.
        self.connection.expect_descriptors(Some(self.parent));
        let figures = self.executor.measure(true);
        self.say(Message::Ready(figures))?;
        self.state = State::Template;
        Ok(())
    }

    fn fork(&mut self) -> Step {
        let Some(descriptors) = self.connection.take_descriptors(FORK_DESCRIPTORS) else {
            return self.miss_descriptors("a request for a worker");
        };
        match self.executor.fork(descriptors) {
            Side::Template => Ok(()),
            Side::Worker => Err(Ending::Forked),
        }
    }

    fn miss_descriptors(&mut self, what: &str) -> Step {
        let text = format!("{what} came without the descriptors that belong to it; this is an error in trio-offload");
        self.abort("descriptors_missing", text)
    }

    /// What it runs may take its time, and may never come back.
    fn prepare_for_user_code(&mut self) -> Step {
        let sent = self.connection.send_held();
        self.checked(sent)?;
        self.executor.watch();
        Ok(())
    }

    fn start_idle_time(&mut self, timeout: Option<Duration>) -> Step {
        if let Err(error) = self.connection.set_receive_timeout(timeout) {
            return self.abort_receiving(&error);
        }
        self.idle = IdleClock::start(timeout);
        Ok(())
    }

    fn replace_settings(&mut self, eager: bool, header: &Header) -> Step {
        let segments = match self.connection.receive_segments(&header.lengths, &[], self.executor) {
            Ok(segments) => segments,
            Err(error) => return self.abort_receiving(&error),
        };
        self.executor.replace_settings(eager, segments);
        Ok(())
    }

    fn call(&mut self, header: &Header, types: &[SegmentType], prepares: bool) -> Step {
        let segments = match self.connection.receive_segments(&header.lengths, types, self.executor) {
            Ok(segments) => segments,
            Err(error) => return self.abort_receiving(&error),
        };
        self.executor.give_memory_back();
        self.activity.set(Doing::Busy);
        let answer = self.executor.call(segments);
        // Before the answer goes out: a parent that closes as soon as it has read it must find an idle worker, which
        // leaves in order, and not one that the native thread ends in the middle.
        self.activity.set(Doing::Waiting);
        // With a ceiling, what this job has left is to be known before the next one begins.
        let figures = self.executor.measure(self.memory_limit.is_some());
        let (message, payload) = match answer {
            Answer::Returned(payload) => (Message::Result(payload.types(), figures), Some(payload)),
            Answer::Raised(Raised { failure, exception }) => (Message::Raised(failure, figures), exception),
        };
        self.sent(message, header.id, payload.as_ref().map(|payload| payload as &dyn Payload))?;
        self.activity.set(Doing::Settling);
        let settled = self.executor.settle(payload, !prepares);
        self.activity.set(Doing::Waiting);
        if prepares {
            self.idle.restart();
            return Ok(());
        }
        let too_large = self.memory_limit.zip(figures).is_some_and(|(limit, figures)| figures.rss > limit);
        match settled {
            Settled::Stay if too_large => self.retire("memory"),
            Settled::Stay => match self.timeout_after_call.take() {
                Some(timeout) => self.start_idle_time(Some(timeout)),
                None => {
                    self.idle.restart();
                    Ok(())
                }
            },
            Settled::Retire => self.retire("retire"),
            Settled::RetireRaised(text) => self.abort("retire_raised", text),
        }
    }

    fn retire(&mut self, reason: &str) -> Step {
        self.activity.set(Doing::Leaving);
        self.say(Message::Retired { reason: reason.to_owned() })?;
        self.connection.stop_receiving();
        Err(Ending::Retired)
    }

    fn refuse(&mut self, explanation: Explanation) -> Step {
        self.say(Message::Refused(explanation))?;
        Err(Ending::Refused)
    }

    fn abort_receiving(&mut self, error: &ReceiveError) -> Step {
        self.abort(error.code(), error.to_string())
    }

    /// Tells the parent, if it still listens; the ending is the same if it does not.
    fn abort(&mut self, code: &str, message: String) -> Step {
        self.activity.set(Doing::Leaving);
        let _ = self.connection.send(Message::Aborted(Explanation::new(code, message)), 0, None);
        self.connection.stop_receiving();
        Err(Ending::Aborted)
    }

    fn say(&mut self, message: Message) -> Step {
        self.sent(message, 0, None)
    }

    fn sent(&mut self, message: Message, id: u64, payload: Option<&dyn Payload>) -> Step {
        let sent = self.connection.send(message, id, payload);
        self.checked(sent)
    }

    fn checked(&mut self, sent: Result<(), SendError>) -> Step {
        match sent {
            Ok(()) => Ok(()),
            Err(SendError::Closed) => Err(Ending::ParentClosed),
            Err(error @ (SendError::Wire(_) | SendError::System(_))) => self.abort("socket", error.to_string()),
        }
    }
}

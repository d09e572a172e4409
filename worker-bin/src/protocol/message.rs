//! Typed bodies of the messages. `frame.rs` reads and writes their bytes.

#![forbid(unsafe_code)]

use ciborium::Value;

use crate::protocol::fields::{Fields, body, list, text, unsigned, write_types};
use crate::protocol::figures::Figures;
use crate::protocol::frame::{Body, Header, Kind, WireError};
use crate::protocol::hello::{Hello, Welcome};
use crate::protocol::requests::{Credit, Reply, Said, read_request};
use crate::protocol::segments::SegmentType;

/// The version of the protocol.
pub const PROTOCOL_VERSION: u64 = 2;

/// Longest text in a message, in bytes. The header is bounded; an exception's message may be long.
pub const TEXT_LIMIT: usize = 1 << 20;

/// Descriptors that come with FORK: socket, record, and the pipe for the worker's process ID.
pub const FORK_DESCRIPTORS: usize = 3;

#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    Hello(Box<Hello>),
    Setup(Setup),
    /// `types` has the type of each segment, see [`SegmentType`].
    Call {
        types: Vec<SegmentType>,
        /// True for an internal call of the parent, as opposed to a job.
        prepares: bool,
    },
    Retire,
    /// The answer to a REQUEST.
    Reply(Box<Reply>),
    /// Replaces the settings of SETUP; `eager` as there.
    Settings {
        eager: bool,
    },
    /// Instead of SETUP: fork workers, do not run calls.
    Template(Template),
    /// Requests a worker. Descriptors come with it.
    Fork,
    /// Places that the parent has reserved for a sender.
    Credit(Credit),
    Welcome(Box<Welcome>),
    Refused(Explanation),
    /// The figures are from before the first job.
    Ready(Option<Figures>),
    SetupFailed(Failure),
    Result(Vec<SegmentType>, Option<Figures>),
    Raised(Failure, Option<Figures>),
    Retired {
        reason: String,
    },
    Aborted(Explanation),
    /// A job asks for something, and waits for a REPLY.
    Request(Box<Said>),
    /// The memory use of a running job.
    Report(Figures),
    /// A job says something that has no answer.
    Post(Box<Said>),
    /// A job takes a request back. The request's one REPLY answers it.
    Withdraw {
        request: u64,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Setup {
    /// Milliseconds without a call after which the worker retires. `None` means never.
    pub idle_timeout_ms: Option<u64>,
    /// True if some setting must be applied at once.
    pub eager: bool,
    /// Milliseconds between two reports of a running job. `None` means no reports.
    pub report_interval_ms: Option<u64>,
    /// The most memory that a job and its child processes may use, in bytes. `None` means no limit.
    pub memory_limit: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Template {
    /// True if some setting must be applied at once.
    pub eager: bool,
    /// The modules to import before the first fork.
    pub modules: Vec<String>,
    /// Names of native threads that may run during a fork.
    pub threads: Vec<String>,
}

/// Why the worker refuses to start or aborts: a code for the program, a message for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    pub code: String,
    pub message: String,
}

/// A text form of an exception. The exception itself is in the segments.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Failure {
    pub stage: String,
    pub type_name: String,
    pub message: String,
    pub traceback: String,
    /// The module that a template could not import. Only SETUP_FAILED has it.
    pub module: Option<String>,
}

impl Explanation {
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: clip(message.into()) }
    }
}

/// Cut a text to [`TEXT_LIMIT`] at a character boundary, with a mark at its end.
pub fn clip(mut text: String) -> String {
    const MARK: &str = " … (cut)";
    if text.len() > TEXT_LIMIT {
        let mut end = TEXT_LIMIT - MARK.len();
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push_str(MARK);
    }
    text
}

impl Message {
    /// Read the body of a header. Checks the number of segments too, which depends on the message.
    pub fn from_header(header: &Header) -> Result<Self, WireError> {
        let fields = Fields { kind: header.kind, body: &header.body };
        let segments = header.lengths.len();
        let segments_fit = match header.kind {
            Kind::Setup => segments == 3,
            Kind::Settings | Kind::Template => segments == 1,
            Kind::Call | Kind::Result => segments >= 1,
            Kind::Raised | Kind::SetupFailed | Kind::Reply | Kind::Request | Kind::Post => true,
            _ => segments == 0,
        };
        if !segments_fit {
            return Err(fields.problem("it has another number of segments than this message has"));
        }
        Ok(match header.kind {
            Kind::Hello => Self::Hello(Box::new(Hello::read(&fields)?)),
            Kind::Setup => Self::Setup(Setup {
                idle_timeout_ms: fields.optional("idle_timeout_ms", "idle_timeout_ms is not an unsigned number", unsigned)?,
                eager: fields.required("eager", "eager is missing or not a truth value", Value::as_bool)?,
                report_interval_ms: fields.optional(
                    "report_interval_ms",
                    "report_interval_ms is not an unsigned number",
                    unsigned,
                )?,
                memory_limit: fields.optional("memory_limit", "memory_limit is not an unsigned number", unsigned)?,
            }),
            Kind::Call => Self::Call {
                types: fields.types(segments)?,
                prepares: fields.optional("prepares", "prepares is not a truth value", Value::as_bool)?.unwrap_or_default(),
            },
            Kind::Retire => Self::Retire,
            Kind::Reply => Self::Reply(Box::new(Reply::read(&fields, segments)?)),
            Kind::Settings => {
                Self::Settings { eager: fields.required("eager", "eager is missing or not a truth value", Value::as_bool)? }
            }
            Kind::Template => Self::Template(Template {
                eager: fields.required("eager", "eager is missing or not a truth value", Value::as_bool)?,
                modules: fields.required("modules", "modules is missing or not an array of text", |value| list(value, text))?,
                threads: fields
                    .optional("threads", "threads is not an array of text", |value| list(value, text))?
                    .unwrap_or_default(),
            }),
            Kind::Fork => Self::Fork,
            Kind::Credit => Self::Credit(Credit::read(&fields)?),
            Kind::Welcome => Self::Welcome(Box::new(Welcome::read(&fields)?)),
            Kind::Refused => Self::Refused(Explanation::read(&fields)?),
            Kind::Ready => Self::Ready(Figures::read_optional(&fields)?),
            Kind::SetupFailed => Self::SetupFailed(Failure {
                module: fields.optional("module", "module is not text", text)?,
                ..Failure::read(&fields)?
            }),
            Kind::Result => Self::Result(fields.types(segments)?, Figures::read_optional(&fields)?),
            Kind::Raised => Self::Raised(Failure::read(&fields)?, Figures::read_optional(&fields)?),
            Kind::Retired => Self::Retired { reason: fields.required("reason", "reason is missing or not text", text)? },
            Kind::Aborted => Self::Aborted(Explanation::read(&fields)?),
            Kind::Request => Self::Request(Box::new(Said::read_request(&fields, segments)?)),
            Kind::Report => Self::Report(Figures::read(&fields)?),
            Kind::Post => Self::Post(Box::new(Said::read_post(&fields, segments)?)),
            Kind::Withdraw => Self::Withdraw { request: read_request(&fields)? },
        })
    }

    pub fn kind(&self) -> Kind {
        match self {
            Self::Hello(_) => Kind::Hello,
            Self::Setup(_) => Kind::Setup,
            Self::Call { .. } => Kind::Call,
            Self::Retire => Kind::Retire,
            Self::Reply(_) => Kind::Reply,
            Self::Settings { .. } => Kind::Settings,
            Self::Template(_) => Kind::Template,
            Self::Fork => Kind::Fork,
            Self::Credit(_) => Kind::Credit,
            Self::Welcome(_) => Kind::Welcome,
            Self::Refused(_) => Kind::Refused,
            Self::Ready(_) => Kind::Ready,
            Self::SetupFailed(_) => Kind::SetupFailed,
            Self::Result(..) => Kind::Result,
            Self::Raised(..) => Kind::Raised,
            Self::Retired { .. } => Kind::Retired,
            Self::Aborted(_) => Kind::Aborted,
            Self::Request(_) => Kind::Request,
            Self::Report(_) => Kind::Report,
            Self::Post(_) => Kind::Post,
            Self::Withdraw { .. } => Kind::Withdraw,
        }
    }

    /// The body to write, its keys in the order of PROTOCOL.md.
    pub fn into_body(self) -> Body {
        match self {
            Self::Retire | Self::Fork => Body::new(),
            Self::Call { types, prepares } => {
                let prepares = prepares.then(|| ("prepares".to_owned(), Value::from(true)));
                write_types(&types).into_iter().chain(prepares).collect()
            }
            Self::Ready(figures) => figures.map(Figures::write).into_iter().collect(),
            Self::Result(types, figures) => write_types(&types).into_iter().chain(figures.map(Figures::write)).collect(),
            Self::Report(figures) => vec![figures.write()],
            Self::Hello(hello) => hello.write(),
            Self::Setup(setup) => {
                let optional = |name: &str, value: Option<u64>| value.map(|value| (name.to_owned(), Value::from(value)));
                let eager = Some(("eager".to_owned(), Value::from(setup.eager)));
                let fields = [
                    optional("idle_timeout_ms", setup.idle_timeout_ms),
                    eager,
                    optional("report_interval_ms", setup.report_interval_ms),
                    optional("memory_limit", setup.memory_limit),
                ];
                fields.into_iter().flatten().collect()
            }
            Self::Settings { eager } => body([("eager", Value::from(eager))]),
            Self::Template(template) => {
                let texts = |items: Vec<String>| Value::Array(items.into_iter().map(Value::Text).collect());
                let threads = (!template.threads.is_empty()).then(|| ("threads".to_owned(), texts(template.threads)));
                let fields = body([("eager", Value::from(template.eager)), ("modules", texts(template.modules))]);
                fields.into_iter().chain(threads).collect()
            }
            Self::Welcome(welcome) => welcome.write(),
            Self::Refused(explanation) | Self::Aborted(explanation) => {
                body([("code", Value::Text(explanation.code)), ("message", Value::Text(explanation.message))])
            }
            Self::SetupFailed(mut failure) => {
                let module = failure.module.take();
                let mut body = failure.write();
                body.extend(module.map(|module| ("module".to_owned(), Value::Text(module))));
                body
            }
            Self::Raised(failure, figures) => {
                let mut body = failure.write();
                body.extend(figures.map(Figures::write));
                body
            }
            Self::Retired { reason } => body([("reason", Value::Text(reason))]),
            Self::Reply(reply) => reply.write(),
            Self::Credit(credit) => credit.write(),
            Self::Request(said) | Self::Post(said) => said.write(),
            Self::Withdraw { request } => body([("request", Value::from(request))]),
        }
    }
}

impl Explanation {
    fn read(fields: &Fields<'_>) -> Result<Self, WireError> {
        Ok(Self {
            code: fields.required("code", "code is missing or not text", text)?,
            message: fields.required("message", "message is missing or not text", text)?,
        })
    }
}

impl Failure {
    /// Read the fields that all failures have.
    fn read(fields: &Fields<'_>) -> Result<Self, WireError> {
        Ok(Self {
            stage: fields.required("stage", "stage is missing or not text", text)?,
            type_name: fields.required("type", "type is missing or not text", text)?,
            message: fields.required("message", "message is missing or not text", text)?,
            traceback: fields.required("traceback", "traceback is missing or not text", text)?,
            module: None,
        })
    }

    fn write(self) -> Body {
        body([
            ("stage", Value::Text(self.stage)),
            ("type", Value::Text(self.type_name)),
            ("message", Value::Text(self.message)),
            ("traceback", Value::Text(self.traceback)),
        ])
    }
}

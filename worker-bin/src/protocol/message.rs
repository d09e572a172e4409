//! What the messages say: a typed body for each kind that has one. Bytes are the codec's affair (`wire`).

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use ciborium::Value;

use crate::process::meter::Figures;
use crate::protocol::frame::{Body, Header, Kind, WireError};

/// The version of the protocol that this worker speaks.
pub const PROTOCOL_VERSION: u64 = 1;

/// Longest text that a message carries, in bytes. The header has a bound, and a job may raise with a novel as its message.
pub const TEXT_LIMIT: usize = 1 << 20;

#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    Hello(Box<Hello>),
    Setup(Setup),
    /// `types`: what each segment becomes, see [`SegmentType`].
    Call {
        types: Vec<SegmentType>,
        /// It is the parent's own, and no job.
        prepares: bool,
    },
    Retire,
    /// Other settings than those of SETUP; `eager` as there.
    Settings {
        eager: bool,
    },
    /// In place of SETUP: do not take calls but fork workers.
    Template(Template),
    /// A request for a worker; descriptors come with it.
    Fork,
    Welcome(Box<Welcome>),
    Refused(Explanation),
    /// The figures are those before the first job.
    Ready(Option<Figures>),
    SetupFailed(Failure),
    Result(Vec<SegmentType>, Option<Figures>),
    Raised(Failure, Option<Figures>),
    Retired {
        reason: String,
    },
    Aborted(Explanation),
    /// What a running job holds.
    Report(Figures),
}

/// What the receiver makes of a segment, so that it can receive it in its place. Where a message does not say it, each is
/// [`SegmentType::Memory`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum SegmentType {
    /// Memory that can be written to.
    #[default]
    Memory = 0,
    /// A `bytes` object.
    Bytes = 1,
    /// A `bytearray`.
    ByteArray = 2,
}

impl SegmentType {
    fn from_number(number: u8) -> Option<Self> {
        [Self::Memory, Self::Bytes, Self::ByteArray].into_iter().find(|kind| *kind as u8 == number)
    }
}

/// Everything that the worker must know to become the parent's own Python. The fields are named in PROTOCOL.md.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Hello {
    pub protocol: u64,
    pub parent_pid: u64,
    pub version: String,
    pub libpython: Vec<u8>,
    /// Variables that the parent changed only to start the worker, with the value to give back (`None`: unset it).
    pub environment: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    pub program_name: Vec<u8>,
    pub argv: Vec<Vec<u8>>,
    pub orig_argv: Vec<Vec<u8>>,
    pub path: Vec<Vec<u8>>,
    pub warnoptions: Vec<Vec<u8>>,
    pub xoptions: Vec<Vec<u8>>,
    pub pycache_prefix: Option<Vec<u8>>,
    pub flags: Vec<(String, i32)>,
    /// Where Python's library lies, if that is not to be found from `program_name`.
    pub home: Option<Vec<u8>>,
    /// What `sys.path` begins as, if that does not follow from `home`.
    pub search_path: Option<Vec<Vec<u8>>>,
    /// The parent is an app made by PyInstaller.
    pub bundle: Option<Bundle>,
    /// This process is to be a template, from which workers are forked.
    pub template: bool,
    /// To a forked worker: which of the three standard streams come with the frame as descriptors, in this order; the others are
    /// closed in the parent.
    pub streams: Option<Vec<u64>>,
    /// The parent's working directory comes behind them.
    pub directory: bool,
    /// The parent's Python is built to run without a GIL (PEP 703).
    pub free_threaded: bool,
}

/// What PyInstaller's bootloader would have handed to the app. Code is as `marshal` writes it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bundle {
    /// `sys._MEIPASS`.
    pub folder: Vec<u8>,
    /// The archive of the app's modules: a path, a question mark, the offset in it.
    pub pyz: Option<Vec<u8>>,
    /// The modules that have to be there before anything can be imported from the archive: name and code.
    pub modules: Vec<(String, Vec<u8>)>,
    /// The boot script and the runtime hooks.
    pub scripts: Vec<Script>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Script {
    pub name: String,
    pub code: Vec<u8>,
    /// The module after whose first import it runs; `None`: at once.
    pub after: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Setup {
    /// Milliseconds without a call after which the worker retires; `None`: never.
    pub idle_timeout_ms: Option<u64>,
    /// There is something in the settings that has to be applied at once.
    pub eager: bool,
    /// Milliseconds between two reports of a running job; `None`: no reports.
    pub report_interval_ms: Option<u64>,
    /// What a job and its child processes may hold, in bytes; `None`: whatever there is.
    pub memory_limit: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Template {
    /// There is something in the settings that has to be applied at once.
    pub eager: bool,
    /// The modules to import before the first worker is forked.
    pub modules: Vec<String>,
    /// The names of native threads that may run beside the one that forks.
    pub threads: Vec<String>,
}

/// How many descriptors come with a FORK: the worker's socket, its record, and the pipe that its number is written to.
pub const FORK_DESCRIPTORS: usize = 3;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Welcome {
    pub protocol: u64,
    pub worker: String,
    pub pid: u64,
    pub version: String,
    pub libpython: Vec<u8>,
    pub prefix: Vec<u8>,
    pub exec_prefix: Vec<u8>,
    /// As in [`Hello`].
    pub free_threaded: bool,
}

/// Why the worker refuses to start or breaks off: a code for the program, a message for the person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    pub code: String,
    pub message: String,
}

/// An exception of the user's, in words; the exception itself travels in the segments.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Failure {
    pub stage: String,
    pub type_name: String,
    pub message: String,
    pub traceback: String,
    /// The module that a template could not import. Only a SETUP_FAILED has it.
    pub module: Option<String>,
}

impl Explanation {
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: clip(message.into()) }
    }
}

/// Cuts a text to [`TEXT_LIMIT`], at a character boundary, and says so at its end.
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
    /// Reads the body that came with a header. The segments' number is checked here too: it belongs to the message.
    pub fn from_header(header: &Header) -> Result<Self, WireError> {
        let fields = Fields { kind: header.kind, body: &header.body };
        let segments = header.lengths.len();
        let segments_fit = match header.kind {
            Kind::Setup => segments == 3,
            Kind::Settings | Kind::Template => segments == 1,
            Kind::Call | Kind::Result => segments >= 1,
            Kind::Raised | Kind::SetupFailed => true,
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
            Kind::Report => Self::Report(Figures::read(&fields)?),
        })
    }

    pub fn kind(&self) -> Kind {
        match self {
            Self::Hello(_) => Kind::Hello,
            Self::Setup(_) => Kind::Setup,
            Self::Call { .. } => Kind::Call,
            Self::Retire => Kind::Retire,
            Self::Settings { .. } => Kind::Settings,
            Self::Template(_) => Kind::Template,
            Self::Fork => Kind::Fork,
            Self::Welcome(_) => Kind::Welcome,
            Self::Refused(_) => Kind::Refused,
            Self::Ready(_) => Kind::Ready,
            Self::SetupFailed(_) => Kind::SetupFailed,
            Self::Result(..) => Kind::Result,
            Self::Raised(..) => Kind::Raised,
            Self::Retired { .. } => Kind::Retired,
            Self::Aborted(_) => Kind::Aborted,
            Self::Report(_) => Kind::Report,
        }
    }

    /// The body as it is written, its keys in the order of PROTOCOL.md.
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
        }
    }
}

impl Hello {
    fn read(fields: &Fields<'_>) -> Result<Self, WireError> {
        Ok(Self {
            protocol: fields.required("protocol", "protocol is missing or not an unsigned number", unsigned)?,
            parent_pid: fields.required("parent_pid", "parent_pid is missing or not an unsigned number", unsigned)?,
            version: fields.required("version", "version is missing or not text", text)?,
            libpython: fields.required("libpython", "libpython is missing or not bytes", bytes)?,
            environment: fields.required("environment", "environment is missing or not an array of pairs", |value| {
                list(value, |pair| match pair.as_array()?.as_slice() {
                    [name, Value::Null] => Some((bytes(name)?, None)),
                    [name, value] => Some((bytes(name)?, Some(bytes(value)?))),
                    _ => None,
                })
            })?,
            program_name: fields.required("program_name", "program_name is missing or not bytes", bytes)?,
            argv: fields.required("argv", "argv is missing or not an array of bytes", byte_strings)?,
            orig_argv: fields.required("orig_argv", "orig_argv is missing or not an array of bytes", byte_strings)?,
            path: fields.required("path", "path is missing or not an array of bytes", byte_strings)?,
            warnoptions: fields.required("warnoptions", "warnoptions is missing or not an array of bytes", byte_strings)?,
            xoptions: fields.required("xoptions", "xoptions is missing or not an array of bytes", byte_strings)?,
            pycache_prefix: fields.required(
                "pycache_prefix",
                "pycache_prefix is missing or neither bytes nor null",
                |value| nullable(value, bytes),
            )?,
            flags: fields.required("flags", "flags is missing or not a map of text to integers of 32 bits", |value| {
                // The last of two of the same name counts, here as elsewhere.
                let flags = value.as_map()?.iter().map(|(name, flag)| Some((name.as_text()?, flag)));
                let flags = flags.collect::<Option<BTreeMap<_, _>>>()?.into_iter();
                flags.map(|(name, flag)| Some((name.to_owned(), i32::try_from(flag.as_integer()?).ok()?))).collect()
            })?,
            home: fields.optional("home", "home is not bytes", bytes)?,
            search_path: fields.optional("search_path", "search_path is not an array of bytes", byte_strings)?,
            bundle: fields.optional("bundle", "bundle is not what a bundle is", Bundle::read)?,
            template: fields.optional("template", "template is not a truth value", Value::as_bool)?.unwrap_or_default(),
            streams: fields.optional("streams", "streams is not some of 0, 1 and 2 in their order", streams)?,
            directory: fields.optional("directory", "directory is not a truth value", Value::as_bool)?.unwrap_or_default(),
            free_threaded: free_threaded(fields)?,
        })
    }

    /// How many descriptors come with it.
    pub fn descriptors(&self) -> usize {
        self.streams.as_ref().map_or(0, Vec::len) + usize::from(self.directory)
    }

    fn write(self) -> Body {
        let environment = self
            .environment
            .into_iter()
            .map(|(name, value)| Value::Array(vec![Value::Bytes(name), value.map_or(Value::Null, Value::Bytes)]));
        let environment = Value::Array(environment.collect());
        let flags = self.flags.into_iter().map(|(name, flag)| (Value::Text(name), Value::from(flag)));
        let always = body([
            ("protocol", Value::from(self.protocol)),
            ("parent_pid", Value::from(self.parent_pid)),
            ("version", Value::Text(self.version)),
            ("libpython", Value::Bytes(self.libpython)),
            ("environment", environment),
            ("program_name", Value::Bytes(self.program_name)),
            ("argv", byte_array(self.argv)),
            ("orig_argv", byte_array(self.orig_argv)),
            ("path", byte_array(self.path)),
            ("warnoptions", byte_array(self.warnoptions)),
            ("xoptions", byte_array(self.xoptions)),
            ("pycache_prefix", self.pycache_prefix.map_or(Value::Null, Value::Bytes)),
            ("flags", Value::Map(flags.collect())),
        ]);
        let optional = [
            ("home", self.home.map(Value::Bytes)),
            ("search_path", self.search_path.map(byte_array)),
            ("bundle", self.bundle.map(Bundle::write)),
            ("template", self.template.then_some(Value::from(true))),
            ("streams", self.streams.map(|streams| Value::Array(streams.into_iter().map(Value::from).collect()))),
            ("directory", self.directory.then_some(Value::from(true))),
            (FREE_THREADED, self.free_threaded.then_some(Value::from(true))),
        ];
        let optional = optional.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
        always.into_iter().chain(optional).collect()
    }
}

impl Bundle {
    fn read(value: &Value) -> Option<Self> {
        let pairs = value.as_map()?;
        let field = |key: &str| pairs.iter().rev().find(|(name, _)| name.as_text() == Some(key)).map(|(_, value)| value);
        Some(Self {
            folder: bytes(field("folder")?)?,
            pyz: nullable(field("pyz")?, bytes)?,
            modules: list(field("modules")?, |module| match module.as_array()?.as_slice() {
                [name, code] => Some((text(name)?, bytes(code)?)),
                _ => None,
            })?,
            scripts: list(field("scripts")?, |script| match script.as_array()?.as_slice() {
                [name, code, after] => Some(Script { name: text(name)?, code: bytes(code)?, after: nullable(after, text)? }),
                _ => None,
            })?,
        })
    }

    fn write(self) -> Value {
        let modules = self.modules.into_iter().map(|(name, code)| Value::Array(vec![Value::Text(name), Value::Bytes(code)]));
        let scripts = self.scripts.into_iter().map(|script| {
            let after = script.after.map_or(Value::Null, Value::Text);
            Value::Array(vec![Value::Text(script.name), Value::Bytes(script.code), after])
        });
        let pairs = [
            ("folder", Value::Bytes(self.folder)),
            ("pyz", self.pyz.map_or(Value::Null, Value::Bytes)),
            ("modules", Value::Array(modules.collect())),
            ("scripts", Value::Array(scripts.collect())),
        ];
        Value::Map(pairs.into_iter().map(|(key, value)| (Value::Text(key.to_owned()), value)).collect())
    }
}

impl Welcome {
    fn read(fields: &Fields<'_>) -> Result<Self, WireError> {
        Ok(Self {
            protocol: fields.required("protocol", "protocol is missing or not an unsigned number", unsigned)?,
            worker: fields.required("worker", "worker is missing or not text", text)?,
            pid: fields.required("pid", "pid is missing or not an unsigned number", unsigned)?,
            version: fields.required("version", "version is missing or not text", text)?,
            libpython: fields.required("libpython", "libpython is missing or not bytes", bytes)?,
            prefix: fields.required("prefix", "prefix is missing or not bytes", bytes)?,
            exec_prefix: fields.required("exec_prefix", "exec_prefix is missing or not bytes", bytes)?,
            free_threaded: free_threaded(fields)?,
        })
    }

    fn write(self) -> Body {
        let always = body([
            ("protocol", Value::from(self.protocol)),
            ("worker", Value::Text(self.worker)),
            ("pid", Value::from(self.pid)),
            ("version", Value::Text(self.version)),
            ("libpython", Value::Bytes(self.libpython)),
            ("prefix", Value::Bytes(self.prefix)),
            ("exec_prefix", Value::Bytes(self.exec_prefix)),
        ]);
        let optional = self.free_threaded.then(|| (FREE_THREADED.to_owned(), Value::from(true)));
        always.into_iter().chain(optional).collect()
    }
}

const FREE_THREADED: &str = "free_threaded";

fn free_threaded(fields: &Fields<'_>) -> Result<bool, WireError> {
    Ok(fields.optional(FREE_THREADED, "free_threaded is not a truth value", Value::as_bool)?.unwrap_or_default())
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
    /// What all failures have.
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

impl Figures {
    const PROBLEM: &'static str = "figures are missing or not an array of four unsigned numbers";

    fn read(fields: &Fields<'_>) -> Result<Self, WireError> {
        fields.required("figures", Self::PROBLEM, Self::from_value)
    }

    fn read_optional(fields: &Fields<'_>) -> Result<Option<Self>, WireError> {
        fields.optional("figures", Self::PROBLEM, Self::from_value)
    }

    fn from_value(value: &Value) -> Option<Self> {
        match *list(value, unsigned)?.as_slice() {
            [rss, peak_rss, vms, cpu_time] => Some(Self { rss, peak_rss, vms, cpu_time }),
            _ => None,
        }
    }

    fn write(self) -> (String, Value) {
        let values = [self.rss, self.peak_rss, self.vms, self.cpu_time];
        ("figures".to_owned(), Value::Array(values.into_iter().map(Value::from).collect()))
    }
}

/// The keys of a received body.
struct Fields<'a> {
    kind: Kind,
    body: &'a Body,
}

impl Fields<'_> {
    fn required<T>(&self, key: &str, problem: &'static str, read: impl Fn(&Value) -> Option<T>) -> Result<T, WireError> {
        self.find(key).and_then(read).ok_or_else(|| self.problem(problem))
    }

    fn optional<T>(&self, key: &str, problem: &'static str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<T>, WireError> {
        self.find(key).map(|value| read(value).ok_or_else(|| self.problem(problem))).transpose()
    }

    /// One for each segment, or none at all.
    fn types(&self, segments: usize) -> Result<Vec<SegmentType>, WireError> {
        let types = self.optional("types", "types is not a byte string of the numbers 0, 1 and 2", |value| {
            value.as_bytes()?.iter().map(|number| SegmentType::from_number(*number)).collect::<Option<Vec<_>>>()
        })?;
        match types {
            Some(types) if types.len() != segments => Err(self.problem("types has another length than there are segments")),
            types => Ok(types.unwrap_or_default()),
        }
    }

    // RFC 8949 calls a repeated key invalid but leaves it to the application; like most decoders we let the last one count.
    fn find(&self, key: &str) -> Option<&Value> {
        self.body.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    fn problem(&self, problem: &'static str) -> WireError {
        WireError::MalformedBody { kind: self.kind, problem }
    }
}

fn write_types(types: &[SegmentType]) -> Option<(String, Value)> {
    let numbers = types.iter().map(|kind| *kind as u8).collect();
    (!types.is_empty()).then(|| ("types".to_owned(), Value::Bytes(numbers)))
}

fn unsigned(value: &Value) -> Option<u64> {
    value.as_integer().and_then(|integer| u64::try_from(integer).ok())
}

fn text(value: &Value) -> Option<String> {
    value.as_text().map(str::to_owned)
}

fn bytes(value: &Value) -> Option<Vec<u8>> {
    value.as_bytes().cloned()
}

/// `None`: it is neither null nor what it should be.
fn nullable<T>(value: &Value, read: impl Fn(&Value) -> Option<T>) -> Option<Option<T>> {
    if value.is_null() { Some(None) } else { read(value).map(Some) }
}

fn list<T>(value: &Value, read: impl Fn(&Value) -> Option<T>) -> Option<Vec<T>> {
    value.as_array()?.iter().map(read).collect()
}

/// Numbers below three, each larger than the one before it.
fn streams(value: &Value) -> Option<Vec<u64>> {
    let streams = list(value, unsigned)?;
    (streams.iter().all(|stream| *stream < 3) && streams.is_sorted_by(|one, next| one < next)).then_some(streams)
}

fn byte_strings(value: &Value) -> Option<Vec<Vec<u8>>> {
    list(value, bytes)
}

fn byte_array(items: Vec<Vec<u8>>) -> Value {
    Value::Array(items.into_iter().map(Value::Bytes).collect())
}

fn body<const N: usize>(pairs: [(&str, Value); N]) -> Body {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

//! The bodies of HELLO and WELCOME.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use ciborium::Value;

use crate::protocol::fields::{Fields, body, byte_array, byte_strings, bytes, list, nullable, streams, text, unsigned};
use crate::protocol::frame::{Body, WireError};

const FREE_THREADED: &str = "free_threaded";

/// Everything needed to become the parent's Python. PROTOCOL.md describes the fields.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Hello {
    pub protocol: u64,
    pub parent_pid: u64,
    pub version: String,
    pub libpython: Vec<u8>,
    /// Variables that the parent changed for the start, with the values to restore (`None` means
    /// unset).
    pub environment: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    pub program_name: Vec<u8>,
    pub argv: Vec<Vec<u8>>,
    pub orig_argv: Vec<Vec<u8>>,
    pub path: Vec<Vec<u8>>,
    pub warnoptions: Vec<Vec<u8>>,
    pub xoptions: Vec<Vec<u8>>,
    pub pycache_prefix: Option<Vec<u8>>,
    pub flags: Vec<(String, i32)>,
    /// The home of Python's library, if `program_name` does not lead to it.
    pub home: Option<Vec<u8>>,
    /// The initial `sys.path`, if `home` does not determine it.
    pub search_path: Option<Vec<Vec<u8>>>,
    /// Set if the parent is an app made by PyInstaller.
    pub bundle: Option<Bundle>,
    /// True if this process becomes a template, which forks workers.
    pub template: bool,
    /// For a forked worker: the standard streams that come as descriptors, in this order. The
    /// others are closed in the parent.
    pub streams: Option<Vec<u64>>,
    /// True if the parent's working directory follows them.
    pub directory: bool,
    /// True if the parent's Python runs without a GIL (PEP 703).
    pub free_threaded: bool,
}

/// The input of PyInstaller's bootloader. Code is in `marshal` format.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bundle {
    /// `sys._MEIPASS`.
    pub folder: Vec<u8>,
    /// The archive of the app's modules: a path, a question mark, the offset in it.
    pub pyz: Option<Vec<u8>>,
    /// Name and code of the modules needed to import from the archive.
    pub modules: Vec<(String, Vec<u8>)>,
    /// The boot script and the runtime hooks.
    pub scripts: Vec<Script>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Script {
    pub name: String,
    pub code: Vec<u8>,
    /// The module after whose first import the script runs. `None` means at once.
    pub after: Option<String>,
}

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

impl Hello {
    pub(super) fn read(fields: &Fields<'_>) -> Result<Self, WireError> {
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
                // The last of two flags with one name counts, as with all fields.
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

    /// The number of descriptors that come with HELLO.
    pub fn descriptors(&self) -> usize {
        self.streams.as_ref().map_or(0, Vec::len) + usize::from(self.directory)
    }

    pub(super) fn write(self) -> Body {
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
    pub(super) fn read(value: &Value) -> Option<Self> {
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

    pub(super) fn write(self) -> Value {
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
    pub(super) fn read(fields: &Fields<'_>) -> Result<Self, WireError> {
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

    pub(super) fn write(self) -> Body {
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

fn free_threaded(fields: &Fields<'_>) -> Result<bool, WireError> {
    Ok(fields.optional(FREE_THREADED, "free_threaded is not a truth value", Value::as_bool)?.unwrap_or_default())
}

//! The interpreter's configuration as plain data, from HELLO. `raw/py_config.rs` converts it to C.

use trio_offload_worker::protocol::hello::Hello;

/// The configuration of the interpreter. Byte strings are as the operating system has them (PEP
/// 383).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) program_name: Vec<u8>,
    pub(crate) argv: Vec<Vec<u8>>,
    pub(crate) orig_argv: Vec<Vec<u8>>,
    pub(crate) warnoptions: Vec<Vec<u8>>,
    pub(crate) xoptions: Vec<Vec<u8>>,
    pub(crate) pycache_prefix: Option<Vec<u8>>,
    pub(crate) flags: Flags,
    pub(crate) home: Option<Vec<u8>>,
    pub(crate) search_path: Option<Vec<Vec<u8>>>,
}

/// Switches with their `PyConfig` names. `None` keeps Python's default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Flags {
    pub(crate) isolated: Option<i32>,
    pub(crate) use_environment: Option<i32>,
    pub(crate) dev_mode: Option<i32>,
    pub(crate) utf8_mode: Option<i32>,
    pub(crate) site_import: Option<i32>,
    pub(crate) user_site_directory: Option<i32>,
    pub(crate) write_bytecode: Option<i32>,
    pub(crate) optimization_level: Option<i32>,
    pub(crate) verbose: Option<i32>,
    pub(crate) quiet: Option<i32>,
    pub(crate) bytes_warning: Option<i32>,
    pub(crate) parser_debug: Option<i32>,
    pub(crate) safe_path: Option<i32>,
    pub(crate) int_max_str_digits: Option<i32>,
    pub(crate) warn_default_encoding: Option<i32>,
    pub(crate) buffered_stdio: Option<i32>,
    /// The name in `sys.flags`; `PyConfig` has none. 0 means a hash seed of zero.
    pub(crate) hash_randomization: Option<i32>,
}

impl Config {
    pub(crate) fn from_hello(hello: &Hello) -> Self {
        Self {
            program_name: hello.program_name.clone(),
            argv: hello.argv.clone(),
            orig_argv: hello.orig_argv.clone(),
            warnoptions: hello.warnoptions.clone(),
            xoptions: hello.xoptions.clone(),
            pycache_prefix: hello.pycache_prefix.clone(),
            flags: Flags::from_pairs(&hello.flags),
            home: hello.home.clone(),
            search_path: hello.search_path.clone(),
        }
    }
}

impl Flags {
    fn from_pairs(pairs: &[(String, i32)]) -> Self {
        let mut flags = Self::default();
        for (name, value) in pairs {
            let place = match name.as_str() {
                "isolated" => &mut flags.isolated,
                "use_environment" => &mut flags.use_environment,
                "dev_mode" => &mut flags.dev_mode,
                "utf8_mode" => &mut flags.utf8_mode,
                "site_import" => &mut flags.site_import,
                "user_site_directory" => &mut flags.user_site_directory,
                "write_bytecode" => &mut flags.write_bytecode,
                "optimization_level" => &mut flags.optimization_level,
                "verbose" => &mut flags.verbose,
                "quiet" => &mut flags.quiet,
                "bytes_warning" => &mut flags.bytes_warning,
                "parser_debug" => &mut flags.parser_debug,
                "safe_path" => &mut flags.safe_path,
                "int_max_str_digits" => &mut flags.int_max_str_digits,
                "warn_default_encoding" => &mut flags.warn_default_encoding,
                "buffered_stdio" => &mut flags.buffered_stdio,
                "hash_randomization" => &mut flags.hash_randomization,
                // A newer parent may send switches that this worker lacks (PROTOCOL.md, HELLO).
                _ => continue,
            };
            *place = Some(*value);
        }
        flags
    }
}

/// The number at the front of `sys.version`, with its suffix: `3.11.7`, `3.13.0rc2`, `3.12.1+`.
pub(crate) fn version_number(version: &str) -> &str {
    version.split_ascii_whitespace().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_flags_are_ignored_and_missing_ones_keep_the_default() {
        let flags = Flags::from_pairs(&[("verbose".to_owned(), 2), ("tea".to_owned(), 1)]);
        assert_eq!(flags, Flags { verbose: Some(2), ..Flags::default() });
    }

    #[test]
    fn the_version_number_ends_at_the_first_blank() {
        assert_eq!(version_number("3.12.1+ (main, Jan  1 2024) [GCC 12]"), "3.12.1+");
        assert_eq!(version_number(""), "");
    }
}

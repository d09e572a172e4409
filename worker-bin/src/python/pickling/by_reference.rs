//! Functions by reference: they are found without the unpickler, for which that is more than half
//! of a small job.
//!
//! A pickle is a program for a stack machine. The parent composes such a call from three parts (its
//! `by_reference` module): push a module's attribute, push the arguments, make a pair. For a new
//! name the unpickler runs all of it, which may import modules, run the main script, or compute an
//! attribute. Later calls look up the module and the attribute as the unpickler would, and only the
//! arguments' program goes to the unpickler. A pickle of any other form goes to the unpickler as a
//! whole.
//!
//! Audit hooks (`pickle.find_class`) see a name only the first time.

#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::collections::BTreeMap;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyModule, PyString, PyTuple};

/// Opcodes (Lib/pickletools.py).
const PROTO: &[u8] = b"\x80\x05";

const GLOBAL: &[u8] = b"c";
const EMPTY_TUPLE: &[u8] = b")";
const TUPLE2: &[u8] = b"\x86";
const STOP: &[u8] = b".";
const MAX_KNOWN: usize = 256;
const MAX_NESTED: usize = 2;

/// The program of a pickled call by reference.
pub(crate) fn call_of(pickle: &[u8]) -> Option<&[u8]> {
    let program = pickle.strip_prefix(PROTO)?.strip_suffix(STOP)?;
    program.starts_with(GLOBAL).then_some(program)
}

/// The names seen so far.
pub(crate) struct FunctionsByReference {
    /// `sys.modules`, as the interpreter has it.
    modules: Py<PyDict>,
    /// A tree: hashing a name takes 200 instructions, comparing it with one of a few takes 20.
    known: RefCell<BTreeMap<Box<[u8]>, Known>>,
}

struct Known {
    module: Py<PyString>,
    name: Py<PyString>,
}

impl FunctionsByReference {
    pub(crate) fn new(py: Python<'_>) -> PyResult<Self> {
        let modules = py.import("sys")?.getattr("modules")?.cast_into::<PyDict>()?;
        Ok(Self { modules: modules.unbind(), known: RefCell::default() })
    }

    /// Run the program of a call. `loads` is the unpickler.
    pub(crate) fn run<'py>(&self, py: Python<'py>, program: &[u8], loads: Loads<'_, 'py>) -> PyResult<Bound<'py, PyAny>> {
        self.run_nested(py, program, loads, MAX_NESTED)
    }

    /// A chunk of `map` is a call with another call as its arguments.
    fn run_nested<'py>(
        &self,
        py: Python<'py>,
        program: &[u8],
        loads: Loads<'_, 'py>,
        depth: usize,
    ) -> PyResult<Bound<'py, PyAny>> {
        if program == EMPTY_TUPLE {
            return Ok(PyTuple::empty(py).into_any());
        }
        let unpickled = || loads(&[PROTO, program, STOP].concat());
        let Some(pair) = (depth > 0).then(|| Pair::parse(program)).flatten() else { return unpickled() };
        if let Some(function) = self.find(py, &pair) {
            let arguments = self.run_nested(py, pair.arguments, loads, depth - 1)?;
            return Ok(PyTuple::new(py, [function, arguments])?.into_any());
        }
        let object = unpickled()?;
        self.remember(&pair, &object);
        Ok(object)
    }

    /// The present attribute, if the name has been seen.
    fn find<'py>(&self, py: Python<'py>, pair: &Pair<'_>) -> Option<Bound<'py, PyAny>> {
        let known = self.known.try_borrow().ok()?;
        self.look_up(py, known.get(pair.lines)?)
    }

    /// Store the name of a pair that the unpickler has made.
    fn remember(&self, pair: &Pair<'_>, object: &Bound<'_, PyAny>) {
        let (Ok(module), Ok(name)) = (str::from_utf8(pair.module), str::from_utf8(pair.name)) else { return };
        let Ok(function) = object.cast::<PyTuple>().map_err(PyErr::from).and_then(|tuple| tuple.get_item(0)) else { return };
        let py = object.py();
        let known = Known { module: PyString::intern(py, module).unbind(), name: PyString::intern(py, name).unbind() };
        if !self.look_up(py, &known).is_some_and(|found| found.is(&function)) {
            return;
        }
        let Ok(mut all) = self.known.try_borrow_mut() else { return };
        if all.len() >= MAX_KNOWN {
            all.clear();
        }
        all.insert(pair.lines.into(), known);
    }

    fn look_up<'py>(&self, py: Python<'py>, known: &Known) -> Option<Bound<'py, PyAny>> {
        let module = self.modules.bind(py).get_item(&known.module).ok()??;
        // Other module types may have their own attribute lookup.
        module.cast_exact::<PyModule>().ok()?.dict().get_item(&known.name).ok()?
    }
}

type Loads<'a, 'py> = &'a dyn Fn(&[u8]) -> PyResult<Bound<'py, PyAny>>;

/// A program that pushes a pair of a module's attribute and something else.
struct Pair<'a> {
    /// Both names, with their newlines.
    lines: &'a [u8],
    module: &'a [u8],
    name: &'a [u8],
    /// The program for the arguments.
    arguments: &'a [u8],
}

impl<'a> Pair<'a> {
    fn parse(program: &'a [u8]) -> Option<Self> {
        let rest = program.strip_prefix(GLOBAL)?.strip_suffix(TUPLE2)?;
        let (module, after_module) = line(rest)?;
        let (name, arguments) = line(after_module)?;
        let lines = rest.get(..rest.len() - arguments.len())?;
        Some(Self { lines, module, name, arguments })
    }
}

/// Split off the first line.
fn line(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = text.iter().position(|byte| *byte == b'\n')?;
    Some((text.get(..end)?, text.get(end + 1..)?))
}

#[cfg(test)]
mod tests {
    use super::{Pair, call_of};

    #[test]
    fn a_call_is_taken_apart() {
        let pair = Pair::parse(call_of(b"\x80\x05cos\ngetpid\n)\x86.").unwrap()).unwrap();
        assert_eq!((pair.module, pair.name, pair.arguments), (&b"os"[..], &b"getpid"[..], &b")"[..]));
        assert_eq!(pair.lines, b"os\ngetpid\n");
        let pair = Pair::parse(b"cmath\nsqrt\nK\x04\x85\x86").unwrap();
        assert_eq!(pair.arguments, b"K\x04\x85");
        let pair = Pair::parse(b"cchunks\nrun\ncmath\nsqrt\nK\x04\x85\x86\x86").unwrap();
        assert_eq!(Pair::parse(pair.arguments).unwrap().lines, b"math\nsqrt\n");
    }

    #[test]
    fn anything_else_is_not() {
        for pickle in [&b""[..], b"\x80\x05", b"\x80\x05cos\ngetpid\n)\x86", b"\x80\x04cos\ngetpid\n)\x86.", b"\x80\x05N."] {
            assert!(call_of(pickle).is_none());
        }
        for program in [&b""[..], b"c", b"c\x86", b"cos\x86", b"cos\ngetpid\x86", b"cos\ngetpid\n)"] {
            assert!(Pair::parse(program).is_none());
        }
    }
}

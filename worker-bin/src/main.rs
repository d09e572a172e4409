//! The worker executable of trio-offload: parse, start, serve, exit.

mod python;

use std::io::Write as _;
use std::process::ExitCode;

use serde::Serialize;
use trio_offload_worker::protocol::message::PROTOCOL_VERSION;
use trio_offload_worker::sentinel::activity::Activity;
use trio_offload_worker::{exit, launch, os, session};

use crate::python::executor::Worker;
use crate::python::{interpreter, raw};

static ACTIVITY: Activity = Activity::new();

fn main() -> ExitCode {
    match launch::Plan::from_arguments(std::env::args_os().skip(1)) {
        launch::Plan::Serve { socket, record } => serve(socket, record),
        launch::Plan::ShowInfo => say(&info()),
        launch::Plan::ShowVersion => say(concat!("trio-offload-worker ", env!("CARGO_PKG_VERSION"))),
        launch::Plan::Explain => {
            say("This is the worker of trio-offload: a process that runs Python functions for a Trio program. \
                 The trio_offload package starts it when it is needed; there is nothing to do with it by hand.")
        }
        launch::Plan::Wrong => {
            complain("unknown arguments; it takes --info or --version, and «serve 3 4» from trio-offload itself")
        }
    }
}

fn serve(socket: i32, record: i32) -> ExitCode {
    let (mut connection, surroundings) = match launch::prepare(socket, record) {
        Ok(prepared) => prepared,
        Err(error) => return complain(&error.to_string()),
    };
    let mut worker = Worker::new(surroundings, &ACTIVITY);
    let mut ending = session::run(&mut connection, &mut worker, &ACTIVITY);
    let newborn = worker.take_newborn();
    let is_forked = newborn.is_some();
    if let Some(newborn) = newborn {
        // A template has forked this process. Its own connection has lost its descriptor to the worker's.
        let templates = std::mem::replace(&mut connection, newborn);
        connection.succeed(templates).relinquish();
        worker.rehearse();
        ending = session::run(&mut connection, &mut worker, &ACTIVITY);
    }
    let code = worker.finish(ending);
    if is_forked {
        os::process::exit_now(code);
    }
    // The socket is closed by the end of the process: to the parent an end of the stream means that the worker is gone.
    std::mem::forget(connection);
    exit_code(code)
}

/// What `--info` prints: one JSON object.
#[derive(Serialize)]
struct Info {
    worker: &'static str,
    protocol: u64,
    python: PythonInfo,
}

#[derive(Serialize)]
struct PythonInfo {
    version: String,
    build: String,
    compiler: String,
    libpython: String,
    free_threaded: bool,
}

fn info() -> String {
    let info = Info {
        worker: env!("CARGO_PKG_VERSION"),
        protocol: PROTOCOL_VERSION,
        python: PythonInfo {
            version: raw::version::version(),
            build: raw::version::build(),
            compiler: raw::version::compiler(),
            libpython: interpreter::loaded_library().to_string_lossy().into_owned(),
            free_threaded: raw::version::FREE_THREADED,
        },
    };
    serde_json::to_string_pretty(&info).unwrap_or_default()
}

/// Not `println!`, which panics when nobody reads.
fn say(text: &str) -> ExitCode {
    match writeln!(std::io::stdout(), "{text}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn complain(text: &str) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "trio-offload-worker: {text}");
    exit_code(exit::WRONG_ARGUMENTS)
}

fn exit_code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

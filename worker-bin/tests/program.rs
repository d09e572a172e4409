//! The real executable, as far as it runs without a parent.
#![expect(clippy::unwrap_used, reason = "outside of the test functions too, what a test did not expect fails it")]

use std::process::{Command, Output, Stdio};

fn worker(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_trio-offload-worker"))
        .args(arguments)
        .env("LD_LIBRARY_PATH", env!("TRIO_OFFLOAD_TEST_LIBRARY_DIRECTORY"))
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn info_is_json_about_the_library_that_was_loaded() {
    let output = worker(&["--info"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let info: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(info["worker"], env!("CARGO_PKG_VERSION"));
    assert_eq!(info["protocol"], 2);
    let python = &info["python"];
    assert!(python["version"].as_str().unwrap().starts_with("3."));
    assert!(python["libpython"].as_str().unwrap().contains("libpython3."));
    for key in ["build", "compiler"] {
        assert!(!python[key].as_str().unwrap().is_empty());
    }
}

#[test]
fn without_arguments_it_says_what_it_is() {
    let output = worker(&[]);
    assert!(output.status.success());
    assert!(text(&output.stdout).contains("trio_offload package starts it"));
}

#[test]
fn the_version_is_told() {
    assert_eq!(text(&worker(&["--version"]).stdout), format!("trio-offload-worker {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn wrong_arguments_are_one_line_and_exit_code_2() {
    for arguments in [&["serve"][..], &["serve", "3"], &["--info", "x"], &["run", "3", "4"], &["serve", "3", "3"]] {
        let output = worker(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert_eq!(text(&output.stderr).lines().count(), 1, "{arguments:?}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn without_a_socket_it_says_who_starts_it() {
    // Descriptor 3 is closed in a process that `Command` starts. The labels are for process lists.
    for label in [&[][..], &["service.py"], &["service.py", "forkserver"]] {
        let output = worker(&[&["serve", "3", "4"], label].concat());
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains("descriptor 3 is not the parent's socket"), "{}", text(&output.stderr));
    }
}

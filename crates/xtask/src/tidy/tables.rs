//! The tables of docs/PROTOCOL.md say what the protocol crate says.

use super::Finding;
use super::markdown::{code, rows};
use crate::tree::Tree;
use everthread_protocol::Code;
use everthread_protocol::entry::{EXTENSION_PREFIX, TYPES, Writer};

const PROTOCOL: &str = "docs/PROTOCOL.md";

/// Every error code is there, with its status and what a retry may do.
pub fn error_codes(tree: &Tree) -> Vec<Finding> {
    let Some(text) = tree.text(PROTOCOL) else { return Vec::new() };
    let rows: Vec<_> = named(rows(text, "Error codes"), "code");
    let mut findings = Vec::new();
    for known in Code::ALL {
        let Some((line, cells)) = rows.iter().find(|(_, cells)| code(cells[0]) == Some(known.as_str()))
        else {
            findings
                .push(Finding::error(PROTOCOL, format!("the error code `{}` is missing", known.as_str())));
            continue;
        };
        let mut demand = |cell: usize, expected: &str| {
            let found = cells.get(cell).copied().unwrap_or_default();
            let first = found.split([' ', ',']).next().unwrap_or_default();
            if first != expected {
                let text = format!("`{}`: {found:?} should be {expected:?}", known.as_str());
                findings.push(Finding::at(PROTOCOL, *line, text));
            }
        };
        demand(1, &known.status().to_string());
        demand(2, if known.is_retryable() { "yes" } else { "no" });
        demand(3, if known.has_no_side_effects() { "yes" } else { "unknown" });
    }
    let is_known = |name: &str| Code::ALL.iter().any(|known| known.as_str() == name);
    findings.extend(unknown(&rows, is_known));
    findings
}

/// Every entry type is there, with its fields and its writer.
pub fn entry_types(tree: &Tree) -> Vec<Finding> {
    let Some(text) = tree.text(PROTOCOL) else { return Vec::new() };
    let rows: Vec<_> = named(rows(text, "Blocks and entries"), "type");
    let mut findings = Vec::new();
    for (name, writer, fields) in TYPES {
        let Some((line, cells)) = rows.iter().find(|(_, cells)| code(cells[0]) == Some(name)) else {
            findings.push(Finding::error(PROTOCOL, format!("the entry type `{name}` is missing")));
            continue;
        };
        let listed = cells.get(1).copied().unwrap_or_default();
        for field in *fields {
            let stands = |end: &str| listed.contains(&format!("`{field}{end}"));
            if !["`", "?", ":", "{"].iter().any(|end| stands(end)) {
                findings.push(Finding::at(
                    PROTOCOL,
                    *line,
                    format!("`{name}`: the field `{field}` is missing"),
                ));
            }
        }
        let expected = match writer {
            Writer::Decided => "decided",
            Writer::Worker => "worker",
            Writer::Anyone => "worker, client",
        };
        let found = cells.get(2).copied().unwrap_or_default();
        if found != expected {
            let text = format!("`{name}`: the writer {found:?} should be {expected:?}");
            findings.push(Finding::at(PROTOCOL, *line, text));
        }
    }
    let is_known =
        |name: &str| name.starts_with(EXTENSION_PREFIX) || TYPES.iter().any(|(known, ..)| *known == name);
    findings.extend(unknown(&rows, is_known));
    findings
}

type Row<'a> = (usize, Vec<&'a str>);

/// Rows of the table whose first column has this head: from there on, those that name something.
fn named<'a>(rows: Vec<Row<'a>>, head: &str) -> Vec<Row<'a>> {
    let body = rows.into_iter().skip_while(|(_, cells)| cells[0] != head);
    body.filter(|(_, cells)| code(cells[0]).is_some()).collect()
}

fn unknown(rows: &[Row<'_>], is_known: impl Fn(&str) -> bool) -> Vec<Finding> {
    let names = rows.iter().filter_map(|(line, cells)| Some((*line, code(cells[0])?)));
    let strange = names.filter(|(_, name)| !is_known(name));
    strange
        .map(|(line, name)| Finding::at(PROTOCOL, line, format!("the code does not know `{name}`")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const REAL: &str = include_str!("../../../../docs/PROTOCOL.md");

    fn codes_after(from: &str, to: &str) -> Vec<String> {
        assert!(REAL.contains(from));
        let text = REAL.replacen(from, to, 1);
        error_codes(&Tree::of(&[(PROTOCOL, &text)])).into_iter().map(|f| f.text).collect()
    }

    fn types_after(from: &str, to: &str) -> Vec<String> {
        assert!(REAL.contains(from));
        let text = REAL.replacen(from, to, 1);
        entry_types(&Tree::of(&[(PROTOCOL, &text)])).into_iter().map(|f| f.text).collect()
    }

    #[test]
    fn the_document_and_the_code_agree_on_error_codes() {
        assert!(codes_after("", "").is_empty());
        assert!(codes_after("| `fenced` | 409 |", "| `fenced` | 410 |")[0].contains("\"409\""));
        assert!(codes_after("| `conflict` | 409 | yes", "| `conflict` | 409 | no")[0].contains("\"yes\""));
        assert!(
            codes_after("| `draining` | 503 | yes | yes", "| `draining` | 503 | yes | unknown")[0]
                .contains("yes")
        );
        let renamed = codes_after("| `too_old` |", "| `too_young` |");
        assert_eq!(renamed.len(), 2, "{renamed:?}");
    }

    #[test]
    fn the_document_and_the_code_agree_on_entry_types() {
        assert!(types_after("", "").is_empty());
        assert!(types_after("`run`, `worker`, `attempt`", "`run`, `attempt`")[0].contains("`worker`"));
        let writer = types_after("`attempt` | decided", "`attempt` | worker");
        assert!(writer[0].contains("\"decided\""), "{writer:?}");
        assert_eq!(types_after("| `state.set` |", "| `state.put` |").len(), 2);
    }
}

//! Lengths and headers of source files.

use super::Finding;
use crate::tree::Tree;

/// A longer file is two things.
const LINES_MAX: usize = 700;
/// A longer one is worth a look.
const LINES_WARN: usize = 500;

/// No file of Rust or TypeScript is too long to read at once.
pub fn length(tree: &Tree) -> Vec<Finding> {
    let sources = tree.texts().filter(|(path, _)| path.ends_with(".rs") || path.ends_with(".ts"));
    let written = sources.filter(|(path, _)| !path.contains("/dist/"));
    let measured = written.map(|(path, text)| (path, text.lines().count()));
    measured
        .filter_map(|(path, lines)| match lines {
            lines if lines <= LINES_WARN => None,
            lines if lines <= LINES_MAX => {
                Some(Finding::warning(path, format!("{lines} lines; {LINES_MAX} are the limit")))
            }
            _ => Some(Finding::error(path, format!("{lines} lines; split it: {LINES_MAX} are the limit"))),
        })
        .collect()
}

/// Every source file of a crate says what it is.
pub fn header(tree: &Tree) -> Vec<Finding> {
    let sources =
        tree.ending(".rs").filter(|(path, _)| path.starts_with("crates/") && path.contains("/src/"));
    sources
        .filter(|(_, text)| !text.starts_with("//! "))
        .map(|(path, _)| Finding::at(path, 1, "begin with `//!`: what this is, what it owns, its invariant"))
        .collect()
}

/// Every script says what it takes and gives, and why it is atomic.
pub fn lua_header(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, text) in tree.ending(".lua") {
        // The engine and its flags, if any, come first.
        let is_head = |line: &&str| line.starts_with("--") || line.starts_with("#!");
        let end = text.lines().take_while(is_head).map(|line| line.len() + 1).sum::<usize>();
        let (head, body) = text.split_at(end.min(text.len()));
        let mut demand = |word: &str, is_needed: bool| {
            if is_needed && !head.contains(word) {
                findings.push(Finding::at(path, 1, format!("the header of this script must say: {word}")));
            }
        };
        demand("KEYS", true);
        demand("ARGV", body.contains("ARGV"));
        demand("Returns", true);
        demand("Atomic because", true);
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_too_long_is_an_error_and_a_long_one_a_warning() {
        let (fine, long, longer) = ("\n".repeat(500), "\n".repeat(700), "\n".repeat(701));
        let tree = Tree::of(&[
            ("a.rs", &fine),
            ("b.ts", &long),
            ("c.rs", &longer),
            ("console/dist/d.ts", &longer),
            ("e.md", &longer),
        ]);
        let found: Vec<_> = length(&tree).into_iter().map(|f| (f.place, f.is_warning)).collect();
        assert_eq!(found, [("b.ts".to_owned(), true), ("c.rs".to_owned(), false)]);
    }

    #[test]
    fn a_source_without_a_header_is_named() {
        let tree = Tree::of(&[
            ("crates/x/src/a.rs", "//! A thing.\n"),
            ("crates/x/src/b/c.rs", "use a;\n"),
            ("crates/x/tests/it/d.rs", "use a;\n"),
        ]);
        assert_eq!(header(&tree), [Finding::at("crates/x/src/b/c.rs", 1, header(&tree)[0].text.clone())]);
    }

    #[test]
    fn a_script_names_its_keys_arguments_and_answer() {
        let good = "-- Does.\n-- KEYS 1 a\n-- Returns 1\n-- Atomic because.\n\nreturn KEYS[1]\n";
        assert!(lua_header(&Tree::of(&[("a.lua", good)])).is_empty());
        let undeclared = good.replace("return KEYS[1]", "return ARGV[1]");
        assert!(lua_header(&Tree::of(&[("a.lua", &undeclared)]))[0].text.contains("ARGV"));
        assert_eq!(lua_header(&Tree::of(&[("a.lua", "return 1")])).len(), 3);
    }
}

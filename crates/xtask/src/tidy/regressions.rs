//! The table of other people's bugs: every row names a test, and every test that it names is there.

use super::Finding;
use super::markdown;
use crate::tree::Tree;

const PAGE: &str = "docs/regressions.md";
const HEADING: &str = "What went wrong with others, and the test that it does not here";

/// Complains about rows without a test, and about names of tests that are not in the file that the link leads to.
pub fn tests(tree: &Tree) -> Vec<Finding> {
    let Some(text) = tree.text(PAGE) else { return Vec::new() };
    let mut findings = Vec::new();
    // The head, and the line below it.
    for (line, cells) in markdown::rows(text, HEADING).into_iter().skip(2) {
        if !cells.last().is_some_and(|cell| cell.contains("](")) {
            findings.push(Finding::at(PAGE, line, "a row without a test"));
        }
    }
    for (line, row) in markdown::prose(text) {
        for (name, file) in named(row) {
            let path = file.trim_start_matches("../");
            let is_there = tree.text(path).is_some_and(|source| source.contains(&format!("fn {name}")));
            if !is_there {
                findings.push(Finding::at(PAGE, line, format!("there is no test {name} in {path}")));
            }
        }
    }
    findings
}

/// Names and files of links like ``[`name`](file)``.
fn named(line: &str) -> impl Iterator<Item = (&str, &str)> {
    line.split("[`").skip(1).filter_map(|rest| {
        let (name, rest) = rest.split_once("`](")?;
        Some((name, rest.split_once(')')?.0))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_without_a_test_and_a_test_that_is_not_there_are_found() {
        let page = format!(
            "# {HEADING}\n\n| What | Where | Test |\n| --- | --- | --- |\n| it hung | a#1 | [`it_goes_on`](../a/t.rs) |\n"
        );
        let source = ("a/t.rs", "async fn it_goes_on() {}");
        assert!(tests(&Tree::of(&[(PAGE, &page), source])).is_empty());
        let found = tests(&Tree::of(&[(PAGE, &page), ("a/t.rs", "fn other() {}")]));
        assert!(found[0].text.contains("it_goes_on"), "{found:?}");
        let without = format!("{page}| it was lost | b#2 | soon |\n");
        assert_eq!(tests(&Tree::of(&[(PAGE, &without), source])).len(), 1);
    }
}

//! As much of Markdown as the checks need: sections, table rows, links, anchors.

/// A line outside fenced code, with its number from 1.
pub fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut is_fenced = false;
    text.lines().enumerate().filter_map(move |(number, line)| {
        if line.trim_start().starts_with("```") {
            is_fenced = !is_fenced;
            return None;
        }
        (!is_fenced).then_some((number + 1, line))
    })
}

/// Heading texts.
pub fn headings(text: &str) -> impl Iterator<Item = &str> {
    prose(text).filter(|(_, line)| line.starts_with('#')).map(|(_, line)| line.trim_start_matches('#').trim())
}

/// Cells of every table row in the section with this heading, up to the next heading. The head of a table is one, too.
pub fn rows<'a>(text: &'a str, heading: &'a str) -> Vec<(usize, Vec<&'a str>)> {
    let mut is_inside = false;
    let mut rows = Vec::new();
    for (number, line) in prose(text) {
        if line.starts_with('#') {
            is_inside = line.trim_start_matches('#').trim() == heading;
        } else if is_inside && let Some(row) = line.strip_prefix('|') {
            rows.push((number, row.trim_end().trim_end_matches('|').split('|').map(str::trim).collect()));
        }
    }
    rows
}

/// The text between the first pair of backticks.
pub fn code(cell: &str) -> Option<&str> {
    cell.split('`').nth(1)
}

/// Targets of all links, with their lines.
pub fn links(text: &str) -> Vec<(usize, String)> {
    let mut links = Vec::new();
    for (number, line) in prose(text) {
        // Every second piece stands between backticks.
        let plain: String = line.split('`').step_by(2).collect::<Vec<_>>().join("_");
        for rest in plain.split("](").skip(1) {
            if let Some((target, _)) = rest.split_once(')') {
                links.push((number, target.split_whitespace().next().unwrap_or_default().to_owned()));
            }
        }
    }
    links
}

/// The anchor that a heading gets.
pub fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# A `b` c!\n\n| x | y |\n| --- | --- |\n| `k` | v |\n\n## D\n| `n` | no |\n```\n# E\n[l](m)\n```\n\
        See [one](a.md#b), `[two](b.md)` and [three](c.md \"title\").\n";

    #[test]
    fn a_section_ends_at_the_next_heading() {
        assert_eq!(headings(TEXT).collect::<Vec<_>>(), ["A `b` c!", "D"]);
        let rows = rows(TEXT, "A `b` c!");
        assert_eq!(rows.len(), 3);
        assert_eq!(rows[2], (5, vec!["`k`", "v"]));
        assert_eq!(code(rows[2].1[0]), Some("k"));
    }

    #[test]
    fn links_in_code_are_no_links() {
        let targets: Vec<_> = links(TEXT).into_iter().map(|(_, target)| target).collect();
        assert_eq!(targets, ["a.md#b", "c.md"]);
    }

    #[test]
    fn anchors_are_those_of_the_usual_renderers() {
        assert_eq!(anchor("A `b` c!"), "a-b-c");
        assert_eq!(anchor("`no_session`"), "no_session");
    }
}

//! The text of every file of the project, so that checks are plain functions.

use crate::test::git;
use std::collections::BTreeMap;
use std::path::Path;

/// Files by their path from the top, with `/` between the parts.
#[derive(Debug, Default)]
pub struct Tree {
    files: BTreeMap<String, Option<String>>,
}

impl Tree {
    /// Every file that git knows or would take.
    pub fn load(top: &Path) -> anyhow::Result<Tree> {
        let listing = git(top, &["ls-files", "-z", "--cached", "--others", "--exclude-standard"])?;
        let mut files = BTreeMap::new();
        for path in String::from_utf8(listing)?.split('\0').filter(|path| !path.is_empty()) {
            // A file that was deleted and is still known to git is not there.
            if let Ok(bytes) = std::fs::read(top.join(path)) {
                files.insert(path.to_owned(), String::from_utf8(bytes).ok());
            }
        }
        Ok(Tree { files })
    }

    /// Paths and texts of all files that are text.
    pub fn texts(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files.iter().filter_map(|(path, text)| Some((path.as_str(), text.as_deref()?)))
    }

    /// Texts of the files whose path ends like this.
    pub fn ending<'a>(&'a self, end: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.texts().filter(move |(path, _)| path.ends_with(end))
    }

    /// The text of one file.
    pub fn text(&self, path: &str) -> Option<&str> {
        self.files.get(path)?.as_deref()
    }

    /// Whether there is such a file, or a directory with files in it.
    pub fn has(&self, path: &str) -> bool {
        let path = path.trim_end_matches('/');
        let inside = format!("{path}/");
        let below = || self.files.range(inside.clone()..).next().is_some_and(|(p, _)| p.starts_with(&inside));
        path.is_empty() || self.files.contains_key(path) || below()
    }
}

#[cfg(test)]
impl Tree {
    /// A tree made up for a test.
    pub fn of(files: &[(&str, &str)]) -> Tree {
        let own = |(path, text): &(&str, &str)| ((*path).to_owned(), Some((*text).to_owned()));
        Tree { files: files.iter().map(own).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_there_if_a_file_is_in_it() {
        let tree = Tree::of(&[("a/b/c.md", ""), ("a-b.md", "")]);
        for path in ["a", "a/", "a/b", "a/b/c.md", ""] {
            assert!(tree.has(path), "{path:?}");
        }
        for path in ["b", "a/b/c", "a/b/c.m"] {
            assert!(!tree.has(path), "{path:?}");
        }
    }
}

//! What processes that were killed have left in a directory: files of uploads that nobody will finish.

use super::{Bucket, SUFFIX};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A file that was not written for so long belongs to nobody: an upload takes a fraction of that.
const LEFT_AFTER: Duration = Duration::from_secs(60 * 60);

impl Bucket {
    /// Deletes them, and says how many there were. A cloud has rules for that. It may take long, and ends soon after
    /// `is_stopped`.
    pub async fn sweep(&self, is_stopped: impl Fn() -> bool + Send + 'static) -> usize {
        let Some(dir) = self.dir.clone() else { return 0 };
        let swept = tokio::task::spawn_blocking(move || sweep(&dir, &is_stopped));
        swept.await.unwrap_or_default()
    }
}

fn sweep(dir: &Path, is_stopped: &impl Fn() -> bool) -> usize {
    let (mut folders, mut swept) = (vec![dir.to_owned()], 0);
    while let Some(folder) = folders.pop() {
        if is_stopped() {
            break;
        }
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(_) if is_left(&entry.path()) && std::fs::remove_file(entry.path()).is_ok() => swept += 1,
                _ => {}
            }
        }
    }
    swept
}

/// Whether it is a file of an upload, and old.
fn is_left(path: &PathBuf) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let is_of_upload = name.rsplit_once('#').is_some_and(|(object, number)| {
        object.ends_with(SUFFIX) && !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
    });
    let written = || std::fs::metadata(path).and_then(|meta| meta.modified()).ok();
    is_of_upload && written().and_then(|at| at.elapsed().ok()).is_some_and(|age| age > LEFT_AFTER)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{File, create_dir_all, write};
    use std::time::SystemTime;

    #[tokio::test]
    async fn old_files_of_uploads_go_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("acme/s");
        create_dir_all(&folder).unwrap();
        let names = [
            "1-a.jsonl.gz#1",
            "1-a.jsonl.gz#12",
            "1-a.jsonl.gz",
            "1-a.jsonl.gz#",
            "notes#1",
            "2-b.jsonl.gz#1",
        ];
        for name in names {
            write(folder.join(name), "x").unwrap();
        }
        let old = SystemTime::now() - LEFT_AFTER * 2;
        for name in &names[..5] {
            File::options().write(true).open(folder.join(name)).unwrap().set_modified(old).unwrap();
        }
        let bucket = Bucket::open(&format!("file://{}", dir.path().display()), []).unwrap();
        assert_eq!(bucket.sweep(|| true).await, 0);
        assert_eq!(bucket.sweep(|| false).await, 2);
        let is_left = |name: &&&str| folder.join(name).exists();
        assert_eq!(names.iter().filter(is_left).collect::<Vec<_>>(), names[2..].iter().collect::<Vec<_>>());
    }
}

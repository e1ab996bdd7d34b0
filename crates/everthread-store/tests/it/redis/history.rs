//! A run that writes through failovers, and what must be true of what was acknowledged to it.

use super::*;
use everthread_protocol::{Epoch, Fence, RunId};

/// What was acknowledged.
#[derive(Debug, Clone, Copy)]
pub(super) struct Appended {
    pub(super) epoch: Epoch,
    pub(super) to: Seq,
    /// The batch, which its entry names.
    pub(super) batch: u64,
}

/// A worker that keeps what it wrote: after a gap it goes on from where the log ends.
pub(super) struct Writer {
    key: SessionKey,
    run: RunId,
    fence: Fence,
    next: u64,
    pub(super) acknowledged: Vec<Appended>,
}

impl Writer {
    pub(super) fn new(key: &SessionKey, fence: Fence) -> Self {
        Self { key: key.clone(), run: "r1".parse().unwrap(), fence, next: 1, acknowledged: Vec::new() }
    }

    /// The next batch.
    pub(super) async fn append(&mut self, store: &impl Store) -> Result<Appended, Error> {
        let text = format!(r#"[{{"type":"x-test","batch":{}}}]"#, self.next);
        let write = Write {
            run: Some(&self.run),
            producer: producer("run:r1", 1, self.next),
            fence: Some((&self.run, self.fence)),
            ..append(&text, 1)
        };
        match store.write(&self.key, write).await {
            Ok(written) => {
                let appended = Appended { epoch: written.epoch, to: written.to, batch: self.next };
                if written.duplicate.is_none_or(|known| known.batch == self.next) {
                    self.acknowledged.push(appended);
                }
                self.next += 1;
                Ok(appended)
            }
            // The end of the log was lost with a primary.
            Err(Error::Refused(Refusal::Gap { expected })) => {
                self.next = expected;
                Err(Error::Unavailable("a gap".into()))
            }
            Err(error) => Err(error),
        }
    }

    /// Tries again for as long as it fails as in an outage.
    pub(super) async fn append_until_it_works(&mut self, store: &impl Store) -> Appended {
        until(async || match self.append(store).await {
            Ok(appended) => Some(appended),
            Err(Error::Unavailable(_) | Error::Indeterminate(_)) => None,
            Err(other) => panic!("{other:?}"),
        })
        .await
    }
}

/// Every entry that was acknowledged is there as it was, or the table of epochs says that it is not: no cursor that a client
/// may hold is valid and means something else. And the log has every batch once, in order.
pub(super) async fn check(store: &impl Store, key: &SessionKey, acknowledged: &[Appended]) {
    let page = until(async || store.read(key, Seq(0), 0).await.ok()).await;
    let records = read_all(store, key, Seq(0), suite::ALL).await;
    let batch_of = |record: &everthread_protocol::Record| {
        suite::texts(std::slice::from_ref(record))[0].get("batch").and_then(serde_json::Value::as_u64)
    };
    let batches: Vec<u64> = records.iter().filter_map(batch_of).collect();
    let expected: Vec<u64> = (1..=batches.len() as u64).collect();
    assert_eq!(batches, expected, "every batch once and in order");
    for appended in acknowledged {
        let ends = page.epochs.iter().skip_while(|(epoch, _)| *epoch != appended.epoch).nth(1);
        let is_valid = page.epochs.iter().any(|(epoch, _)| *epoch == appended.epoch)
            && appended.to <= page.head.seq
            && ends.is_none_or(|(_, next)| appended.to < *next);
        let is_there = records.iter().find(|record| record.to == appended.to).and_then(batch_of);
        if is_valid {
            assert_eq!(is_there, Some(appended.batch), "{appended:?} is valid and means something else");
        }
    }
}

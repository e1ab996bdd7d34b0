//! Reads of the log.

use super::{ALL, BY, append, change, created, entries, fresh, granted, one, read_all, run};
use everthread_protocol::{Seq, SessionKey};
use everthread_store::{Store, Write};

pub async fn what_was_written_is_read_back_verbatim<S: Store>(store: &S) {
    let (key, first) = created(store).await;
    let odd = r#"[ {"type":"x-odd" , "v" : 1.50, "t":"é\ud83d\ude00\n"} ,{"type":"x-odd","v":[]}]"#;
    let r1 = run("r1");
    let written = store.write(&key, Write { run: Some(&r1), ..append(odd, 2) }).await.unwrap();
    let records = read_all(store, &key, Seq(1), ALL).await;
    assert_eq!((records[0].from, records[0].to, records[0].epoch), (Seq(2), Seq(3), first.epoch));
    let blocks = records[0].parse_blocks().unwrap();
    assert_eq!(blocks.len(), 1);
    assert_eq!(blocks[0].entries.get(), odd);
    assert_eq!(blocks[0].by.get(), BY);
    assert_eq!(blocks[0].run, Some(r1));
    assert_eq!(blocks[0].at, written.at);
}

pub async fn pages_are_bounded_and_join_without_gap<S: Store>(store: &S) {
    let (key, _) = created(store).await;
    for n in 0..100 {
        let count = n % 4 + 1;
        store.write(&key, append(&entries(&format!("{n}"), count), count)).await.unwrap();
    }
    let whole = read_all(store, &key, Seq(0), ALL).await;
    assert_eq!(whole.len(), 101);
    for bytes_max in [0, 1, 700, 5000] {
        assert_eq!(read_all(store, &key, Seq(0), bytes_max).await, whole, "pages of {bytes_max}");
        let page = store.read(&key, Seq(0), bytes_max).await.unwrap();
        let bytes: usize = page.records.iter().map(|r| r.blocks.len()).sum();
        let last = page.records.last().unwrap().blocks.len();
        assert!(bytes - last <= bytes_max, "{bytes} bytes in a page of {bytes_max}");
    }
}

pub async fn a_page_may_begin_in_the_middle_of_a_record<S: Store>(store: &S) {
    let (key, _) = created(store).await;
    store.write(&key, append(&entries("a", 10), 10)).await.unwrap();
    store.write(&key, one()).await.unwrap();
    let spans = |records: Vec<everthread_protocol::Record>| -> Vec<(u64, u64)> {
        records.iter().map(|r| (r.from.0, r.to.0)).collect()
    };
    assert_eq!(spans(read_all(store, &key, Seq(5), ALL).await), [(2, 11), (12, 12)]);
    assert_eq!(spans(read_all(store, &key, Seq(10), ALL).await), [(2, 11), (12, 12)]);
    assert_eq!(spans(read_all(store, &key, Seq(11), ALL).await), [(12, 12)]);
}

pub async fn reading_at_the_head_or_beyond_gives_nothing<S: Store>(store: &S) {
    let (key, _) = created(store).await;
    for after in [1, 2, 1 << 52] {
        let page = store.read(&key, Seq(after), ALL).await.unwrap();
        assert_eq!(page.records, []);
        assert_eq!(page.head.seq, Seq(1));
    }
}

pub async fn a_page_tells_head_and_epochs<S: Store>(store: &S) {
    let (key, granted) = granted(store).await;
    let page = store.read(&key, Seq(1), 0).await.unwrap();
    assert_eq!(page.epochs, [(granted.epoch, Seq(1))]);
    let head = page.head;
    assert_eq!((head.epoch, head.since, head.seq), (granted.epoch, Seq(1), Seq(2)));
    assert_eq!((head.version, head.active), (granted.version, 1));
    assert_eq!(page.records[0].epoch, granted.epoch);
}

pub async fn heads_come_in_the_order_asked<S: Store>(store: &S) {
    let (first, _) = created(store).await;
    let (second, _) = granted(store).await;
    let keys = [second.clone(), fresh(), first.clone(), second];
    let heads = store.heads(&keys).await.unwrap();
    let seqs: Vec<_> = heads.iter().map(|h| h.map(|h| (h.seq.0, h.active))).collect();
    assert_eq!(seqs, [Some((2, 1)), None, Some((1, 0)), Some((2, 1))]);
    assert_eq!(store.heads(&[]).await.unwrap(), []);
}

pub async fn tenants_do_not_see_each_other<S: Store>(store: &S) {
    let (key, _) = created(store).await;
    let other = SessionKey { tenant: "globex".parse().unwrap(), ..key.clone() };
    assert_eq!(store.load(&other).await.unwrap(), None);
    let write = Write { change: Some(change(None, "other")), ..one() };
    store.write(&other, write).await.unwrap();
    assert_eq!(store.load(&key).await.unwrap().unwrap().state, "s0");
}
